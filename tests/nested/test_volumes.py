"""The evidence, its error and the weights, against exact answers."""

import jax
import numpy as np
import pytest
from blackjax.ns.base import NSInfo
from blackjax.ns.utils import log_weights
from jax.scipy.special import logsumexp
from scipy import special

from batchkit.nested import DeadPoints
from batchkit.nested._dead import HISTORIES, resample, simulate

from .perfect import Problem, peak, plateau, result, sample, steps
from .test_dead import particles


SEEDS = 60
CASES: dict[str, tuple[Problem, dict[str, int]]] = {
    "peak": (peak(), {}),
    "peak, 10 at once": (peak(), {"num_delete": 10}),
    "peak, 25 at once": (peak(), {"num_delete": 25}),
    "plateau": (plateau(1.0), {}),
    "plateau, 7 at once": (plateau(1.0), {"num_delete": 7}),
    "zero": (plateau(-np.inf), {}),
    "zero, 20 at once": (plateau(-np.inf), {"num_delete": 20}),
    "steps": (steps(), {}),
    "steps, 20 at once": (steps(), {"num_delete": 20}),
}


@pytest.mark.parametrize(("problem", "settings"), CASES.values(), ids=CASES)
def test_evidence_is_unbiased_and_its_error_is_its_scatter(
    problem: Problem, settings: dict[str, int]
) -> None:
    """Over runs whose new points are independent draws."""
    runs = [result(sample(problem, seed, **settings), seed) for seed in range(SEEDS)]
    found = np.array([run.log_evidence for run in runs])
    errors = np.array([run.log_evidence_err for run in runs])
    pulls = (found - problem.log_evidence) / errors
    assert abs(np.mean(pulls)) < 3 / np.sqrt(SEEDS)
    assert abs(np.std(pulls) - 1) < 3 / np.sqrt(2 * SEEDS)
    assert np.max(np.abs(pulls)) < 4.5


def test_live_counts_without_plateaus_bias_the_evidence() -> None:
    """So the test above can fail."""
    problem, num_live = plateau(1.0), 50
    pulls = []
    for seed in range(SEEDS):
        dead = sample(problem, seed, num_live)
        falling = np.arange(len(dead), 0, -1)
        dead.__dict__["num_live"] = np.minimum(num_live, falling)
        run = result(dead, seed)
        pulls.append((run.log_evidence - problem.log_evidence) / run.log_evidence_err)
    assert abs(np.mean(pulls)) > 6 / np.sqrt(SEEDS)


def test_evidence_of_a_constant_is_that_constant() -> None:
    """The elements of volume sum to one."""
    dead = DeadPoints(
        np.zeros(30), np.full(30, -7.0), np.full(30, -np.inf), np.zeros(30)
    )
    volumes = simulate(dead, np.random.default_rng(0))
    np.testing.assert_allclose(volumes.log_evidence, -7.0, rtol=1e-12)
    np.testing.assert_allclose(volumes.information, 0.0, atol=1e-12)
    one = DeadPoints(np.zeros(1), np.ones(1), np.array([-np.inf]), np.zeros(1))
    assert result(one).log_evidence == pytest.approx(1.0)
    assert result(one).weights.tolist() == [1.0]


def test_simulated_histories_are_those_computed_by_hand() -> None:
    """The same histories, with volumes as they are instead of their logarithms."""
    dead = sample(peak(), 3, num_live=30, num_delete=4)
    n = len(dead)
    volumes = simulate(dead, np.random.default_rng(5), histories=20)
    shrinkage = np.random.default_rng(5).standard_exponential((20, n)) / dead.num_live
    x = np.exp(-np.cumsum(shrinkage, axis=1))
    edges = np.concatenate(
        [np.ones((20, 1)), (x[:, 1:] + x[:, :-1]) / 2, np.zeros((20, 1))], axis=1
    )
    terms = np.exp(dead.loglikelihood) * -np.diff(edges, axis=1)
    z = terms.sum(axis=1)
    weights = terms / z[:, None]
    np.testing.assert_allclose(volumes.log_evidence, np.log(z), rtol=1e-9)
    np.testing.assert_allclose(volumes.weights, weights.mean(axis=0), rtol=1e-9)
    information = weights @ dead.loglikelihood - np.log(z)
    np.testing.assert_allclose(volumes.information, information, rtol=1e-8)


