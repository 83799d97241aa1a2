"""Continuous batching against `jax.vmap`: equal results, evaluations counted."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import batchkit as bk

from ..helpers import assert_same, explained, is_optimized


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


@functools.cache
def _expected() -> Any:
    return jax.jit(jax.vmap(_walk))(*_arguments())


@pytest.mark.parametrize("lanes", [1, 4, N])
def test_results_are_those_of_vmap(lanes: int) -> None:
    run = jax.jit(bk.Continuous(lanes).with_stats(_walk))
    actual, stats = run(*_arguments())
    assert_same(actual, _expected(), ulps=4 if is_optimized() else 16)
    turns = _expected()[1][0]
    assert int(stats.needed) == int(turns.sum()) + N  # and one at the start of each
    assert int(stats.made) % lanes == 0
    assert (int(stats.made) == int(stats.needed)) == (lanes == 1)


def test_layout_is_explained() -> None:
    (reached,) = explained(bk.Continuous(4)(_walk), *_arguments())
    assert reached.layout == "4 lanes kept busy"
    assert reached.at_once == 4
    assert reached.note.startswith("pauses at _loglikelihood; ")


def test_unused_calls_are_eliminated() -> None:
    double = bk.expensive(lambda x: 2.0 * x)

    def task(n: Any) -> Any:
        def turn(carry: Any) -> Any:
            i, x, unused = carry
            return i + 1, x + 1.0, double(x) + unused

        return jax.lax.while_loop(lambda c: c[0] < n, turn, (0, 0.0, 0.0))[:2]

    n = jnp.arange(7)
    found, stats = bk.Continuous(2).with_stats(task)(n)
    assert_same(found, jax.vmap(task)(n))
    # Without calls, lanes pause at the turns of the loop.
    assert int(stats.needed) >= int(n.sum())


def test_rows_of_a_scan_are_kept_in_later_loops() -> None:
    """A lane in the loop does not store rows when others do, in their scans.

    The carry of the loop has the slot from which the rows are stored.
    """
    add = bk.expensive(lambda x: x + 1.0)

    def task(n: Any) -> Any:
        last, rows = jax.lax.scan(lambda c, _: (add(c),) * 2, n, length=3)
        return rows, jax.lax.while_loop(lambda c: c < 4 * n, add, last)

    n = jnp.arange(1.0, 8.0)
    assert_same(jax.jit(bk.Continuous(2)(task))(n), jax.jit(jax.vmap(task))(n), ulps=0)


def test_rows_of_a_scan_may_be_results_and_read_by_the_task() -> None:
    add = bk.expensive(lambda x: x + 1.0)

    def task(n: Any) -> Any:
        _, rows = jax.lax.scan(lambda c, _: (add(c),) * 2, n, length=3)
        total = jax.lax.while_loop(lambda c: c < 20, add, jnp.sum(rows))
        return rows, total

    n = jnp.arange(1.0, 8.0)
    assert_same(jax.jit(bk.Continuous(2)(task))(n), jax.jit(jax.vmap(task))(n), ulps=0)


def test_data_is_never_stored_per_lane() -> None:
    product = bk.expensive(lambda x, data: x * data[-1])

    def run(n: Any, one: Any, other: Any) -> Any:
        def task(n: Any) -> Any:
            def loop(data: Any, x: Any, end: Any) -> Any:
                turn = lambda x: x + 1 + 1e-6 * product(x, data)
                return jax.lax.while_loop(lambda x: x < end, turn, x)

            return loop(other, loop(one, jnp.float32(0), n), 2 * n)

        return bk.Continuous(8)(task)(n)

    data = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    n = jax.ShapeDtypeStruct((20,), jnp.float32)
    assert bk.memory(jax.jit(run), n, data, data).temporary < 10_000


def _five_loops(key: Any) -> Any:
    grow = bk.expensive(lambda x: (3.0 * x + 1.0) % 64.0)

    def turn(carry: Any) -> Any:
        i, x = carry
        for k in range(5):
            m = jax.random.randint(jax.random.fold_in(key, 5 * i + k), (), 0, 9)
            inner = lambda c: (c[0] + 1, grow(c[1]))
            _, x = jax.lax.while_loop(lambda c, m=m: c[0] < m, inner, (0, x))
        return i + 1, x

    return jax.lax.while_loop(lambda c: c[0] < 4, turn, (0, 1.0))[1]


KEYS = jax.random.split(jax.random.key(0), 400)


@functools.cache
def _five_loops_under_vmap() -> Any:
    return jax.jit(jax.vmap(_five_loops))(KEYS)


@pytest.mark.parametrize("lanes", [16, 32])
def test_held_lanes_leave_most_evaluations_needed(lanes: int) -> None:
    """Lanes are held outside of the innermost loops, but never many of them."""
    found, stats = jax.jit(bk.Continuous(lanes).with_stats(_five_loops))(KEYS)
    assert_same(found, _five_loops_under_vmap(), ulps=0)
    assert float(stats.utilisation) > 0.8


def test_marked_calls_in_a_linear_solver_are_no_pauses() -> None:
    """A lane cannot pause inside the solver, so it pauses at the other function."""
    product = bk.expensive(lambda x: 2.0 * x + jnp.eye(3) @ x)

    @bk.expensive
    def small(x: Any) -> Any:
        return x + 1.0

    def task(n: Any) -> Any:
        def turn(carry: Any) -> Any:
            x, _ = jax.scipy.sparse.linalg.cg(product, carry[1], maxiter=2)
            return carry[0] + 1, small(x)

        start = (0, jnp.ones(3))
        return jax.lax.while_loop(lambda c: c[0] < n, turn, start)[1]

    n = jnp.arange(9)
    (reached,) = explained(bk.Continuous(4)(task), n)
    assert reached.note.startswith("pauses at small; ")
    assert jnp.allclose(bk.Continuous(4)(task)(n), jax.vmap(task)(n))
