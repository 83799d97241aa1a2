"""blackjax's own `batch_size`, next to a batcher.

With `batch_size` above zero blackjax maps by `jax.lax.map` and calls no `vmap` there,
so there is nothing for a batcher to run: `batch_size` wins at those sites.
"""

import functools
from typing import Any

import blackjax
import jax
import numpy as np
import pytest

import batchkit as bk

from ..helpers import equations
from .problems import SMC


# Ten particles are five chunks of two, and two batches of four with a remainder.
POSITIONS = jax.random.normal(jax.random.key(0), (10, 2))
KEY = jax.random.key(1)
SIZES = [0, 4]


def step(
    batcher: bk.AbstractBatcher | None, batch_size: int, **settings: Any
) -> tuple[Any, ...]:
    """A function and its arguments: one step, upstream's without a batcher."""
    api: Any = blackjax.tempered_smc
    if batcher is not None:
        api = bk.rebuild_sampler(api, batcher=batcher)
    smc = api(**{**SMC, **settings}, batch_size=batch_size)
    return smc.step, KEY, smc.init(POSITIONS), 0.5


@functools.cache
def result(batcher: bk.AbstractBatcher | None, batch_size: int) -> Any:
    fun, *args = step(batcher, batch_size)
    state, info = jax.jit(fun)(*args)
    return state, info.update_info.acceptance_rate


def scan_lengths(fun: Any, *args: Any) -> list[int]:
    eqns = equations(jax.make_jaxpr(fun)(*args))
    return [eqn.params["length"] for eqn in eqns if eqn.primitive.name == "scan"]


@pytest.mark.parametrize("batch_size", SIZES)
def test_results_with_batch_size_are_upstreams(batch_size):
    actual = result(bk.Chunked(2), batch_size)
    for expected in (result(None, batch_size), result(None, 0)):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, actual, expected)


def test_batch_size_wins_where_it_is_used():
    plain, upstream = (scan_lengths(*step(None, size)) for size in SIZES)
    chunked, both = (scan_lengths(*step(bk.Chunked(2), size)) for size in SIZES)
    assert 5 not in plain
    assert chunked.count(5) == 2  # in `map_fn` and in `map_kernel`
    assert upstream != plain
    assert both == upstream
