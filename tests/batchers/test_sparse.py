"""Sparse arrays, which JAX maps by rules of their own: their shape is no leaf."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import batchkit as bk

from ..helpers import BATCHERS, TASKS, assert_all_same, assert_same, every_batcher


DENSE: Any = np.arange(1, 1 + TASKS * 12, dtype=np.float32).reshape(TASKS, 3, 4)
BCOO = sparse.BCOO.fromdense(DENSE, n_batch=1)
BCSR = sparse.BCSR.fromdense(DENSE, n_batch=1)
SECOND = sparse.BCOO.fromdense(np.moveaxis(DENSE, 0, 1), n_batch=2)


def _times(m: Any, v: Any) -> Any:
    assert m.shape == (3, 4)
    return m @ v, m.data.sum() / m.shape[0]


def _made(kind: Any) -> Callable[[Any], Any]:
    return lambda x: {"m": kind.fromdense(x, nse=12), "of all": x.shape[0]}


V = np.arange(4, dtype=np.float32)
CASES: dict[str, Callable[[Any], Any]] = {
    "BCOO": lambda m: m(_times, (0, None))(BCOO, V),
    "BCSR": lambda m: m(_times, (0, None))(BCSR, V),
    "another axis": lambda m: m(lambda a: a @ V, 1, out_axes=1)(SECOND),
    "a keyword": lambda m: m(lambda *, a: a["a"] @ V)(a={"a": BCOO}),
    "not mapped": lambda m: m(lambda v, a: a @ v, (0, None))(DENSE[:, 0], BCOO[0]),
    "handed on": lambda m: m(lambda a: (a, a.T * 2))(BCOO),
    "made": lambda m: m(_made(sparse.BCOO))(DENSE),
    "made as BCSR": lambda m: m(_made(sparse.BCSR))(DENSE),
    "made with another axis": lambda m: m(
        lambda x: sparse.BCOO.fromdense(x, nse=12, n_batch=1), out_axes=1
    )(DENSE),
    "the same for all": lambda m: m(lambda x, a: (x, a), (0, None), (0, None))(V, BCOO),
    "derivative": lambda m: jax.grad(
        lambda data: m(lambda a: (a @ V).sum())(
            sparse.BCOO((data, BCOO.indices), shape=BCOO.shape)
        ).sum()
    )(BCOO.data),
    "outer vmap": lambda m: jax.vmap(m(lambda a: a @ V))(SECOND),
}


def _results(mapped: Any) -> dict[str, Any]:
    run = lambda: {name: case(mapped) for name, case in CASES.items()}
    return jax.jit(run)()


_expected = functools.cache(lambda: _results(jax.vmap))


@every_batcher
def test_sparse_arrays_are_mapped_as_by_vmap(batcher: bk.AbstractBatcher) -> None:
    actual, expected = _results(batcher), _expected()
    assert_all_same(actual, expected)
    for a, e in zip(*map(_sparse, (actual, expected)), strict=True):
        assert a.shape == e.shape


def _sparse(tree: Any) -> list[Any]:
    is_sparse = lambda x: isinstance(x, sparse.JAXSparse)
    return [x for x in jax.tree.leaves(tree, is_leaf=is_sparse) if is_sparse(x)]


def test_auto_maps_sparse_arrays() -> None:
    case = CASES["BCOO"]
    assert_same(case(bk.Auto("1 GB")), case(jax.vmap))
    found = bk.Auto("1 MB").select(_times, BCOO, V, in_axes=(0, None))
    assert found.batcher == bk.Vmap()


def test_sparse_arrays_in_loops_of_continuous() -> None:
    """Without a loop in the task, `Continuous` would run as `Chunked`."""

    def task(a: Any) -> Any:
        turn = lambda c: (c[0] + a.data.sum() / a.shape[0], a * 2.0)
        return jax.lax.while_loop(lambda c: c[0] < 400.0, turn, (0.0, a))

    run = lambda mapped: jax.jit(mapped(task))(BCOO)
    actual, expected = run(bk.Continuous(2)), run(jax.vmap)
    assert_same(actual, expected)
    assert actual[1].shape == expected[1].shape == BCOO.shape


@pytest.mark.parametrize("name", ["Chunked(3)", "Sharded(4)"])
def test_broadcast_indices_are_refused(name: str) -> None:
    """With one row of indices for all data `jax.vmap` reads out of bounds."""
    indices = BCOO.indices[:1]
    with pytest.raises(ValueError, match="size 1 along its mapped axis 0"):
        BATCHERS[name](lambda a: a @ V)(
            sparse.BCOO((BCOO.data, indices), shape=BCOO.shape)
        )


def test_filter_batch_refuses_to_map_sparse_arrays() -> None:
    """Equinox refuses them, too, with another error."""
    batch = bk.filter_batch(bk.Chunked(2))
    for fun, x in (
        (lambda a: a.data.sum(), {"a": BCOO}),
        (lambda x: (x, sparse.BCOO.fromdense(x, nse=12)), jnp.asarray(DENSE)),
    ):
        with pytest.raises((ValueError, AssertionError)):
            eqx.filter_vmap(fun)(x)
        with pytest.raises(ValueError, match="sparse array"):
            batch(fun)(x)
    times = batch(lambda a, v: a @ v, (None, 0))
    assert_same(
        times(BCOO[0], DENSE[:, 0]), jax.vmap(lambda v: BCOO[0] @ v)(DENSE[:, 0])
    )
