"""Memory: what a lane stores, what is not copied, and what is compiled once."""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import counted, explained, primitives, temp_bytes


SIDE = 256
BYTES = 4 * SIDE * SIDE
MATRIX = np.eye(SIDE, dtype=np.float32) / 2


def _climb(loglikelihood: Any, x: Any) -> Any:
    def turn(carry: Any) -> Any:
        turns, x = carry
        value, grad = jax.value_and_grad(loglikelihood)(x)
        return turns + 1, x - 0.1 * grad * jnp.sign(value)

    return jax.lax.while_loop(lambda c: c[0] < c[1][0], turn, (0, x))


def _stored(batched: Any, *args: Any) -> int:
    """Return the bytes that a lane stores between two evaluations."""
    (reached,) = explained(batched, *args)
    match = re.search(r"(\d+) B stored per lane", reached.note)
    assert match is not None
    return int(match.group(1))


@pytest.mark.parametrize("where", ["function", "task", "argument"])
def test_closed_over_arrays_are_not_copied(where: str) -> None:
    """Neither if the function closes over an array nor if the task passes it."""
    starts = np.ones((64, SIDE), np.float32)

    def task(x: Any, matrix: Any) -> Any:
        if where == "function":
            return _climb(bk.expensive(lambda x: jnp.sum(matrix @ x)), x)
        product = bk.expensive(lambda x, matrix: jnp.sum(matrix @ x))
        return _climb(lambda x: product(x, matrix), x)

    def used(lanes: int) -> int:
        batcher = bk.Continuous(lanes)
        if where == "argument":
            return temp_bytes(batcher(task, (0, None)), starts, MATRIX)
        run = lambda x, matrix: batcher(lambda x: task(x, matrix))(x)
        return temp_bytes(run, starts, MATRIX)

    grown = used(32) - used(2)
    assert grown < 30 * BYTES / 10  # a copy for each lane would be 30 * BYTES


@pytest.mark.parametrize("marked", [True, False])
def test_unchanged_carries_are_not_copied(marked: bool) -> None:
    """A loop that passes an array on does not make it varying."""

    def run(x: Any, matrix: Any) -> Any:
        def task(x: Any) -> Any:
            apply = lambda x, matrix: jnp.tanh(matrix @ x)
            apply = bk.expensive(apply) if marked else apply

            def turn(carry: Any) -> Any:
                turns, matrix, x = carry
                # JAX itself hoists an array that a loop only passes on, but not one
                # that passes through a call.
                keep = jax.checkpoint(lambda x, matrix: (apply(x, matrix), matrix))
                x, matrix = keep(x, matrix) if marked else (apply(x, matrix), matrix)
                return turns + 1, matrix, x

            carry = (0, matrix, x)
            out = jax.lax.while_loop(lambda c: c[0] < x[0], turn, carry)
            return out[0], out[2]

        return bk.Continuous(8)(task)(x)

    starts = np.arange(16 * SIDE, dtype=np.float32).reshape(16, SIDE)
    assert _stored(run, starts, MATRIX) < BYTES / 10


def test_residuals_of_a_gradient_are_not_stored() -> None:
    """The forward and the backward pass are one evaluation."""
    wide = bk.expensive(lambda x: jnp.sum(jnp.sin(jnp.outer(x, jnp.arange(4096.0)))))
    starts = np.ones((8, 2), np.float32)
    task = lambda x: _climb(wide, x)
    assert _stored(bk.Continuous(4)(task), starts) < 4096


def test_dead_values_are_not_stored() -> None:
    """Two numbers are live across a pause, whatever a turn computes in between."""
    double = bk.expensive(lambda x: 2 * x)

    def task(x: Any) -> Any:
        def turn(carry: Any) -> Any:
            turns, x, _ = carry
            wide = jnp.sum(jnp.sin(jnp.outer(jnp.arange(500.0), jnp.arange(9.0)) * x))
            return turns + 1, double(x + wide), jnp.full(700, wide)

        carry = (0, x, jnp.zeros(700))
        turns, x, _ = jax.lax.while_loop(lambda c: c[0] < x, turn, carry)
        return turns, x

    assert _stored(bk.Continuous(4)(task), np.ones(8, np.float32)) < 100


@pytest.mark.parametrize("tasks", [0, 1, 3, 8, 13])
@pytest.mark.parametrize("marked", [True, False])
def test_task_is_traced_once(tasks: int, marked: bool) -> None:
    def value(x: Any) -> Any:
        return jnp.sum(x**2)

    def task(x: Any) -> Any:
        f = bk.expensive(value) if marked else value
        return jax.lax.while_loop(lambda x: f(x) > 1, lambda x: x / 2, x)

    fun, traces = counted(task)
    batched = bk.Continuous(3)(eqx.debug.assert_max_traces(fun, max_traces=1))
    jax.make_jaxpr(batched)(np.ones((tasks, 2), np.float32))
    assert len(traces) == 1


@bk.expensive
def _factor(x: Any, matrix: Any) -> Any:
    return jnp.sum(jnp.linalg.cholesky(matrix + x**2))


def _value(x: Any) -> Any:
    return _factor(x, jnp.eye(3))


def _search(f: Callable[[Any], Any], x: Any) -> Any:
    return jax.lax.while_loop(lambda x: f(x) > 4, lambda x: x / 2, x)


def _branches(x: Any) -> Any:
    one = lambda x: _search(_value, x)
    other = lambda x: _search(_value, x + _value(x))
    x = jax.lax.cond(_value(x) > 5, one, other, x)
    return _search(_value, x), _value(x)


def _gradients(x: Any) -> Any:
    return _search(jax.grad(_value), _search(lambda x: jax.grad(_value)(x), x))


def _on_data(size: int, factor: float) -> Callable[[Any], Any]:
    """Make a task with two calls on data, which are computed for all tasks at once."""

    def call(factor: float, x: Any) -> Any:
        # A function of its own, so that JAX's caches do not find an earlier trace.
        data = jax.jit(lambda: jax.nn.relu(factor * jnp.eye(size)))()
        return _factor(x, data)

    def task(x: Any) -> Any:
        x = _search(functools.partial(call, 2.0), x)
        return _search(functools.partial(call, factor), x)

    return task


def _value_twice(x: Any) -> Any:
    f = bk.expensive(lambda x, y: _value(x) + y)
    return _search(lambda y: f(x, y), _search(lambda x: f(x, x), x))


# Tasks, and how many computations all of their calls are.
CALLS: dict[Callable[[Any], Any], int] = {
    _branches: 1,
    _gradients: 1,
    _on_data(3, 3.0): 1,
    _on_data(9, 3.0): 2,  # too large to be copied for each lane
    _on_data(9, 2.0): 1,
    _value_twice: 2,
}


def test_equal_calls_are_compiled_once() -> None:
    x = np.arange(1, 7, dtype=np.float32)

    def factorisations(task: Callable[[Any], Any]) -> int:
        return primitives(bk.Continuous(3)(task), x).count("cholesky")

    once = factorisations(lambda x: _search(_value, x))
    assert [factorisations(x) // once for x in CALLS] == list(CALLS.values())
