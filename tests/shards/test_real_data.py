"""Real data: exact, and by shards, against chains over all of them."""

import functools
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from statsmodels import datasets

import batchkit as bk

from ..helpers import mesh


pytestmark = pytest.mark.slow


def logprior(slopes: Any) -> Any:
    return -0.5 * jnp.sum(slopes**2) / 100


def poisson(slopes: Any, rows: Any) -> Any:
    rate = rows["x"] @ slopes
    return jnp.sum(rows["y"] * rate - jnp.exp(rate))


def logistic(slopes: Any, rows: Any) -> Any:
    rate = rows["x"] @ slopes
    return jnp.sum(rows["y"] * rate - jnp.logaddexp(0.0, rate))


@functools.cache
def problem(name: str) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    """The likelihood, the data and the starts."""
    table = getattr(datasets, name).load_pandas()
    x, y = table.exog.to_numpy(float), table.endog.to_numpy(float)
    x = (x - np.mean(x, axis=0)) / np.std(x, axis=0)
    data = {"x": np.column_stack([np.ones(len(x)), x]), "y": y}
    if name == "fair":
        data["y"] = (y > 0).astype(float)
    starts = 0.1 * np.random.default_rng(0).normal(size=(4, data["x"].shape[1]))
    return logistic if name == "fair" else poisson, data, starts


def whole(name: str) -> Any:
    likelihood, data, _ = problem(name)
    rows = jax.tree.map(jnp.asarray, data)
    return lambda slopes: logprior(slopes) + likelihood(slopes, rows)


@functools.cache
def moments(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of chains over all data."""
    starts = problem(name)[2]
    run = bk.run_chains(
        blackjax.nuts, whole(name), jax.random.key(1), starts, num_samples=1500
    )
    assert run.warnings == ()
    return np.mean(run.samples, (0, 1)), np.std(run.samples, (0, 1))


def check(name: str, samples: np.ndarray) -> None:
    mean, width = moments(name)
    away = (np.mean(samples, (0, 1)) - mean) / width
    np.testing.assert_allclose(away, 0, atol=0.1)
    np.testing.assert_allclose(np.std(samples, (0, 1)) / width, 1, atol=0.1)


both = pytest.mark.parametrize("name", ["fair", "randhie"])


@both
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_logdensity_over_devices_is_that_of_all_data(
    name: str, devices: int
) -> None:
    with jax.enable_x64(True):
        likelihood, data, starts = problem(name)
        on_devices = bk.ShardedData(data, mesh(devices))
        sharded = bk.sharded_logdensity(logprior, likelihood, on_devices)
        found, expected = (
            jax.jit(jax.vmap(jax.value_and_grad(f)))(starts)
            for f in (sharded, whole(name))
        )
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
        scale = float(np.max(np.abs(expected[1])))
        np.testing.assert_allclose(found[1], expected[1], atol=1e-12 * scale)


@both
def test_chains_over_devices_have_the_moments_of_all_data(name: str) -> None:
    with jax.enable_x64(True):
        likelihood, data, starts = problem(name)
        sharded = bk.sharded_logdensity(
            logprior, likelihood, bk.ShardedData(data, mesh(2))
        )
        run = bk.run_chains(blackjax.nuts, sharded, jax.random.key(2), starts)
        check(name, run.samples)


@both
@pytest.mark.parametrize("shards", [2, 4, 8, 16])
def test_combined_shards_have_the_moments_of_all_data(name: str, shards: int) -> None:
    with jax.enable_x64(True):
        likelihood, data, starts = problem(name)
        run = bk.run_shards(
            logprior,
            likelihood,
            data,
            jax.random.key(2),
            num_shards=shards,
            positions=starts,
            batcher=bk.Chunked(8),
        )
        check(name, run.samples)
        # Counts of visits vary more than a Poisson distribution does.
        expected = {"fair": "reliable", "randhie": "unreliable"}
        assert run.verdict == expected[name]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shards_over_devices_have_the_moments_of_all_data(devices: int) -> None:
    with jax.enable_x64(True):
        likelihood, data, starts = problem("fair")
        run = bk.run_shards(
            logprior,
            likelihood,
            data,
            jax.random.key(3),
            num_shards=4,
            positions=starts,
            batcher=bk.Sharded(mesh(devices)),
        )
        check("fair", run.samples)
