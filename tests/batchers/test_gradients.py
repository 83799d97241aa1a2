"""Gradients are `jax.vmap`'s gradients, also where they are infinite.

A padded row whose results are dropped has a cotangent of zero, and zero times an
infinite derivative is NaN. It would spoil the gradient of the row that it repeats and
of everything that the rows share.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_all_same, assert_same, mesh


# Every one of them pads. The first row is repeated by all.
PADDING: dict[str, tuple[bk.AbstractBatcher, int]] = {
    "Chunked(4)": (bk.Chunked(4), 7),
    "Chunked(3)": (bk.Chunked(3), 7),
    "Chunked(4, remat)": (bk.Chunked(4, remat=True), 7),
    "Chunked(5, Chunked(2))": (bk.Chunked(5, bk.Chunked(2)), 9),
    "Sharded(4)": (bk.Sharded(mesh(4)), 7),
    "Sharded(4), one task": (bk.Sharded(mesh(4)), 1),
    "Sharded(4), three tasks": (bk.Sharded(mesh(4)), 3),
    "Sharded(3, Chunked(2))": (bk.Sharded(mesh(3), inner=bk.Chunked(2)), 7),
}
every_padding = pytest.mark.parametrize(("batcher", "n"), PADDING.values(), ids=PADDING)


def _rows(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


def _root(x: Any, w: Any) -> Any:
    """Its derivatives at x = 0, w = 0 are infinite, but not NaN."""
    return jnp.sqrt(x - w), jnp.int32(x) + 1, jnp.sqrt(x) * 2


def _infinite_gradients(m: Any, x: Any, w: Any, closed_over: bool) -> Any:
    def run(x: Any, w: Any) -> Any:
        if closed_over:
            root, integers, other = m(lambda x: _root(x, w))(x)
        else:
            root, integers, other = m(_root, (0, None))(x, w)
        return root.sum() + other.sum(), integers

    return jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(x, w)


def _infinite_tangents(m: Any, x: Any, w: Any) -> Any:
    f = lambda x, w: m(lambda x: _root(x, w)[::2])(x)
    return jax.jvp(f, (x, w), (2 * x + 1, w + 3))


def _second_order(m: Any, x: Any, w: Any) -> Any:
    """Forward over reverse and reverse over reverse, with an infinite curvature."""
    f = lambda w: m(lambda x: (x - w) ** 1.5 + jnp.exp(w * x / 8))(x).sum()
    return jax.hessian(f)(w), jax.grad(jax.grad(f))(w)


def _in_other_dtypes(m: Any, x: Any, w: Any) -> Any:
    """A cotangent split over the copies of a row keeps its dtype and its value."""
    x = x / 8 + 1

    def loss(x: Any, h: Any, c: Any) -> Any:
        a, b, c = m(lambda x, h, c: (x**2, h * h, c * c * (1 + 2j)))(x, h, c)
        return a.sum() + b.astype(jnp.float32).sum() + jnp.abs(c).sum()

    args = (x, x.astype(jnp.bfloat16), x.astype(jnp.complex64))
    return jax.grad(loss, argnums=(0, 1, 2))(*args)


DERIVATIVES: dict[str, Callable[..., Any]] = {
    "by a closed-over array": lambda m, x, w: _infinite_gradients(m, x, w, True),
    "by an argument": lambda m, x, w: _infinite_gradients(m, x, w, False),
    "tangents": _infinite_tangents,
    "second order": _second_order,
    "other dtypes": _in_other_dtypes,
}


@functools.cache
def _derivatives(m: Any, n: int) -> dict[str, Any]:
    run = lambda x, w: {name: fun(m, x, w) for name, fun in DERIVATIVES.items()}
    return jax.jit(run)(_rows(n), np.float32(0))


@every_padding
def test_infinite_derivatives_do_not_become_nan(
    batcher: bk.AbstractBatcher, n: int
) -> None:
    actual, x = _derivatives(batcher, n), _rows(n)
    assert_all_same(actual, _derivatives(jax.vmap, n))
    # In closed form.
    for name in ("by a closed-over array", "by an argument"):
        (_, integers), (dx, dw) = actual[name]
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(dx, 1.5 / np.sqrt(x), rtol=1e-6)
        assert dw == -np.inf
        np.testing.assert_array_equal(integers, x + 1)
    assert actual["second order"][0] == np.inf
    np.testing.assert_allclose(actual["other dtypes"][0], x / 4 + 2, rtol=1e-6)


@pytest.mark.parametrize("batcher", [bk.Chunked(4), bk.Sharded(mesh(4))])
def test_float0_cotangents(batcher: bk.AbstractBatcher) -> None:
    """Integers in and out, next to floats: `vjp` takes and gives float0."""
    f = lambda i, x: (i * 2, x * i)
    i, x = np.arange(7), _rows(7)
    cotangents = (np.zeros(7, jax.dtypes.float0), x + 1)
    grads = lambda mapped: jax.vjp(jax.jit(mapped(f)), i, x)[1](cotangents)
    assert_same(grads(batcher), grads(jax.vmap))


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_gradient_by_a_closed_over_array_counts_once(devices: int) -> None:
    """Not once per device: `shard_map` transposes what it closes over to a sum."""
    x = np.arange(1, 9, dtype=np.float32)
    mapped = bk.Sharded(mesh(devices))
    total = lambda w, v: mapped(lambda x: w * x + v, out_axes=0)(x).sum()
    dw, dv = jax.jit(jax.grad(total, argnums=(0, 1)))(2.0, 3.0)
    assert (dw, dv) == (36.0, 8.0)
    # Of an output that is the same for every task.
    same = lambda w: mapped(lambda x: w * 3, out_axes=None)(x)
    assert jax.jit(jax.grad(same))(2.0) == 3.0
    # Under an outer vmap.
    grads = jax.jit(jax.vmap(jax.grad(total), (0, None)))(jnp.arange(3.0), 1.0)
    np.testing.assert_array_equal(grads, [36.0] * 3)
