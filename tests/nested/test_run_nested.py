"""`run_nested` against a loop by hand, upstream's integrator, and known evidences."""

import logging
import math
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import NestedStatus, finalise
from batchkit.nested._nested_loop import ResumableNested

from ..helpers import assert_bits
from .problems import (
    Known,
    bottom,
    eggbox,
    gaussian,
    half,
    rosenbrock,
    shells,
    spike_and_slab,
)


PROBLEM = gaussian(2)


@pytest.fixture(scope="module")
def run() -> bk.NestedRun:
    return PROBLEM.run()


@pytest.fixture(scope="module")
def by_hand() -> tuple[Any, Any, list[Any]]:
    """The steps of upstream, one after the other, and the states after each."""
    algorithm = PROBLEM.algorithm(20)
    step = jax.jit(algorithm.step)
    key = jax.random.key(0)
    state = jax.jit(algorithm.init)(PROBLEM.positions(100))
    states, infos = [state], []
    for number in range(50):
        state, info = step(jax.random.fold_in(key, number), state)
        states.append(state)
        infos.append(info)
    return step, states, infos


def test_bits_are_those_of_a_loop_by_hand(run: bk.NestedRun, by_hand: Any) -> None:
    _, states, infos = by_hand
    steps = run.num_steps
    dead = finalise(states[steps], infos[:steps])
    for name in ("positions", "loglikelihood", "loglikelihood_birth", "logprior"):
        assert_bits(getattr(run.dead, name), getattr(dead, name))


def test_ends_with_the_first_step_that_meets_the_rule(
    run: bk.NestedRun, by_hand: Any
) -> None:
    shares = [
        float(jnp.exp(x.logZ_live - jnp.logaddexp(x.logZ, x.logZ_live)))
        for x in (state.integrator for state in by_hand[1])
    ]
    assert run.num_steps == next(i for i, x in enumerate(shares) if x < 1e-3)
    assert run.converged
    assert "1e-03" in run.stop_reason or "0.001" in run.stop_reason


def test_status_is_that_of_the_integrator(by_hand: Any) -> None:
    """On points without ties both compute the same sums."""
    _, states, infos = by_hand
    status = NestedStatus.first(states[0].particles.loglikelihood, 20)
    for state, info in zip(states[1:], infos, strict=True):
        status = status.after(
            jnp.sort(info.particles.loglikelihood), state.particles.loglikelihood, 7
        )
        theirs = state.integrator
        close: Any = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(status.log_volume, theirs.logX, **close)
        np.testing.assert_allclose(status.log_evidence_dead, theirs.logZ, **close)
        np.testing.assert_allclose(status.log_evidence_live, theirs.logZ_live, **close)
    assert int(status.evaluations) == 100 + 7 * len(infos)


