"""Models for which combining shards fails, and the verdict on them."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import t as student

import batchkit as bk

from ..helpers import shard_samples


GROUPS, ROWS, BATCHES = 8, 800, 32


def hierarchical_prior(params: Any) -> Any:
    """Of a mean, the logarithm of a width, and standardised effects of groups."""
    normals = (params["mean"] / 5, params["log_width"], params["effects"])
    return sum(-0.5 * jnp.sum(x**2) for x in normals)


def hierarchical_likelihood(params: Any, rows: Any) -> Any:
    levels = params["mean"] + jnp.exp(params["log_width"]) * params["effects"]
    return -0.5 * jnp.sum((rows["y"] - levels[rows["group"]]) ** 2)


def moments_on_a_grid(group: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Means and widths of the posterior, with effects integrated out."""
    mean = np.linspace(-4, 6, 401)[:, None]
    log_width = np.linspace(-5, 3, 401)[None]
    counts = np.bincount(group)
    log_p = -0.5 * (mean / 5) ** 2 - 0.5 * log_width**2
    for count, level in zip(counts, np.bincount(group, y) / counts, strict=True):
        variance = np.exp(2 * log_width) + 1 / count
        log_p = log_p - 0.5 * (np.log(variance) + (level - mean) ** 2 / variance)
    p = np.exp(log_p - np.max(log_p))
    p /= np.sum(p)
    found = {}
    for name, x in (("mean", mean), ("log_width", log_width)):
        center = np.sum(p * x)
        found[name] = center, np.sqrt(np.sum(p * (x - center) ** 2))
    return found


def diagonal_over_all_draws(samples: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """`E[-(x_i - mean_i) d_i log p]` and its standard error, by batch means."""
    rows = jax.tree.map(jnp.asarray, data)
    logdensity = lambda p: hierarchical_prior(p) + hierarchical_likelihood(p, rows)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
    x, slopes = (
        np.concatenate([np.reshape(y, (len(y), -1)) for y in jax.tree.leaves(tree)], 1)
        for tree in (flat, jax.vmap(jax.grad(logdensity))(flat))
    )
    products = -(x - np.mean(x, axis=0)) * slopes
    means = np.mean(products.reshape(BATCHES, -1, x.shape[1]), axis=1)
    return np.mean(means, axis=0), np.std(means, axis=0, ddof=1) / BATCHES**0.5


@pytest.mark.slow
def test_a_hierarchical_model_with_many_shards_is_unreliable() -> None:
    rng = np.random.default_rng(1)
    group = np.arange(ROWS) % GROUPS
    levels = 1.0 + 0.5 * rng.normal(size=GROUPS)
    data = {"y": levels[group] + rng.normal(size=ROWS), "group": group}
    spread = np.linspace(-1, 1, 4)
    run = bk.run_shards(
        hierarchical_prior,
        hierarchical_likelihood,
        data,
        jax.random.key(0),
        num_shards=16,
        positions={
            "mean": spread,
            "log_width": spread - 0.5,
            "effects": np.tile(spread[:, None], GROUPS),
        },
        plan=bk.SamplingPlan(300, 400),
    )
    exact = moments_on_a_grid(group, data["y"])
    combined = bk.combine_shards(shard_samples(run)).samples
    center, width = exact["log_width"]
    assert abs(np.mean(combined["log_width"]) - center) > 2 * width
    assert np.std(run.samples["mean"]) < 0.4 * exact["mean"][1]
    assert run.verdict == "unreliable"
    assert run.warnings[0].name == "integration by parts"
    # Not only because something else was found.
    names = {warning.name for warning in run.warnings}
    assert not names & {"shards disagree", "modes", "few shards", "draws not finite"}
    # All ten widths are wrong: over all draws, no diagonal is 1 within the errors that
    # one in a hundred runs would exceed. The check finds the same at few draws.
    check = run.gradient_check
    assert check is not None
    limit = student.isf(0.01 / 2 / 10, BATCHES - 1)
    diagonal, error = diagonal_over_all_draws(run.samples, data)
    assert np.all(np.abs(diagonal - 1) > limit * error)
    off = np.abs(np.diag(check.matrix) - diagonal)
    assert np.all(off < limit * np.diag(check.matrix_err))


def prior_of_either_sign(x: Any) -> Any:
    return -0.5 * x**2 / 4


def likelihood_of_either_sign(x: Any, rows: Any) -> Any:
    return -0.5 * jnp.sum((rows - x**2) ** 2)


def either_sign(**options: Any) -> bk.ShardRun:
    """A posterior with one mode at 1 and its mirror image at -1."""
    rows = np.random.default_rng(0).normal(1.0, 1.0, 200)
    return bk.run_shards(
        prior_of_either_sign,
        likelihood_of_either_sign,
        rows,
        jax.random.key(0),
        num_shards=2,
        combine="kde",
        plan=bk.SamplingPlan(150, 300),
        api=blackjax.hmc,
        num_integration_steps=5,
        **options,
    )


@pytest.mark.slow
def test_starts_from_the_prior_find_a_mode_that_starts_in_one_place_miss() -> None:
    missed = either_sign(positions=np.linspace(0.9, 1.1, 4))
    # Half of the posterior is missing, and no gradient is wrong where draws are.
    assert np.all(missed.samples > 0)
    assert missed.verdict == "reliable"
    found = either_sign(prior_sample_fn=lambda key: 2 * jax.random.normal(key))
    assert found.verdict == "unreliable"
    assert np.any(shard_samples(found) < 0)
    assert np.any(shard_samples(found) > 0)
