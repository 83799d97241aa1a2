"""A second call of `run_shards` compiles nothing, and finds what a first one does."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_same
from ..run.compilations import compilations


ROWS = np.random.default_rng(0).normal(3.0, 1.0, 40)


def logprior(mean: Any) -> Any:
    return -0.5 * mean**2 / 100


def loglikelihood(mean: Any, rows: Any) -> Any:
    return -0.5 * jnp.sum((rows - mean) ** 2)


def sample(key: Any) -> Any:
    return 3.0 + jax.random.normal(key)


def call(seed: int, rows: Any = ROWS, likelihood: Any = loglikelihood) -> bk.ShardRun:
    return bk.run_shards(
        logprior,
        likelihood,
        rows,
        jax.random.key(seed),
        num_shards=2,
        prior_sample_fn=sample,
        plan=bk.SamplingPlan(30, 20, num_chains=2),
        api=blackjax.hmc,
        num_integration_steps=2,
        max_tries=1,
        progress=False,
    )


@pytest.mark.parametrize("changed", [{}, {"rows": ROWS + 1}], ids=str)
def test_another_key_and_other_data_compile_nothing(changed: dict[str, Any]) -> None:
    call(0)
    with compilations() as names:
        second = call(1, **changed)
    assert names == []
    alone = call(1, likelihood=lambda *args: loglikelihood(*args), **changed)
    assert_same(second.shard_samples, alone.shard_samples, ulps=0)
