"""Continuous batching against `jax.vmap`: the same results, evaluations counted."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import batchkit as bk

from ..helpers import assert_same


N = 13


def _loglikelihood(x: Any) -> Any:
    return -0.5 * jnp.sum(x**2)


def _walk(key: Any, x: Any) -> Any:
    """Four searches of a random length, one after the other."""
    loglikelihood = bk.expensive(_loglikelihood)

    def search(carry: Any, key: Any) -> Any:
        x, value = carry

        def goes_on(state: Any) -> Any:
            _, new, turns, _ = state
            return (new < value - 0.5) & (turns < 20)

        def turn(state: Any) -> Any:
            key, _, turns, _ = state
            key, sub = jax.random.split(key)
            y = x + jax.random.normal(sub, x.shape)
            return key, loglikelihood(y), turns + 1, y

        start = (key, jnp.array(-jnp.inf), 0, x)
        _, new, turns, y = jax.lax.while_loop(goes_on, turn, start)
        return (y, new), (turns, new)

    return jax.lax.scan(search, (x, loglikelihood(x)), jax.random.split(key, 4))


def _arguments() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), N)
    return keys, jax.random.normal(jax.random.key(1), (N, 3))


@pytest.mark.parametrize("lanes", [1, 4, N, 100])
def test_as_vmap(lanes: int) -> None:
    args = _arguments()
    expected = jax.jit(jax.vmap(_walk))(*args)
    run = jax.jit(bk.Continuous(lanes).with_stats(_walk))
    actual, stats = run(*args)
    assert_same(actual, expected)
    turns = expected[1][0]
    assert int(stats.needed) == int(turns.sum()) + N  # and one at the start of each
    assert int(stats.made) % min(lanes, N) == 0
    assert (int(stats.made) == int(stats.needed)) == (lanes == 1)


def test_layout_is_explained() -> None:
    (reached,) = bk.explain(bk.Continuous(4)(_walk), *_arguments()).reached
    assert reached.layout == "4 lanes kept busy"
    assert reached.at_once == 4
    assert reached.note.startswith("pauses at _loglikelihood; ")
