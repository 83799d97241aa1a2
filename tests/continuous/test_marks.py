"""Marks of expensive functions: a pause inside of tasks, no effect outside."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_same, explained, primitives


X = np.arange(1, 8, dtype=np.float32)


def _square(x: Any) -> Any:
    return x * x


def _note(task: Callable[..., Any]) -> str:
    (reached,) = explained(bk.Continuous(3)(task), X)
    return reached.note


def _times(f: Callable[[Any], Any], x: Any) -> Any:
    """Sum a function over a loop of `x` turns."""
    turn = lambda c: (c[0] + 1, c[1] + f(c[0]))
    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, jnp.zeros_like(x)))[1]


def _check(task: Callable[[Any], Any], calls: int | None = None) -> None:
    found, stats = jax.jit(bk.Continuous(3).with_stats(task))(X)
    assert_same(found, jax.jit(jax.vmap(task))(X), ulps=0)
    if calls is not None:
        assert int(stats.needed) == calls


CALLS = int(X.sum())


def test_marks_have_no_effect_outside_of_tasks() -> None:
    marked = bk.expensive(_square)
    for transform in (
        lambda f: f,
        jax.grad,
        jax.vmap,
        jax.jit,
        lambda f: bk.Chunked(2)(f),
        lambda f: bk.Sequential()(f),
    ):
        one, other = transform(marked), transform(_square)
        x = X if transform is not jax.grad else np.float32(2)
        expected = str(jax.make_jaxpr(other)(x)).replace("name=_square", "")
        assert str(jax.make_jaxpr(one)(x)).replace("name=_square", "") == expected
    assert marked(3) == 9
    assert type(marked(3)) is int


def test_name_and_documentation_are_kept() -> None:
    @bk.expensive
    def likelihood(x: Any) -> Any:
        """How likely."""
        return x

    assert likelihood.__name__ == "likelihood"
    assert likelihood.__doc__ == "How likely."


def test_marks_do_not_outlive_a_task() -> None:
    task = functools.partial(_times, bk.expensive(_square))
    before = str(jax.make_jaxpr(task)(1.0))
    jax.make_jaxpr(bk.Continuous(3)(task))(X)
    assert str(jax.make_jaxpr(task)(1.0)) == before
    assert "batchkit" not in before
    with pytest.raises(ValueError, match="on purpose"):
        bk.Continuous(3)(_fails)(X)
    assert str(jax.make_jaxpr(task)(1.0)) == before


def _fails(x: Any) -> Any:
    raise ValueError("on purpose")


@pytest.mark.parametrize("first", ["outside", "in a task"])
def test_marks_inside_of_jitted_functions(first: str) -> None:
    """A trace from JAX's cache, without marks or with them, is not used elsewhere."""
    square = bk.expensive(lambda x: x * x + 1)
    inner = jax.jit(lambda x: square(x) + 1)
    task = jax.jit(lambda x: _times(inner, x))
    if first == "in a task":
        jax.jit(bk.Continuous(3)(task))(X)
    without = str(jax.make_jaxpr(task)(1.0))
    assert "batchkit" not in without
    task(1.0)
    jax.vmap(task)(X)
    assert _note(task).startswith("pauses at <lambda>; ")
    _check(task, CALLS)


