"""Scheduling of whole programs: lanes are refilled, and evaluations are counted."""

import functools
import heapq
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import batchkit as bk

from ..helpers import assert_same


TASKS = 9


def rounds(lengths: Sequence[int], lanes: int) -> int:
    """Simulate lanes that take the next task at once; return the turns they need."""
    free = [0] * lanes
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


@bk.expensive
def _double(x: Any) -> Any:
    return 2.0 * x


def _calls(length: Any, x: Any) -> Any:
    """Make `length` calls, the first two of them in a loop of their own."""
    start = (0, x)
    goes_on = lambda limit: lambda c: c[0] < limit
    turn = lambda c: (c[0] + 1, jnp.mod(_double(c[1]), 11.0))
    first = jax.lax.while_loop(goes_on(jnp.minimum(length, 2)), turn, start)
    return jax.lax.while_loop(goes_on(length), turn, first)


def _expected(lengths: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = x.copy()
    for i, length in enumerate(lengths):
        for _ in range(length):
            found[i] = 2 * found[i] % 11
    return lengths, found


@functools.cache
def _compiled(lanes: int, tasks: int) -> Callable[..., Any]:
    del tasks  # another program for another number
    return jax.jit(bk.Continuous(lanes).with_stats(_calls))


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=TASKS, max_size=TASKS),
    lanes=st.sampled_from([1, 2, 4, TASKS + 5]),
)
def test_no_lane_is_idle_while_tasks_are_left(lengths: list[int], lanes: int) -> None:
    """There are exactly as many calls as in the simulation."""
    given_lengths = np.array(lengths, np.int32)
    x = np.arange(TASKS, dtype=np.float32)
    (turns, found), stats = _compiled(lanes, TASKS)(given_lengths, x)
    expected_turns, expected = _expected(given_lengths, x)
    np.testing.assert_array_equal(turns, expected_turns)
    np.testing.assert_array_equal(found, expected)
    used = min(lanes, TASKS)
    assert int(stats.needed) == sum(lengths)
    assert int(stats.made) == used * rounds(lengths, used)
    busy = sum(lengths) / max(int(stats.made), 1) if sum(lengths) else 1.0
    assert float(stats.utilisation) == pytest.approx(busy)


@pytest.mark.parametrize("lanes", [1, 3, TASKS])
def test_all_evaluations_of_equally_long_tasks_are_needed(lanes: int) -> None:
    lengths = np.full(TASKS, 5, np.int32)
    _, stats = _compiled(lanes, TASKS)(lengths, np.ones(TASKS, np.float32))
    assert int(stats.made) == int(stats.needed) == 5 * TASKS
    assert float(stats.utilisation) == 1.0


def test_one_task_is_counted() -> None:
    _, stats = _compiled(4, 1)(np.array([7], np.int32), np.ones(1, np.float32))
    assert (int(stats.made), int(stats.needed)) == (7, 7)


def test_no_tasks() -> None:
    out, stats = _compiled(4, 0)(np.zeros(0, np.int32), np.ones(0, np.float32))
    assert out[1].shape == (0,)
    assert (int(stats.made), int(stats.needed)) == (0, 0)
    assert float(stats.utilisation) == 1.0


@bk.expensive
def _cube(x: Any) -> Any:
    return x * x * x


def _value_and_gradient(length: Any, x: Any) -> Any:
    def turn(carry: Any) -> Any:
        count, x = carry
        value, grad = jax.value_and_grad(lambda x: 3 * _cube(x))(x)
        return count + 1, jnp.mod(value + grad, 5.0)

    return jax.lax.while_loop(lambda c: c[0] < length, turn, (0, x))


def _in_two_places(length: Any, x: Any) -> Any:
    """Call the function in both branches."""

    def turn(carry: Any) -> Any:
        count, x = carry
        x = jax.lax.cond(x > 4, lambda x: _double(x) + 1, lambda x: _double(x + 2), x)
        return count + 1, jnp.mod(x, 11.0)

    return jax.lax.while_loop(lambda c: c[0] < length, turn, (0, x))


