"""Runs of `blackjax.nss` on problems with exact answers."""

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.slice import SliceInfo
from blackjax.ns.from_mcmc import ConstrainedMCMCInfo

import batchkit as bk
from batchkit.nested import chain_counts, diagnose, evaluations_of, finalise


def run(
    log_likelihood: Callable[[jax.Array], Any],
    dim: int,
    half_width: float,
    num_inner_steps: int,
    num_live: int = 150,
    num_delete: int = 30,
    seed: int = 0,
) -> bk.NestedRun:
    """Until the live points hold a thousandth, by the rough running integrator."""

    def log_prior(x: jax.Array) -> jax.Array:
        inside = jnp.all(jnp.abs(x["x"]) < half_width)
        return jnp.where(inside, -dim * jnp.log(2 * half_width), -jnp.inf)

    algorithm = blackjax.nss(
        logprior_fn=log_prior,
        loglikelihood_fn=lambda x: log_likelihood(x["x"]),
        num_inner_steps=num_inner_steps,
        num_delete=num_delete,
    )
    key, prior_key, volume_key = jax.random.split(jax.random.key(seed), 3)
    shape, ends = (num_live, dim), (-half_width, half_width)
    positions = jax.random.uniform(prior_key, shape, minval=ends[0], maxval=ends[1])
    state: Any = jax.jit(algorithm.init)({"x": positions})
    step = jax.jit(algorithm.step)
    infos: list[Any] = []
    evaluations, counts = num_live, None
    while state.integrator.logZ_live - state.integrator.logZ > np.log(1e-3):
        state, info = step(jax.random.fold_in(key, len(infos)), state)
        infos.append(info)
        made, moved = evaluations_of(info.update_info), chain_counts(info.update_info)
        assert made is not None
        assert moved is not None
        evaluations += int(made)
        counts = jax.tree.map(jnp.add, counts, moved) if counts else moved
    dead = finalise(state, infos)
    return bk.NestedRun(
        dead,
        num_steps=len(infos),
        num_evaluations=evaluations,
        converged=True,
        stop_reason="the live points hold a thousandth",
        key=volume_key,
        warnings=diagnose(
            dead,
            num_inner_steps=num_inner_steps,
            dim=dim,
            num_delete=num_delete,
            chains=counts,
        ),
    )


def normal(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2) - 0.5 * len(x) * jnp.log(2 * jnp.pi)


def test_gaussian() -> None:
    found = run(normal, 5, 5.0, num_inner_steps=15)
    exact = -5 * np.log(10)
    assert abs(found.log_evidence - exact) < 3 * found.log_evidence_err
    assert found.log_evidence_err < 0.3
    # H = -log Z - d/2 log(2 pi e) for a density over a wide flat prior.
    information = 5 * np.log(10) - 2.5 * np.log(2 * np.pi * np.e)
    assert found.information == pytest.approx(information, abs=0.6)
    assert found.warnings == ()
    assert len(found.dead) == 150 + 30 * found.num_steps
    summary = found.summary()
    error = 3 / np.sqrt(found.ess)
    assert list(summary.values) == [f"x[{i}]" for i in range(5)]
    for row in summary.values.values():
        assert abs(row["mean"]) < error
        assert row["std"] == pytest.approx(1.0, abs=error)
        assert row["95 %"] == pytest.approx(1.645, abs=3 * error)
    draws = found.posterior(jax.random.key(3), 500)["x"]
    assert draws.shape == (500, 5)
    assert np.abs(np.mean(draws, axis=0)).max() < error + 0.2


def test_zero_over_half_of_the_prior() -> None:
    found = run(
        lambda x: jnp.where(x[0] > 0, normal(x), -jnp.inf), 2, 5.0, num_inner_steps=10
    )
    assert abs(found.log_evidence - np.log(0.005)) < 3 * found.log_evidence_err
    assert np.sum(np.isneginf(found.dead.loglikelihood)) > 50
    assert found.warnings == ()
    assert found.posterior(jax.random.key(0), 300)["x"][:, 0].min() > 0


def test_constant_outside_a_disk() -> None:
    radius, height = 0.5, 8.0

    def log_likelihood(x: jax.Array) -> jax.Array:
        left = radius**2 - jnp.sum(x**2)
        return jnp.where(left > 0, 1 + height * left, 0.0)

    found = run(log_likelihood, 2, 1.0, num_inner_steps=10)
    disk = np.pi * radius**2 / 4
    inside = np.pi * np.e / 4 * np.expm1(height * radius**2) / height
    exact = np.log(1 - disk + inside)
    assert abs(found.log_evidence - exact) < 3 * found.log_evidence_err
    assert [warning.name for warning in found.warnings] == ["plateaus"]


def test_a_flat_top() -> None:
    """Upstream goes on with copies once all live points are at the highest value."""

    def log_likelihood(x: jax.Array) -> jax.Array:
        return jnp.where(jnp.sum(x**2) < 0.09, 5.0, -10 * jnp.sum(x**2))

    found = run(log_likelihood, 2, 1.0, num_inner_steps=10)
    grid = (np.arange(2000) + 0.5) / 1000 - 1
    square = grid[:, None] ** 2 + grid**2
    exact = np.log(np.mean(np.exp(np.where(square < 0.09, 5.0, -10 * square))))
    assert abs(found.log_evidence - exact) < 3 * found.log_evidence_err
    assert len(found.dead) < 150 + 30 * found.num_steps


@pytest.mark.parametrize("name", ["nss", "nsswig"])
def test_evaluations_are_counted(name: str) -> None:
    """As often as a likelihood of one lane has called back."""
    calls: list[int] = []

    def log_likelihood(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: calls.append(1), x)
        return -jnp.sum(x**2)

    algorithm = getattr(blackjax, name)(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=log_likelihood,
        num_inner_steps=7,
    )
    state = jax.jit(algorithm.init)(jax.random.normal(jax.random.key(0), (20, 3)))
    jax.effects_barrier()
    calls.clear()
    _, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    jax.effects_barrier()
    made = jax.jit(evaluations_of)(info.update_info)
    assert made == len(calls)
    counts = jax.jit(chain_counts)(info.update_info)
    assert (counts.chains, counts.exhausted) == (1, 0)


def numbers(counts: Any) -> tuple[int, int]:
    assert counts.distances.shape == counts.products.shape == (0,)
    return int(counts.chains), int(counts.exhausted)


def test_other_inner_kernels() -> None:
    accepted = jnp.array([[True, False], [False, False], [True, True]])
    moves = ConstrainedMCMCInfo((), accepted)  # pyright: ignore[reportArgumentType]
    assert evaluations_of(moves) == 6
    assert numbers(chain_counts(moves)) == (3, 0)
    one = jnp.ones((3, 2), int)
    slices = SliceInfo(accepted, 0 * one, one, one, one)
    assert evaluations_of(slices) == 6 * 3
    assert numbers(chain_counts(slices)) == (3, 2)
    assert evaluations_of(()) is None
    assert chain_counts(()) is None
