"""`filter_batch(batcher)` equals `equinox.filter_vmap`, in another layout."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import (
    BATCHERS,
    TASKS,
    assert_all_same,
    assert_same,
    counted,
    every_batcher,
)


N = TASKS


class Scaled(eqx.Module):
    """A module with an array, a function, a number and a string."""

    weight: jax.Array
    activation: Callable[..., Any]
    power: int
    mode: str = eqx.field(static=True)
    spare: None = None

    def __call__(self, x: Any) -> Any:
        return self.activation(self.weight * x**self.power)


def _make(weight: Any) -> Scaled:
    return Scaled(weight, jnp.tanh, 2, "fast")


MODELS = _make(jnp.arange(1.0, N + 1) / N)
X = jnp.arange(1.0, N + 1)

Call = Callable[[Callable[..., Any]], Any]
CALLS: dict[str, Call] = {
    "static leaves": lambda m: m(lambda model, x: model(x))(MODELS, X),
    "unmapped argument": lambda m: m(
        lambda model, x: model(x), in_axes=(eqx.if_array(0), None)
    )(MODELS, X),
    "a module as function": lambda m: m(_make(jnp.float32(2)))(X),
    "a module as output": lambda m: m(_make)(X),
    "prefix": lambda m: m(
        lambda a, b: (a["x"] + a["y"], b),
        in_axes=({"x": 1, "y": None}, eqx.if_array(-1)),
        out_axes=(1, eqx.if_array(0)),
    )({"x": jnp.ones((2, N)), "y": jnp.ones(2)}, (jnp.ones((3, N)), "text")),
    "static outputs": lambda m: m(lambda x: (x, "text", jnp.sin, 3, None))(X),
    "unmapped outputs": lambda m: m(
        lambda x, y: (x, y * 2, "text"), in_axes=(0, None), out_axes=(0, None, None)
    )(X, X),
    "axis_size alone": lambda m: m(lambda x: x * 2, in_axes=None, axis_size=N)(X),
    "nothing mapped": lambda m: m(lambda x: x * 2, in_axes=None, out_axes=None)(X),
    "scalars broadcast": lambda m: m(lambda x, y, z: x * y + z)(X, 3, 2.5),
    "NumPy arrays": lambda m: m(lambda x, y: (x * y, y))(X, np.arange(N)),
    "NumPy arrays by axis": lambda m: m(lambda x, y: x * y, in_axes=(0, 1))(
        X, np.ones((2, N), np.float32)
    ),
    "in_axes by name": lambda m: m(lambda x, y: x * y, in_axes={"y": None})(X, X),
    "keys": lambda m: m(lambda key: _make(jax.random.uniform(key)))(
        jax.random.split(jax.random.key(0), N)
    ),
    "axis name": lambda m: m(lambda x: x / jax.lax.axis_size("i"), axis_name="i")(X),
    "no tasks": lambda m: m(lambda x: (x * 2, "a"))(jnp.ones((0, 2))),
}


def _results(mapped: Any) -> dict[str, Any]:
    run = lambda: {name: call(mapped) for name, call in CALLS.items()}
    return eqx.filter_jit(run)()


_expected = functools.cache(lambda: _results(eqx.filter_vmap))


@every_batcher
def test_results_equal_those_of_filter_vmap(batcher: bk.AbstractBatcher) -> None:
    assert_all_same(_results(bk.filter_batch(batcher)), _expected())


@every_batcher
def test_traced_once(batcher: bk.AbstractBatcher) -> None:
    fun, traces = counted(lambda model, x: (model(x), model))
    bk.filter_batch(batcher)(fun)(MODELS, X)
    assert len(traces) == 1


@functools.cache
def _value_and_grad(mapped: Any) -> Any:
    loss = lambda model: mapped(lambda x: model(x))(X).sum()
    return eqx.filter_jit(eqx.filter_value_and_grad(loss))(_make(jnp.float32(0.1)))


@every_batcher
def test_gradients_equal_those_of_filter_vmap(batcher: bk.AbstractBatcher) -> None:
    actual = _value_and_grad(bk.filter_batch(batcher))
    assert_same(actual, _value_and_grad(eqx.filter_vmap))


def test_keyword_arguments_are_mapped() -> None:
    """Unlike in `filter_vmap`: as in all batchers, over axis 0."""
    f = bk.filter_batch(bk.Chunked(3))(lambda x, *, y, mode: (x + y, mode))
    assert_same(f(X, y=2 * X, mode="a"), (3 * X, "a"))


@pytest.mark.parametrize("name", ["Vmap()", "Sequential()", "Chunked(3)", "Sharded(4)"])
def test_invalid_axes_are_refused(name: str) -> None:
    mapped = bk.filter_batch(BATCHERS[name])
    with pytest.raises(ValueError, match="inconsistent sizes"):
        mapped(lambda x, y: x)(jnp.ones(12), jnp.ones(14))
    with pytest.raises(TypeError, match="in_axes maps axis 0 of 'text'"):
        mapped(lambda x, y: x, in_axes=0)(X, "text")
    with pytest.raises(TypeError, match="out_axes maps axis 0 of 'text'"):
        mapped(lambda x: "text", out_axes=0)(X)
    with pytest.raises(ValueError, match="was batched"):
        mapped(lambda x: x, out_axes=None)(X)
