"""Unsupported programs raise errors that name the remedy; others run without lanes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import batchkit as bk

from ..helpers import assert_refuses, assert_same, explained, mesh


X = np.arange(1, 8, dtype=np.float32)


@bk.expensive
def _half(x: Any) -> Any:
    return x / 2


def _halvings(x: Any) -> Any:
    turn = lambda c: (_half(c[0]), c[1] + 1)
    return jax.lax.while_loop(lambda c: c[0] > 0.5, turn, (x, 0))


def _unmarked(x: Any) -> Any:
    return jax.lax.while_loop(lambda x: x > 0.5, lambda x: x / 2, x)


def _note(batcher: bk.AbstractBatcher, task: Callable[..., Any]) -> str:
    (reached,) = explained(batcher(task), X)
    return reached.note


def _program(batched: Callable[..., Any]) -> str:
    return str(jax.make_jaxpr(batched)(X))


REVERSE: dict[str, Callable[[Any], Any]] = {
    "grad": lambda f: jax.grad(lambda x: f(x).sum())(X),
    "vjp": lambda f: jax.vjp(f, X)[1](X),
    "jacrev": lambda f: jax.jacrev(f)(X),
    "grad of jit": lambda f: jax.grad(lambda x: jax.jit(f)(x).sum())(X),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(f)(x).sum())(X[None]),
}
# JAX 0.9 fails in its own forward derivative of a mapped loop, with a TypeError.
if jax.__version_info__ >= (0, 10):
    REVERSE["hessian"] = lambda f: jax.hessian(lambda x: f(x).sum())(X)


@pytest.mark.parametrize("task", [_unmarked, lambda x: _halvings(x)[0]])
@pytest.mark.parametrize("name", REVERSE)
def test_reverse_mode_is_refused(name: str, task: Callable[..., Any]) -> None:
    run = lambda: REVERSE[name](bk.Continuous(3)(task))
    with pytest.raises(ValueError, match="Reverse-mode differentiation") as info:
        # The error comes while tracing; "grad" is also run as it is.
        run() if name == "grad" else jax.eval_shape(run)
    message = str(info.value)
    assert "through Continuous" in message
    assert "`Vmap()`" in message
    assert "forward mode" in message


def test_reverse_mode_of_tasks_that_run_as_chunked() -> None:
    f = lambda x: jnp.sin(x) * _half(x)
    run = lambda m: jax.jit(jax.grad(lambda x: m(f)(x).sum()))(X)
    assert_same(run(bk.Continuous(3)), run(jax.vmap))


def test_reverse_mode_with_stopped_gradients() -> None:
    """Where no cotangent arrives, reverse mode works."""

    def loss(x: Any) -> Any:
        turns = bk.Continuous(3)(_halvings)(jax.lax.stop_gradient(x))[1]
        return jnp.sum(x**2 * turns)

    turns = jax.vmap(_halvings)(X)[1]
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(X), 2 * X * turns)


def test_reverse_mode_of_a_result_that_no_derivative_reaches() -> None:
    """The derivative of another result is computed in the same loop."""
    steps = jax.custom_jvp(lambda x: jnp.round(x))
    steps.defjvp(lambda primals, _: (steps(*primals), 0 * primals[0]))

    def loss(w: Any, mapped: Any) -> Any:
        task = lambda x: (steps(w * x) + _halvings(x)[0], w * x)
        return jnp.sum(mapped(task)(X)[0])

    for mapped in (jax.vmap, bk.Continuous(3)):
        gradient = jax.jit(lambda w, m=mapped: jax.grad(loss)(w, m))
        assert gradient(np.float32(2)) == 0


def _printing(x: Any) -> Any:
    jax.debug.print("x {}", x)
    return x / 2


def _turns(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jax.lax.while_loop(lambda x: x > 0.5, f, x)


EFFECTS: dict[str, Callable[[Any], Any]] = {
    "beside the function": _turns(lambda x: _half(_printing(x))),
    "without a mark": _turns(_printing),
    "before the loop": lambda x: _turns(_half)(_printing(x)),
    "hidden": _turns(lambda x: _half(jax.jit(jax.checkpoint(_printing))(x))),
    "io_callback": _turns(
        lambda x: _half(
            io_callback(lambda x: x, jax.ShapeDtypeStruct((), np.float32), x)
        )
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_side_effects_outside_of_the_function_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="side effect") as info:
        jax.eval_shape(bk.Continuous(3)(EFFECTS[name]), X)
    message = str(info.value)
    assert "Continuous(lanes=3)" in message
    assert "`batchkit.expensive`" in message
    assert "`Vmap()`" in message


def test_side_effects_of_the_function_happen(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Waiting lanes print their argument; others replay that of a waiting one."""
    task = _turns(bk.expensive(_printing))
    jax.block_until_ready(jax.jit(bk.Continuous(3)(task))(X))
    jax.effects_barrier()
    lines = capfd.readouterr().out.split()
    assert set(lines) - {"x"} == {str(x / 2**k) for x in X for k in range(4)} - {
        str(x / 2**k) for x in X for k in range(4) if x / 2**k <= 0.5
    }


