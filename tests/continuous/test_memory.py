"""What a lane remembers: no copy of what is closed over, nothing that is recomputed."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import counted, explained, temp_bytes


SIDE = 256
BYTES = 4 * SIDE * SIDE
MATRIX = np.eye(SIDE, dtype=np.float32) / 2


def _climb(loglikelihood: Any, x: Any) -> Any:
    def turn(carry: Any) -> Any:
        turns, x = carry
        value, grad = jax.value_and_grad(loglikelihood)(x)
        return turns + 1, x - 0.1 * grad * jnp.sign(value)

    return jax.lax.while_loop(lambda c: c[0] < c[1][0], turn, (0, x))


def _remembered(batched: Any, *args: Any) -> int:
    """The bytes that a lane remembers from one evaluation to the next."""
    (reached,) = explained(batched, *args)
    match = re.search(r"(\d+) B remembered per lane", reached.note)
    assert match is not None
    return int(match.group(1))


@pytest.mark.parametrize("where", ["function", "task", "argument"])
def test_closed_over_arrays_are_not_copied(where: str) -> None:
    """A large array, closed over by the function or handed to it by the task."""
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
def test_loops_that_pass_an_array_on_do_not_copy_it(marked: bool) -> None:
    """Also one that is carried through all turns without a change."""

    def run(x: Any, matrix: Any) -> Any:
        def task(x: Any) -> Any:
            apply = lambda x, matrix: jnp.tanh(matrix @ x)
            apply = bk.expensive(apply) if marked else apply

            def turn(carry: Any) -> Any:
                turns, matrix, x = carry
                # JAX sees through a loop that passes an array on, but not through this.
                keep = jax.checkpoint(lambda x, matrix: (apply(x, matrix), matrix))
                x, matrix = keep(x, matrix) if marked else (apply(x, matrix), matrix)
                return turns + 1, matrix, x

            carry = (0, matrix, x)
            out = jax.lax.while_loop(lambda c: c[0] < x[0], turn, carry)
            return out[0], out[2]

        return bk.Continuous(8)(task)(x)

    starts = np.arange(16 * SIDE, dtype=np.float32).reshape(16, SIDE)
    assert _remembered(run, starts, MATRIX) < BYTES / 10


def test_what_a_gradient_needs_is_not_remembered() -> None:
    """The way there and the way back are one evaluation; between them are residuals."""
    wide = bk.expensive(lambda x: jnp.sum(jnp.sin(jnp.outer(x, jnp.arange(4096.0)))))
    starts = np.ones((8, 2), np.float32)
    task = lambda x: _climb(wide, x)
    assert _remembered(bk.Continuous(4)(task), starts) < 4096


def test_values_that_nobody_reads_again_are_not_remembered() -> None:
    """Two numbers live across a pause, whatever a turn computes in between."""
    double = bk.expensive(lambda x: 2 * x)

    def task(x: Any) -> Any:
        def turn(carry: Any) -> Any:
            turns, x, _ = carry
            wide = jnp.sum(jnp.sin(jnp.outer(jnp.arange(500.0), jnp.arange(9.0)) * x))
            return turns + 1, double(x + wide), jnp.full(700, wide)

        carry = (0, x, jnp.zeros(700))
        turns, x, _ = jax.lax.while_loop(lambda c: c[0] < x, turn, carry)
        return turns, x

    assert _remembered(bk.Continuous(4)(task), np.ones(8, np.float32)) < 100


@pytest.mark.parametrize("tasks", [0, 1, 3, 8, 13])
@pytest.mark.parametrize("marked", [True, False])
def test_traced_once(tasks: int, marked: bool) -> None:
    def value(x: Any) -> Any:
        return jnp.sum(x**2)

    def task(x: Any) -> Any:
        f = bk.expensive(value) if marked else value
        return jax.lax.while_loop(lambda x: f(x) > 1, lambda x: x / 2, x)

    fun, traces = counted(task)
    batched = bk.Continuous(3)(eqx.debug.assert_max_traces(fun, max_traces=1))
    jax.make_jaxpr(batched)(np.ones((tasks, 2), np.float32))
    assert len(traces) == 1


def test_expensive_function_is_compiled_once_for_all_places() -> None:
    """However often a task calls it: one evaluation in the program."""

    @bk.expensive
    def value(x: Any) -> Any:
        return jnp.sum(jnp.linalg.cholesky(jnp.eye(3) + x**2))

    def search(x: Any) -> Any:
        return jax.lax.while_loop(lambda x: value(x) > 4, lambda x: x / 2, x)

    def task(x: Any) -> Any:
        x = jax.lax.cond(value(x) > 5, search, lambda x: search(x + value(x)), x)
        return search(x), value(x)

    def factorisations(lanes: int) -> int:
        batched = jax.jit(bk.Continuous(lanes)(task))
        text = batched.lower(np.arange(1.0, 7.0)).as_text()
        return len(re.findall(r"@lapack_spotrf\w*\(", text))

    assert factorisations(3) == 1