def test_agrees_with_blackjax_where_no_likelihoods_tie() -> None:
    dead = sample(peak(), 0, num_live=100, num_delete=10)
    births = dead.loglikelihood_birth
    with jax.enable_x64(True):
        points = particles(
            dead.loglikelihood, np.where(np.isneginf(births), np.nan, births)
        )
        weights = log_weights(jax.random.key(1), NSInfo(points, ()), 500)  # pyright: ignore[reportArgumentType]
        upstream = np.asarray(logsumexp(weights, axis=0))
    run = result(dead)
    accuracy = run.log_evidence_err / np.sqrt(HISTORIES)
    assert abs(run.log_evidence - upstream.mean()) < 4 * accuracy
    assert run.log_evidence_err == pytest.approx(upstream.std(), rel=0.15)


def test_information_is_exact_on_average() -> None:
    """`H = E[log L] - log Z`, where `E[r] / scale` is a ratio of gamma functions."""
    dim, scale = 5, 0.1
    ratio = special.gammainc(dim + 1, 1 / scale) / special.gammainc(dim, 1 / scale)
    exact = -dim * ratio - peak(dim, scale).log_evidence
    runs = [result(sample(peak(dim, scale), seed, 100)) for seed in range(10)]
    found = np.array([run.information for run in runs])
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(10)
    error = np.mean([run.log_evidence_err for run in runs])
    assert error == pytest.approx(np.sqrt(exact / 100), rel=0.15)


def test_posterior_means_are_exact_on_average() -> None:
    """The mean radius, `dim scale` times a ratio of gamma functions, within its error.

    Where the likelihood tells the radius, its error is that of the volumes alone.
    """
    dim, scale = 5, 0.1
    ratio = special.gammainc(dim + 1, 1 / scale) / special.gammainc(dim, 1 / scale)
    pulls = []
    for seed in range(20):
        run = result(sample(peak(dim, scale), seed, 100, num_delete=20), seed)
        radius = run.dead.positions["u"] ** (1 / dim)
        rng = np.random.default_rng(seed)
        means = [simulate(run.dead, rng, 1).weights @ radius for _ in range(50)]
        mean, error = run.weights @ radius, np.std(means)
        assert abs(mean - np.mean(means)) < 4 * error / np.sqrt(50)
        pulls.append((mean - dim * scale * ratio) / error)
    assert abs(np.mean(pulls)) < 3 / np.sqrt(20)
    assert abs(np.std(pulls) - 1) < 3 / np.sqrt(40)


def test_weights_are_those_of_a_distribution() -> None:
    run = result(sample(plateau(-np.inf), 0))
    assert run.weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.all(run.weights[np.isneginf(run.dead.loglikelihood)] == 0.0)
    assert np.all(run.weights[np.isfinite(run.dead.loglikelihood)] > 0.0)
    assert 1 < run.ess < len(run.dead)
    assert run.ess == pytest.approx(1 / np.sum(run.weights**2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [-1e5, 0.0, 1e5])
def test_large_log_likelihoods_neither_overflow_nor_underflow(
    dtype: type, offset: float
) -> None:
    dead = sample(peak(), 0, 20)
    logl = dead.loglikelihood.astype(dtype)
    moved = DeadPoints(
        dead.positions,
        logl + dtype(offset),
        np.full(len(dead), -np.inf, dtype),
        dead.logprior,
    )
    still = DeadPoints(
        dead.positions,
        (moved.loglikelihood - dtype(offset)),
        np.full(len(dead), -np.inf, dtype),
        dead.logprior,
    )
    found = simulate(moved, np.random.default_rng(0), 5)
    expected = simulate(still, np.random.default_rng(0), 5)
    np.testing.assert_allclose(found.log_evidence - offset, expected.log_evidence)


def test_chunks_of_histories_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = sample(peak(), 0, 20)
    whole = simulate(dead, np.random.default_rng(0), 50)
    monkeypatch.setattr("batchkit.nested._dead._MAX_NUMBERS", 7 * len(dead))
    parts = simulate(dead, np.random.default_rng(0), 50)
    np.testing.assert_array_equal(whole.log_evidence, parts.log_evidence)
    np.testing.assert_allclose(whole.weights, parts.weights, rtol=1e-12)


@pytest.mark.parametrize("draws", [1, 10, 1000])
def test_resampling_draws_each_index_as_often_as_expected(draws: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=40)
    weights[[0, 7, 39]] = 0.0
    weights /= weights.sum()
    counts = np.bincount(resample(weights, draws, rng), minlength=40)
    assert np.all(np.abs(counts - draws * weights) < 1)
    assert np.all(counts[[0, 7, 39]] == 0)


def test_resampling_shuffles() -> None:
    chosen = resample(np.full(100, 0.01), 100, np.random.default_rng(0))
    assert sorted(chosen) == list(range(100))
    assert abs(np.corrcoef(chosen, np.arange(100))[0, 1]) < 0.3
