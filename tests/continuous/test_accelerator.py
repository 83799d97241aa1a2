"""The program that lanes run on an accelerator, run on a CPU: the same numbers."""

from collections.abc import Callable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.continuous import _lane_loop

from ..helpers import assert_close, primitives


LANES = 4


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def accelerator(cpu: Any, accelerator: Callable[..., Any], *operands: Any) -> Any:
        del cpu
        return accelerator(*operands)

    monkeypatch.setattr(_lane_loop, "by_platform", accelerator)


def nested_step(batcher: bk.AbstractBatcher) -> Any:
    api = bk.rebuild_sampler(blackjax.nss, batcher={"step": batcher})
    algorithm = api(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, -jnp.inf),
        loglikelihood_fn=lambda x: -0.5 * jnp.sum((x / 0.3) ** 2),
        num_inner_steps=3,
        num_delete=10,
    )
    positions = jax.random.uniform(jax.random.key(0), (20, 2), minval=-1, maxval=1)
    state = jax.jit(algorithm.init)(positions)
    return jax.jit(algorithm.step)(jax.random.key(1), state)


def test_nested_step_is_that_of_vmap() -> None:
    # Another program than that of `jax.vmap`, which XLA may round otherwise.
    assert_close(nested_step(bk.Continuous(LANES)), nested_step(bk.Vmap()))


def test_results_of_each_type_reach_their_task() -> None:
    log = bk.expensive(lambda x: jnp.log1p(x))

    def task(key: Any, turns: Any) -> Any:
        def turn(carry: Any) -> Any:
            i, x, key = carry
            key, step = jax.random.split(key)
            return i + 1, log(x) + jax.random.uniform(step), key

        def row(x: Any, i: Any) -> Any:
            return log(x), (x > 0.5, i, jnp.stack([x, -x]), x.astype(jnp.float16))

        start = jnp.zeros((), jnp.int32), jnp.ones(()), key
        i, x, key = jax.lax.while_loop(lambda c: c[0] < turns, turn, start)
        x, rows = jax.lax.scan(row, x, jnp.arange(3))
        return {"i": i, "x": x, "key": key, "rows": rows, "large": jnp.full(99, x)}

    keys = jax.random.split(jax.random.key(0), 9)
    turns = np.array([3, 0, 7, 1, 1, 12, 2, 5, 0], np.int32)
    found, stats = jax.jit(bk.Continuous(LANES).with_stats(task))(keys, turns)
    expected = jax.jit(jax.vmap(task))(keys, turns)
    key_data = lambda tree: {**tree, "key": jax.random.key_data(tree["key"])}
    assert_close(key_data(found), key_data(expected))
    assert int(stats.needed) == turns.sum() + 3 * len(turns)


def test_error_of_one_task_is_raised_and_no_other() -> None:
    def task(x: Any) -> Any:
        turn = lambda x: eqx.error_if(x / 2, x <= 1, "the task is done")
        return jax.lax.while_loop(lambda x: x > 1, turn, x)

    numbers = np.array([5, 1000, 3, 1, 70, 2, 9], np.float32)
    found = eqx.filter_jit(bk.Continuous(LANES)(task))(numbers)
    np.testing.assert_allclose(found, [task(x) for x in numbers])


def test_cheap_call_is_made_without_a_conditional() -> None:
    square = bk.expensive(lambda x: x * x)

    def task(x: Any) -> Any:
        turn = lambda c: (c[0] + 1, square(c[1]))
        return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, x))[1]

    program = jax.jit(bk.Continuous(LANES)(task)).lower(np.ones(9, np.float32))
    # XLA removes those whose predicate is a constant.
    assert " conditional(" not in (program.compile().as_text() or "")
    assert "while" in primitives(bk.Continuous(LANES)(task), np.ones(9, np.float32))