def test_running_estimates_come_close_to_the_result(run: bk.NestedRun) -> None:
    seen: list[NestedStatus] = []
    seconds = PROBLEM.run(progress=seen.append).seconds
    last = seen[-1]
    assert last.step == run.num_steps
    assert int(last.evaluations) == run.num_evaluations
    assert abs(last.log_evidence - run.log_evidence) < 0.1
    assert last.log_evidence_err == pytest.approx(run.log_evidence_err, rel=0.2)
    assert last.remaining < 1e-3
    assert (last.num_live, last.num_delete) == (100, 20)
    efficiency = run.num_steps * 20 / int(last.evaluations)
    assert last.seconds == pytest.approx(seconds.sampling, rel=1e-6)
    speed = int(last.evaluations) / float(last.seconds)
    assert f"log-evidence {last.log_evidence:.2f} +/- " in str(last)
    assert f"efficiency {efficiency:.1%}, {speed:,.0f} likelihoods/s" in str(last)


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_the_length_of_blocks_changes_no_bit(
    run: bk.NestedRun, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    blocks = 0
    advance = ResumableNested.advance

    def counted(self: ResumableNested, *args: Any) -> int:
        nonlocal blocks
        blocks += 1
        return advance(self, *args)

    monkeypatch.setattr(ResumableNested, "advance", counted)
    monkeypatch.setattr("batchkit.run._resumable._BLOCK_SECONDS", seconds)
    other = PROBLEM.run()
    assert blocks == run.num_steps if seconds < 1 else blocks < run.num_steps / 2
    np.testing.assert_array_equal(run.dead.positions, other.dead.positions)
    assert run.log_evidence == other.log_evidence


def test_names_and_layout_are_logged_before_anything_compiles(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "batchkit")
    PROBLEM.run(batcher=bk.Chunked(7), stop=bk.MaxSteps(1))
    first = caplog.messages[0]
    for part in ("100 live points of 2", "20 replaced", "Chunked(7)", "num_delete=20"):
        assert part in first
    assert "from_mcmc" in first
    assert "15 chunks of 7 (5 repeated)" in first
    assert "compiled" not in first


def test_positions_may_be_any_pytree() -> None:
    positions = {
        "mass": jnp.linspace(0.1, 0.9, 60),
        "shear": (jax.random.uniform(jax.random.key(3), (60, 2)),),
    }
    run = bk.run_nested(
        blackjax.nss,
        lambda p: jnp.where(
            (p["mass"] > 0)
            & (p["mass"] < 1)
            & jnp.all(jnp.abs(p["shear"][0] - 0.5) < 0.5),
            0.0,
            -jnp.inf,
        ),
        lambda p: -p["mass"] - jnp.sum(p["shear"][0]),
        jax.random.key(0),
        positions,
        num_inner_steps=6,
        num_delete=10,
        progress=False,
    )
    assert set(run.summary().values) == {"mass", "shear[0][0]", "shear[0][1]"}
    exact = 3 * math.log(1 - math.exp(-1))
    assert abs(run.log_evidence - exact) < 4 * run.log_evidence_err


def test_evidence_of_nsswig() -> None:
    run = PROBLEM.run(api=blackjax.nsswig)
    assert abs(run.log_evidence - PROBLEM.log_evidence) < 3 * run.log_evidence_err


def test_evidence_information_and_moments_of_a_gaussian() -> None:
    problem = gaussian(5)
    run = problem.run(150, 30, num_inner_steps=15)
    assert abs(run.log_evidence - problem.log_evidence) < 3 * run.log_evidence_err
    assert run.log_evidence_err < 0.3
    # H = -log Z - d/2 log(2 pi e) for a density over a wide flat prior.
    information = -problem.log_evidence - 2.5 * math.log(2 * math.pi * math.e)
    assert run.information == pytest.approx(information, abs=0.6)
    assert run.warnings == ()
    assert len(run.dead) == 150 + 30 * run.num_steps
    summary = run.summary()
    error = 3 / np.sqrt(run.ess)
    assert list(summary.values) == [f"x[{i}]" for i in range(5)]
    for row in summary.values.values():
        assert abs(row["mean"]) < error
        assert row["std"] == pytest.approx(1.0, abs=error)
        assert row["95 %"] == pytest.approx(1.645, abs=3 * error)
    draws = run.posterior(jax.random.key(3), 500)
    assert draws.shape == (500, 5)
    assert np.abs(np.mean(draws, axis=0)).max() < error + 0.2


def test_a_likelihood_of_zero_over_half_of_the_prior() -> None:
    problem = half()
    run = problem.run(150, 30, num_inner_steps=10)
    assert abs(run.log_evidence - problem.log_evidence) < 3 * run.log_evidence_err
    assert np.sum(np.isneginf(run.dead.loglikelihood)) > 50
    assert run.warnings == ()
    assert run.posterior(jax.random.key(0), 300)[:, 0].min() > 0


def test_a_plateau_over_most_of_the_prior() -> None:
    problem = bottom()
    run = problem.run(150, 30, num_inner_steps=10)
    assert abs(run.log_evidence - problem.log_evidence) < 3 * run.log_evidence_err
    assert [warning.name for warning in run.warnings] == ["plateaus"]


def test_a_run_ends_on_a_flat_top() -> None:
    """Upstream copies the live points once all of them have the highest value."""

    def log_likelihood(x: Any) -> Any:
        return jnp.where(jnp.sum(x**2) < 0.09, 5.0, -10 * jnp.sum(x**2))

    grid = (np.arange(2000) + 0.5) / 1000 - 1
    square = grid[:, None] ** 2 + grid**2
    exact = np.log(np.mean(np.exp(np.where(square < 0.09, 5.0, -10 * square))))
    # A rule that is never met: only the flat top ends the run.
    run = Known(log_likelihood, 2, -1.0, 1.0, exact).run(
        150, 30, num_inner_steps=10, stop=bk.MaxSteps(10**6)
    )
    assert abs(run.log_evidence - exact) < 3 * run.log_evidence_err
    assert run.converged
    assert "no likelihood is above those of the live points" in run.stop_reason


EVIDENCES: dict[str, tuple[Known, int, int]] = {
    "gaussian 5": (gaussian(5), 500, 50),
    "gaussian 10": (gaussian(10), 500, 50),
    "gaussian 20": (gaussian(20), 500, 50),
    "correlated 5": (gaussian(5, 0.9), 500, 50),
    "correlated 10": (gaussian(10, 0.9), 500, 50),
    "correlated 20": (gaussian(20, 0.9), 500, 50),
    "eggbox": (eggbox(), 1000, 50),
    "shells 2": (shells(2), 500, 50),
    "shells 5": (shells(5), 500, 50),
    "shells 10": (shells(10), 1000, 50),
    "rosenbrock": (rosenbrock(), 500, 50),
    "half": (half(), 500, 50),
    "bottom": (bottom(), 500, 50),
    "spike and slab": (spike_and_slab(), 500, 50),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVIDENCES)
def test_known_evidences(name: str) -> None:
    problem, num_live, num_delete = EVIDENCES[name]
    with jax.enable_x64(True):
        run = problem.run(num_live, num_delete)
        assert abs(run.log_evidence - problem.log_evidence) < 3 * run.log_evidence_err
        assert run.converged


@pytest.mark.slow
def test_errors_are_those_of_the_scatter() -> None:
    """Over 20 seeds, the deviations in units of their errors have a spread of one."""
    deviations = []
    problem = gaussian(5)
    for seed in range(20):
        run = problem.run(200, 20, seed)
        deviations.append(
            (run.log_evidence - problem.log_evidence) / run.log_evidence_err
        )
    # Of 20 normal numbers: mean 0 +/- 0.22, standard deviation 1 +/- 0.16.
    assert abs(np.mean(deviations)) < 4 * 0.22
    assert 0.5 < np.std(deviations, ddof=1) < 1.6