class _Model:
    """An object with methods."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @bk.expensive
    def marked(self, x: Any) -> Any:
        return x * self.scale

    def plain(self, x: Any) -> Any:
        return x * self.scale


class _Module(eqx.Module):
    """A module with an array and a method."""

    scale: Any

    @bk.expensive
    def marked(self, x: Any) -> Any:
        return x * self.scale


def _keywords(x: Any, *, scale: Any, how: str) -> Any:
    return x * scale if how == "times" else x + scale


SPELLINGS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "a method": lambda: _Model(3.0).marked,
    "a bound method": lambda: bk.expensive(_Model(3.0).plain),
    "a method of a module": lambda: _Module(jnp.float32(3)).marked,
    "a partial": lambda: bk.expensive(functools.partial(jnp.multiply, 3.0)),
    "a partial of a marked": lambda: functools.partial(
        bk.expensive(_keywords), scale=3.0, how="times"
    ),
    "keywords": lambda: lambda x: bk.expensive(_keywords)(x, scale=x, how="plus"),
    "a callable module": lambda: bk.expensive(
        eqx.nn.Lambda(lambda x: jnp.float32(3) * x)
    ),
    "jitted inside": lambda: bk.expensive(jax.jit(_square)),
    "jitted outside": lambda: jax.jit(bk.expensive(_square)),
    "marked twice": lambda: bk.expensive(bk.expensive(_square)),
    "no positional arguments": lambda: lambda x: bk.expensive(lambda *, x: x + 1)(x=x),
    "nothing at all": lambda: lambda x: x + bk.expensive(lambda: jnp.float32(2))(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_forms_of_marked_functions_pause(name: str) -> None:
    f = SPELLINGS[name]()
    task = lambda x: _times(f, x)
    if name != "nothing at all":  # which is computed once, in the prologue
        assert _note(task).startswith("pauses at ")
        _check(task, CALLS)
    _check(task)


def test_arguments_and_results_that_are_not_arrays() -> None:
    class Unhashable:
        __hash__ = None  # pyright: ignore

        scale = 2.0

    @bk.expensive
    def f(x: Any, mode: str, shape: Any, other: Any) -> Any:
        y = jnp.full(shape, x).sum() * other.scale
        return {"y": y if mode == "up" else -y, "mode": mode, "size": len(shape)}, None

    def value(x: Any) -> Any:
        one, nothing = f(x, "up", (2, 3), Unhashable())
        two, _ = f(x, mode="down", shape=[2], other=Unhashable())
        assert (one["mode"], one["size"], nothing) == ("up", 2, None)
        assert (two["mode"], two["size"]) == ("down", 1)
        return one["y"] * one["size"] + two["y"]

    _check(lambda x: _times(value, x), 2 * CALLS)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), (2, 2.0), (1.0, 1 + 0j)]
)
def test_equal_arguments_of_different_types(one: Any, other: Any) -> None:
    """They are equal as keys of a dictionary."""
    f = bk.expensive(lambda x, number: x + len(repr(number)) + (number * 2 == 2))

    def value(x: Any) -> Any:
        return f(x, one) + 10 * f(x, other) + 100 * f(x, number=one)

    _check(lambda x: _times(value, x))


def test_results_that_depend_on_a_shape() -> None:
    """A size is not an array, so it must not come from the trace of another shape."""
    f = bk.expensive(lambda x: (x.sum(), x.shape[0]))

    def value(x: Any) -> Any:
        total = x
        for power, size in enumerate([3, 4, 3]):
            y, count = f(jnp.full(size, x))
            assert count == size
            total += 10.0**power * y * count
        return total

    _check(lambda x: _times(value, x))


@pytest.mark.usefixtures("no_type_checks")
def test_marking_what_is_not_a_function() -> None:
    with pytest.raises(TypeError, match=r"expensive\(fun=3\): fun must be a function"):
        bk.expensive(3)  # pyright: ignore


def _cheap_and_costly(x: Any) -> Any:
    cheap = bk.expensive(_square)

    @bk.expensive
    def costly(x: Any) -> Any:
        return jnp.sum(jnp.full((20, 20), x) @ jnp.ones((20, 20)))

    return _times(lambda x: cheap(x) + costly(x), x)


def test_costliest_function_is_chosen() -> None:
    assert _note(_cheap_and_costly).startswith("pauses at costly, not at _square; ")
    _check(_cheap_and_costly, CALLS)


def test_second_function_of_one_name_is_numbered() -> None:

    def make(size: int) -> Callable[[Any], Any]:
        @bk.expensive
        def loglikelihood(x: Any) -> Any:
            return jnp.sum(jnp.full((size, size), x) @ jnp.ones((size, size)))

        return loglikelihood

    small, large = make(2), make(16)
    task = lambda x: _times(lambda x: small(x) + large(x), x)
    assert _note(task).startswith("pauses at loglikelihood#2, not at loglikelihood; ")
    _check(task, CALLS)


def test_transformed_calls_pause() -> None:
    """Values, gradients and forward mode are all evaluations of one function."""
    f = bk.expensive(lambda x: x * x * x)

    def value(x: Any) -> Any:
        y, grad = jax.value_and_grad(f)(x)
        _, tangent = jax.jvp(f, (x,), (jnp.ones_like(x),))
        return f(x) + y + grad + tangent + jax.vmap(f)(jnp.stack([x, x])).sum()

    _check(lambda x: _times(value, x), 4 * CALLS)


def test_one_function_with_different_data() -> None:
    """Lanes wait for the same function, but on different arrays."""
    f = bk.expensive(lambda x, data: jnp.sum(x * data))
    one, other = jnp.arange(3.0), jnp.arange(3.0) * 5

    def value(x: Any) -> Any:
        return jax.lax.cond(x % 2 == 0, lambda: f(x, one), lambda: f(x, other))

    _check(lambda x: _times(value, x), CALLS)


def test_marks_add_no_equations_under_vmap() -> None:
    task = lambda x: bk.expensive(_square)(x) + 1
    assert primitives(jax.vmap(task), X) == [*primitives(jax.vmap(_square), X), "add"]