@pytest.mark.parametrize("task", [_value_and_gradient, _in_two_places])
def test_gradients_and_branches_share_one_evaluation(task: Any) -> None:
    lengths = np.array([1, 6, 2, 3, 0, 3, 1, 4, 2], np.int32)
    x = np.arange(TASKS, dtype=np.float32)
    out, stats = jax.jit(bk.Continuous(3).with_stats(task))(lengths, x)
    assert_same(out, jax.jit(jax.vmap(task))(lengths, x), ulps=0)
    assert int(stats.needed) == lengths.sum()
    assert int(stats.made) == 3 * rounds(lengths.tolist(), 3)


def test_calls_of_different_kinds_are_made_one_kind_at_a_time() -> None:
    """A value and a gradient are two kinds of call."""

    square = bk.expensive(lambda x: x * x)

    def task(length: Any, x: Any) -> Any:
        def turn(carry: Any) -> Any:
            count, x = carry
            x = jax.lax.cond(count % 2 == 0, square, jax.grad(square), x)
            return count + 1, jnp.mod(x + count, 11.0)

        return jax.lax.while_loop(lambda c: c[0] < length, turn, (0, x))

    lengths = np.array([1, 6, 2, 3, 0, 3, 1, 4, 2], np.int32)
    x = np.arange(TASKS, dtype=np.float32)
    out, stats = jax.jit(bk.Continuous(3).with_stats(task))(lengths, x)
    assert_same(out, jax.jit(jax.vmap(task))(lengths, x), ulps=0)
    assert int(stats.needed) == lengths.sum()
    assert int(stats.made) % 3 == 0
    assert lengths.sum() <= int(stats.made) <= 3 * lengths.sum()


@pytest.mark.parametrize("tasks", [20, 21])
def test_counts_of_tasks_that_run_as_chunked(tasks: int) -> None:
    """Chunks are balanced: 20 tasks on 8 lanes are three chunks of seven."""

    def task(x: Any) -> Any:
        twice = lambda x, _: (_double(_double(x)), None)
        turn = lambda x, _: (jax.lax.scan(twice, _double(x), length=2)[0], None)
        return jax.lax.scan(turn, _double(x), length=3)[0]

    x = np.ones(tasks, np.float32)
    out, stats = jax.jit(bk.Continuous(8).with_stats(task))(x)
    np.testing.assert_array_equal(out, np.full(tasks, 2.0**16))
    assert int(stats.needed) == 16 * tasks
    assert int(stats.made) == 16 * 21


def test_long_tasks_are_not_lost() -> None:
    """Each task returns its length: a batch that favours short ones would be biased."""

    def task(i: Any, key: Any) -> Any:
        def turn(carry: Any) -> Any:
            turns, key = carry
            key, sub = jax.random.split(key)
            del sub
            return _double(turns + 1) / 2, key

        def goes_on(carry: Any) -> Any:
            return jax.random.uniform(jax.random.fold_in(carry[1], 1)) > 0.15

        turns, _ = jax.lax.while_loop(goes_on, turn, (0.0, key))
        return i, turns

    tasks = 150
    keys = jax.random.split(jax.random.key(8), tasks)
    i = np.arange(tasks)
    expected = jax.jit(jax.vmap(task))(i, keys)
    found, stats = jax.jit(bk.Continuous(7).with_stats(task))(i, keys)
    assert_same(found, expected, ulps=0)
    np.testing.assert_array_equal(found[0], i)
    # The test proves something only if lengths differ by far.
    turns = np.asarray(expected[1])
    assert turns.min() == 0
    assert turns.max() > 4 * turns.mean()
    assert int(stats.needed) == turns.sum()
    assert float(found[1].mean()) == float(expected[1].mean())


@pytest.mark.parametrize("marked", [True, False])
def test_longest_tasks_first_and_last(marked: bool) -> None:
    """The first task ends late, and the last one ends alone."""

    def task(i: Any, length: Any) -> Any:
        add = bk.expensive(lambda x: x + 1) if marked else lambda x: x + 1
        count = jax.lax.while_loop(lambda c: c < length, add, jnp.zeros((), int))
        return i * 100 + count

    lengths = np.array([30, 1, 0, 2, 0, 0, 1, 3, 40])
    found = jax.jit(bk.Continuous(2)(task))(np.arange(TASKS), lengths)
    np.testing.assert_array_equal(found, np.arange(TASKS) * 100 + lengths)