def test_side_effects_of_tasks_that_run_as_chunked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    jax.block_until_ready(bk.Continuous(3)(_printing)(X))
    jax.effects_barrier()
    assert {f"x {x}" for x in X} <= set(capfd.readouterr().out.split("\n"))


def test_pure_callbacks_equal_vmap() -> None:
    kind = jax.ShapeDtypeStruct((), np.float32)
    half = lambda x: jax.pure_callback(
        lambda x: np.float32(x / 2), kind, x, vmap_method="sequential"
    )
    for f in (half, bk.expensive(half)):
        task = _turns(f)
        found = jax.jit(bk.Continuous(3)(task))(X)
        assert_same(found, jax.jit(jax.vmap(task))(X), ulps=0)


COLLECTIVES: dict[str, Callable[[Any], Any]] = {
    "psum": lambda x: jax.lax.psum(x, "out"),
    "ppermute": lambda x: jax.lax.ppermute(x, "out", [(0, 1), (1, 0)]),
    "axis_index": lambda x: x + jax.lax.axis_index("out"),
    "all_gather": lambda x: jax.lax.all_gather(x, "out").sum(),
}


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_over_an_outer_axis_are_refused(name: str, marked: bool) -> None:
    f = lambda x: COLLECTIVES[name](x) / 4
    batched = bk.Continuous(3)(_turns(bk.expensive(f) if marked else f))
    with pytest.raises(ValueError, match="collective") as info:
        jax.eval_shape(jax.vmap(batched, axis_name="out"), np.stack([X, X]))
    assert "Continuous(lanes=3)" in str(info.value)
    assert "never reach it together" in str(info.value)


def test_collectives_over_its_own_axis_are_refused() -> None:
    f = _turns(lambda x: jax.lax.psum(x, "i") / 9)
    with pytest.raises(ValueError, match="axis_name='i'"):
        jax.eval_shape(bk.Continuous(3)(f, axis_name="i"), X)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("marked", [True, False])
def test_rbg_keys_are_refused(impl: str, marked: bool) -> None:
    draw = lambda key: jax.random.uniform(key)
    f = bk.expensive(draw) if marked else draw

    def task(key: Any) -> Any:
        turn = lambda c: (c[0] + f(c[1]), c[1])
        return jax.lax.while_loop(lambda c: c[0] < 1, turn, (0.0, key))[0]

    keys = jax.random.split(jax.random.key(3, impl=impl), 7)
    with pytest.raises(ValueError, match="threefry2x32") as info:
        jax.eval_shape(bk.Continuous(3)(task), keys)
    assert "Continuous(lanes=3)" in str(info.value)


def _scanned(impl: str) -> Callable[[Any], Any]:
    """Split one key for all tasks, in turns of which some take longer."""

    def task(x: Any) -> Any:
        def turn(carry: Any, _: Any) -> Any:
            key, x = carry
            key, sub = jax.random.split(key)
            x = jax.lax.cond(x > 3, lambda x: _halvings(x)[0], lambda x: x + 1, x)
            return (key, x + jax.random.uniform(sub)), None

        key = jax.random.key(0, impl=impl)
        return jax.lax.scan(turn, (key, x), length=3)[0][1]

    return task


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_rbg_keys_that_differ_between_turns_are_refused(impl: str) -> None:
    """Under `jax.vmap` all tasks have the same key; lanes are at different turns."""
    with pytest.raises(ValueError, match="different turns") as info:
        jax.eval_shape(bk.Continuous(3)(_scanned(impl)), X)
    assert "threefry2x32" in str(info.value)
    assert "Continuous(lanes=3)" in str(info.value)


def test_threefry_keys_that_differ_between_turns() -> None:
    task = _scanned("threefry2x32")
    found = jax.jit(bk.Continuous(3)(task))(X)
    assert_same(found, jax.jit(jax.vmap(task))(X))


def test_rbg_keys_that_are_the_same_at_all_turns() -> None:
    def task(x: Any) -> Any:
        draw = jax.random.uniform(jax.random.key(0, impl="rbg"))
        return _halvings(x + draw)

    found = jax.jit(bk.Continuous(3)(task))(X)
    assert_same(found, jax.jit(jax.vmap(task))(X))


