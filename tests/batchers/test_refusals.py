"""Batchers refuse unsupported programs while tracing, with a remedy in the message.

Errors of `jax.vmap` are raised with its own words.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import (
    BATCHERS,
    TASKS,
    assert_refuses,
    assert_same,
    every_batcher,
    every_splitting_batcher,
    mesh,
    unchecked,
)


N = TASKS
X = np.arange(1, 1 + N, dtype=np.float32)


def _shift(x: Any) -> Any:
    return jax.lax.ppermute(x, "i", [(j, (j + 1) % N) for j in range(N)])


COLLECTIVES: dict[str, Callable[[Any], Any]] = {
    "psum": lambda x: jax.lax.psum(x, "i"),
    "psum of a pytree": lambda x: jax.lax.psum({"a": x, "b": 1}, "i"),
    "psum of an array that is the same": lambda x: x + jax.lax.psum(jnp.ones(3), "i"),
    "pmean": lambda x: jax.lax.pmean(x, "i"),
    "pmax": lambda x: jax.lax.pmax(x, "i"),
    "pmin": lambda x: jax.lax.pmin(x, "i"),
    "all_gather": lambda x: jax.lax.all_gather(x, "i"),
    "ppermute": _shift,
    "all_to_all": lambda x: jax.lax.all_to_all(jnp.full(N, x), "i", 0, 0),
    "pshuffle": lambda x: jax.lax.pshuffle(x, "i", [*range(1, N), 0]),
    "psum_scatter": lambda x: jax.lax.psum_scatter(jnp.full(N, x), "i"),
    "axis_index": lambda x: x + jax.lax.axis_index("i"),
    "two axes": lambda x: jax.vmap(
        lambda y: jax.lax.psum(x * y, ("i", "j")), axis_name="j"
    )(jnp.ones(2)),
}


def _psum(x: Any) -> Any:
    return jax.lax.psum(x, "i")


def _custom_jvp(x: Any) -> Any:
    f = jax.custom_jvp(_psum)
    f.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    return f(x)


def _custom_vjp(x: Any) -> Any:
    f = jax.custom_vjp(_psum)
    f.defvjp(lambda x: (f(x), None), lambda _, g: (g,))
    return f(x)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "jit": jax.jit(_psum),
    "scan": lambda x: jax.lax.scan(lambda c, _: (_psum(c), None), x, length=2)[0],
    "cond": lambda x: jax.lax.cond(True, _psum, lambda x: x, x),
    "while_loop": lambda x: jax.lax.while_loop(lambda c: c < 2.0, _psum, x),
    "condition of a while_loop": lambda x: jax.lax.while_loop(
        lambda c: _psum(c) < 2.0, lambda c: c + 1, x
    ),
    "custom_jvp": _custom_jvp,
    "custom_vjp": _custom_vjp,
    "checkpoint": jax.checkpoint(_psum),
    "vmap": lambda x: jax.vmap(lambda y: _psum(x * y))(jnp.ones(2)),
    "grad": jax.grad(lambda x: _psum(x**2)),
    "closure": lambda x: x + (lambda y: jax.jit(lambda: _psum(y))())(x),
}


def _refuses(batcher: bk.AbstractBatcher, fun: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="axis_name='i'") as info:
        jax.eval_shape(batcher(fun, axis_name="i"), X)
    message = str(info.value)
    assert type(batcher).__name__ in message
    assert str(N) in message
    assert "`Vmap()`" in message


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
def test_collectives_are_refused(name: str) -> None:
    for fun in COLLECTIVES.values():
        _refuses(BATCHERS[name], fun)
        # `jax.vmap` accepts the same function.
        jax.eval_shape(jax.vmap(fun, axis_name="i"), X)


@every_splitting_batcher
def test_nested_collectives_are_refused(batcher: bk.AbstractBatcher) -> None:
    for fun in WRAPPERS.values():
        _refuses(batcher, fun)


@every_splitting_batcher
def test_collective_does_not_bind_an_outer_axis(batcher: bk.AbstractBatcher) -> None:
    """As many tasks outside as inside, so that nothing else would fail."""
    for name in ("psum", "ppermute", "axis_index", "all_gather"):
        outer = jax.vmap(batcher(COLLECTIVES[name], axis_name="i"), axis_name="i")
        with pytest.raises(ValueError, match="axis_name='i'"):
            jax.eval_shape(outer, np.ones((N, N), np.float32))


@pytest.mark.parametrize("name", ["Vmap()", "Chunked(100)", "Sharded(1)"])
def test_collectives_work_if_tasks_run_together(name: str) -> None:
    def f(x: Any) -> Any:
        return _psum(x), jax.lax.axis_index("i"), _shift(x)

    run = lambda mapped: jax.jit(mapped(f, axis_name="i"))(X)
    assert_same(run(BATCHERS[name]), run(jax.vmap), ulps=0)


@every_batcher
def test_unbound_axis_name_is_an_error(batcher: bk.AbstractBatcher) -> None:
    """Without `axis_name` the axis has no name, as under `jax.vmap`."""
    with pytest.raises(NameError, match="unbound axis name: i"):
        batcher(_psum)(X)


@every_splitting_batcher
def test_collectives_with_unmapped_outputs_are_refused(
    batcher: bk.AbstractBatcher,
) -> None:
    f = lambda x: (x - jax.lax.pmean(x, "i"), jax.lax.pmean(x, "i"))
    run = lambda mapped: mapped(f, out_axes=(0, None), axis_name="i")(X)
    with pytest.raises(ValueError, match="axis_name='i'"):
        run(batcher)
    assert_same(run(bk.Auto("1 GB")), run(jax.vmap))


def _count(ref: Any, x: Any) -> Any:
    ref[...] = ref[...] * 2 + x
    return ref[...].sum()


def _counted(mapped: Any) -> Any:
    ref = jax.new_ref(jnp.ones((N, 2)))
    out = jax.jit(lambda ref: mapped(_count)(ref, X))(ref)
    return out, ref[...]


@every_splitting_batcher
def test_mapped_mutable_arrays_are_refused(batcher: bk.AbstractBatcher) -> None:
    with pytest.raises(ValueError, match="cannot be cut into chunks") as info:
        _counted(batcher)
    assert "`jax.Ref`" in str(info.value)
    assert "Pass its values" in str(info.value)


@pytest.mark.parametrize("name", ["Vmap()", "Chunked(100)", "Sharded(1)", "Auto"])
def test_mapped_mutable_arrays_work_if_tasks_run_together(name: str) -> None:
    batcher = bk.Auto("1 GB") if name == "Auto" else BATCHERS[name]
    assert_same(_counted(batcher), _counted(jax.vmap), ulps=0)


def test_auto_selects_vmap_for_a_mapped_mutable_array() -> None:
    chosen = bk.Auto("1 GB").select(_count, jax.new_ref(jnp.ones((N, 2))), X)
    assert chosen.batcher == bk.Vmap()
    assert "mutable array" in chosen.reason


@every_batcher
def test_closed_over_mutable_arrays_work_on_one_device(
    batcher: bk.AbstractBatcher,
) -> None:
    ref = jax.new_ref(jnp.ones(2))
    run = lambda mapped: mapped(lambda x: x + ref[...].sum())(X)
    if isinstance(batcher, bk.Sharded) and batcher != BATCHERS["Sharded(1)"]:
        with pytest.raises(ValueError, match="is on one device"):
            run(batcher)
    else:
        assert_same(run(batcher), run(jax.vmap))


def _raised(mapped: Any, call: Callable[[Any], Any]) -> tuple[type[Exception], str]:
    try:
        call(mapped)
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("nothing was raised")


def _two(x: Any, y: Any) -> Any:
    return x


_OBJECT = object()  # its address is part of the error


ERRORS: dict[str, Callable[[Any], Any]] = {
    "sizes": lambda m: m(_two)(np.ones(12), np.ones(14)),
    "sizes of leaves": lambda m: m(_two)({"a": np.ones(12)}, [np.ones((3, 2))]),
    "sizes of keywords": lambda m: m(_two)(np.ones(12), y=np.ones(14)),
    "sizes along other axes": lambda m: m(_two, (0, 1))(np.ones(3), np.ones((3, 2))),
    "nothing to map": lambda m: m(_two, in_axes=None)(X, X),
    "no arguments": lambda m: m(lambda: 1)(),
    "rank": lambda m: m(_two, in_axes=(0, 2))(X, X),
    "a scalar": lambda m: m(_two)(X, 2.0),
    "a string": lambda m: m(_two)(X, "a"),
    "an object": lambda m: m(_two)(X, _OBJECT),
    "in_axes: a string": lambda m: m(_two, in_axes="a"),
    "in_axes: a string inside": lambda m: m(_two, in_axes=(0, "a")),
    "in_axes: a float": lambda m: m(_two, in_axes=(0, 1.0))(X, X),
    "in_axes: too many": lambda m: m(_two, in_axes=(0, 0, 0))(X, X),
    "in_axes: no prefix": lambda m: m(_two, in_axes=(0, {"a": 0}))(X, X),
    "out_axes: a string": lambda m: m(_two, out_axes="a")(X, X),
    "out_axes: no prefix": lambda m: m(_two, out_axes=(0, 1))(X, X),
    "out_axes: too large": lambda m: m(_two, out_axes=2)(X, X),
    "out_axes: too small": lambda m: m(_two, out_axes=-2)(X, X),
    "out_axes: too large for what is the same": lambda m: m(
        lambda x: jnp.ones(2), out_axes=3
    )(X),
    "out_axes: None, varying": lambda m: m(_two, out_axes=None)(X, X),
    "out_axes: None, one varying": lambda m: m(
        lambda x: {"a": 1.0, "b": (x, x)}, out_axes={"a": None, "b": (0, None)}
    )(X),
    "output: a string": lambda m: m(lambda x: (x, "a"))(X),
    "output: an object": lambda m: m(lambda x: {"y": object})(X),
    "what the function raises": lambda m: m(lambda x: x @ jnp.ones((3, 3)))(X),
}


def _all_raised(mapped: Any) -> dict[str, tuple[type[Exception], str]]:
    return {name: _raised(mapped, call) for name, call in ERRORS.items()}


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
def test_errors_equal_those_of_vmap(name: str) -> None:
    assert _all_raised(BATCHERS[name]) == _all_raised(jax.vmap)


@every_splitting_batcher
def test_inconsistent_axis_size_is_refused(batcher: bk.AbstractBatcher) -> None:
    """JAX before 0.10 does not compare it with the arguments, so there is no oracle."""
    with pytest.raises(ValueError, match=r"axis_size|size 8"):
        batcher(_two, axis_size=8)(X, X)


@every_splitting_batcher
def test_non_callable_is_refused(batcher: Any) -> None:
    with unchecked(), pytest.raises(TypeError, match="Expected a callable value"):
        batcher(3)


@every_splitting_batcher
def test_errors_of_vmap_have_a_remedy_as_note(batcher: bk.AbstractBatcher) -> None:
    with pytest.raises(ValueError, match="inconsistent sizes") as info:
        batcher(_two)(np.ones(12), np.ones(14))
    assert any("in_axes to None" in note for note in info.value.__notes__)
    with pytest.raises(ValueError, match="but output was batched") as info:
        batcher(_two, out_axes=None)(X, X)
    assert any("out_axes=None" in note for note in info.value.__notes__)


@pytest.mark.parametrize("name", ["Sequential()", "Sharded(4)", "Sharded(1)"])
def test_spmd_axis_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="spmd_axis_name='tasks'") as info:
        BATCHERS[name](jnp.sin, spmd_axis_name="tasks")(X)
    assert "`Vmap()`" in str(info.value)
    with pytest.raises(ValueError, match="spmd_axis_name='tasks'"):
        bk.Chunked(3, inner=BATCHERS[name])(jnp.sin, spmd_axis_name="tasks")(X)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: bk.Chunked(0), ValueError, ("size=0", "at least 1", "Sequential()")),
        (lambda: bk.Chunked("16"), TypeError, ("size='16'", "int", "str")),  # pyright: ignore
        (lambda: bk.Chunked(2, jax.vmap), TypeError, ("inner=", "batcher")),  # pyright: ignore
        (lambda: bk.Chunked(2, bk.Vmap), TypeError, ("inner=", "`Vmap()`")),  # pyright: ignore
        (lambda: bk.Sharded(inner=jax.vmap), TypeError, ("inner=", "batcher")),  # pyright: ignore
        (lambda: bk.Sharded(4), TypeError, ("mesh=4", "make_mesh")),  # pyright: ignore
        (
            lambda: bk.Sharded(mesh(2).abstract_mesh),  # pyright: ignore
            TypeError,
            ("mesh=", "jax.sharding.Mesh"),
        ),
        (lambda: bk.Sharded(mesh(2), "x"), ValueError, ("'x'", "('tasks',)")),
        (lambda: bk.Sharded(mesh(2), ("tasks", "x")), ValueError, ("'x'", "mesh_axis")),
        (
            lambda: bk.Sharded(mesh(2), ("tasks",) * 2),
            ValueError,
            ("mesh_axis", "twice"),
        ),
        (lambda: bk.Sharded(mesh(2), 5), TypeError, ("mesh_axis=5", "name")),  # pyright: ignore
        (lambda: bk.Sharded(mesh(2), ["tasks"]), TypeError, ("mesh_axis=", "tuple")),  # pyright: ignore
        (lambda: bk.Chunked(2, remat="yes"), TypeError, ("remat='yes'", "str")),  # pyright: ignore
        (lambda: bk.filter_batch(jnp.sin), TypeError, ("batcher=", "second call")),  # pyright: ignore
    ],
)
def test_invalid_fields_are_refused(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    assert_refuses(make, error, words)


def test_unknown_axis_of_the_default_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="has no axis 'x'"):
        bk.Sharded(mesh_axis="x")(jnp.sin)(X)