@pytest.mark.parametrize("task", [_unmarked, jnp.sin, lambda x: _halvings(x)[0]])
def test_spmd_axis_name_is_refused(task: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="spmd_axis_name='tasks'") as info:
        bk.Continuous(3)(task, spmd_axis_name="tasks")(X)
    assert "`Sharded(mesh, inner=Continuous(lanes))`" in str(info.value)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: bk.Continuous(0), ValueError, ("lanes=0", "at least 1", "Sequential")),
        (lambda: bk.Continuous("8"), TypeError, ("lanes='8'", "str")),  # pyright: ignore
    ],
)
def test_constructor_arguments_of_wrong_types_or_values(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    assert_refuses(make, error, words)


def test_equality_and_hash_are_by_value() -> None:
    batchers = [bk.Continuous(3), bk.Continuous(4), bk.Chunked(3)]
    assert len(set(batchers)) == len(batchers)
    assert bk.Continuous(3) == bk.Continuous(3)
    assert hash(bk.Continuous(3)) == hash(bk.Continuous(3))
    assert jax.tree.leaves(bk.Continuous(3)) == []
    for field in ("lanes", "expensive", "new"):
        with pytest.raises(AttributeError):
            setattr(bk.Continuous(3), field, 5)


def _nested(inner: Any) -> Callable[[Any], Any]:
    def task(x: Any) -> Any:
        starts = jnp.stack([x, 2 * x, 5 * x])
        more = inner(lambda y: _halvings(y)[0])(starts)
        return _halvings(more.sum())[0] + more

    return task


INNER: dict[str, bk.AbstractBatcher] = {
    "Continuous(2)": bk.Continuous(2),
    "Chunked(2, Continuous(2))": bk.Chunked(2, inner=bk.Continuous(2)),
    "Sequential()": bk.Sequential(),
}


@functools.cache
def _nested_results() -> Any:
    return jax.jit(jax.vmap(_nested(jax.vmap)))(X)


@pytest.mark.parametrize("name", INNER)
def test_in_a_task_of_another(name: str) -> None:
    found = jax.jit(bk.Continuous(3)(_nested(INNER[name])))(X)
    assert_same(found, _nested_results())


@pytest.mark.parametrize("outer", [bk.Continuous(3), bk.Chunked(4, bk.Continuous(2))])
@pytest.mark.parametrize(
    ("inner", "same"),
    [
        (bk.Continuous(2), jax.vmap),
        (bk.Chunked(2, inner=bk.Continuous(2)), bk.Chunked(2)),
    ],
)
def test_in_a_task_of_another_it_acts_as_vmap(
    inner: Any, same: Any, outer: bk.AbstractBatcher
) -> None:
    assert _program(outer(_nested(inner))) == _program(outer(_nested(same)))


def test_in_a_task_of_another_is_explained() -> None:
    (outer,) = explained(bk.Continuous(3)(_nested(bk.Continuous(2))), X)
    (inner,) = outer.inside
    assert inner.note == "in a task of another Continuous, run as Vmap"
    assert outer.note.startswith("pauses at _half; ")
    assert outer.layout == "3 lanes kept busy"


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Chunked(2), bk.Sharded(mesh(2))])
def test_in_a_task_of_another_batcher_it_has_lanes(batcher: bk.AbstractBatcher) -> None:
    found = jax.jit(batcher(_nested(bk.Continuous(2))))(X)
    assert_same(found, _nested_results())


@pytest.mark.parametrize(
    "task",
    [
        jnp.sin,
        lambda x: jax.lax.scan(lambda c, _: (c / 2, c), x, length=3),
        lambda x: jax.lax.fori_loop(0, 4, lambda _, c: c / 2, x),
        lambda x: jax.lax.cond(x > 2, jnp.sin, jnp.cos, x),
    ],
)
def test_tasks_that_take_the_same_path_run_as_chunked(task: Callable[..., Any]) -> None:
    assert _note(bk.Continuous(3), task) == (
        "all tasks take the same path, so run as Chunked"
    )
    assert _program(bk.Continuous(3)(task)) == _program(bk.Chunked(3)(task))


def test_marked_calls_in_a_scan_run_as_chunked() -> None:
    task = lambda x: jax.lax.scan(lambda c, _: (_half(c), c), x, length=3)
    assert _note(bk.Continuous(3), task) == (
        "all tasks take the same path, so run as Chunked"
    )
    found = jax.jit(bk.Continuous(3)(task))(X)
    assert_same(found, jax.jit(jax.vmap(task))(X))


def _length_by_branch(x: Any) -> Any:
    length = jax.lax.cond(x > 3, lambda: 2, lambda: 5)
    return jax.lax.fori_loop(0, length, lambda _, c: c / 2, x)


def _in_a_scan(x: Any) -> Any:
    return jax.lax.scan(lambda c, _: (_unmarked(c) + 1, None), x, length=2)[0]


@pytest.mark.parametrize("task", [_unmarked, _length_by_branch, _in_a_scan])
def test_divergent_loops_pause_at_their_turns(task: Callable[..., Any]) -> None:
    note = _note(bk.Continuous(3), task)
    assert note.startswith("pauses at turns of loops; ")
    found = jax.jit(bk.Continuous(3)(task))(X)
    assert_same(found, jax.jit(jax.vmap(task))(X), ulps=0)


def test_divergent_loops_in_calls_are_inlined() -> None:
    hidden = jax.jit(_length_by_branch)
    expected = _program(bk.Continuous(3)(_length_by_branch))
    assert _program(bk.Continuous(3)(hidden)) == expected
