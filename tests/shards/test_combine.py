"""Draws of a product from draws of its factors, against closed forms."""

from typing import Any

import jax
import numpy as np
import pytest

import batchkit as bk
from batchkit.shards._combine import OUTLYING, distances

from ..helpers import assert_refuses


KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
DRAWS = (4, 2000)
every_way = pytest.mark.parametrize("way", ["consensus", "robust", "kde"])


def gaussians(
    means: Any, covariances: Any, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws of Gaussian factors, and the mean and covariance of the product."""
    rng = np.random.default_rng(seed)
    pairs = list(zip(means, covariances, strict=True))
    draws = np.stack([rng.multivariate_normal(m, c, DRAWS) for m, c in pairs])
    weights = np.linalg.inv(np.array(covariances))
    covariance = np.linalg.inv(np.sum(weights, axis=0))
    mean = covariance @ np.einsum("sij,sj->i", weights, np.array(means))
    return draws, mean, covariance


@every_way
def test_the_product_has_the_exact_covariance(way: str) -> None:
    strong = np.array([[1.0, 0.9], [0.9, 1.0]])
    covariances = [strong, 2 * strong, [[1.0, 0.5], [0.5, 3.0]], strong]
    means = [[0.0, 0.0], [0.3, 0.1], [0.2, -0.5], [-0.1, 0.2]]
    draws, mean, covariance = gaussians(means, covariances)
    # Of units that differ by orders of magnitude the weights must not care.
    unit = np.array([1e-4, 1e5])
    found = bk.combine_shards(draws * unit, way, KEY).samples.reshape(-1, 2) / unit
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.mean(found, 0) / scale, mean / scale, atol=0.1)
    np.testing.assert_allclose(np.std(found, 0) / scale, 1, atol=0.06)
    exact = covariance[0, 1] / np.prod(scale)
    assert abs(np.corrcoef(found.T)[0, 1] - exact) < 0.03


def test_consensus_draws_are_weighted_means() -> None:
    draws, _, _ = gaussians([[0.0, 0.0], [0.5, 0.5]], [np.eye(2), 3 * np.eye(2)])
    found = bk.combine_shards(draws).samples.reshape(-1, 2)
    flat = draws.reshape(2, -1, 2)
    w = [np.linalg.inv(np.cov(x.T)) for x in flat]
    both = np.linalg.inv(w[0] + w[1])
    expected = (both @ (w[0] @ flat[0].T + w[1] @ flat[1].T)).T
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_one_shard_keeps_its_draws() -> None:
    draws, _, _ = gaussians([[0.0, 1.0]], [np.eye(2)])
    for way in ("consensus", "robust", "kde"):
        found = bk.combine_shards(draws, way, KEY).samples
        np.testing.assert_allclose(found, draws[0], rtol=1e-9, atol=1e-9)


def test_robust_leaves_an_outlying_shard_out() -> None:
    means = [[0.1, 0.0], [-0.1, 0.2], [0.0, 9.0], [0.05, -0.1], [0.0, 0.1]]
    draws, _, _ = gaussians(means, [np.eye(2)] * 5)
    combined = bk.combine_shards({"a": draws}, "robust")
    assert combined.used == (0, 1, 3, 4)
    assert list(combined.left_out) == [2]
    assert "a[1]" in combined.left_out[2]
    assert f"more than {OUTLYING}" in combined.left_out[2]
    without = bk.combine_shards({"a": draws[[0, 1, 3, 4]]})
    np.testing.assert_allclose(combined.samples["a"], without.samples["a"], atol=1e-9)
    assert bk.combine_shards({"a": draws}).used == (0, 1, 2, 3, 4)


def test_of_two_shards_none_is_outlying() -> None:
    draws, _, _ = gaussians([[0.0], [50.0]], [np.eye(1)] * 2)
    assert bk.combine_shards(draws, "robust").left_out == {}


def shards_at(means: Any, width: float = 1e-3) -> np.ndarray:
    """Narrow shards of exactly these means."""
    return np.array(means)[:, None, None] + width * np.linspace(-1, 1, 50)[None, None]


def test_outlying_is_beyond_3_5_robust_deviations() -> None:
    # The median is 0, the median distance from it 1, so a deviation 1 / 0.6745.
    limit = OUTLYING / 0.6745
    for far, expected in ((0.99, []), (1.01, [4])):
        means = [-1.0, 0.0, -0.5, 1.0, far * limit]
        combined = bk.combine_shards(shards_at(means), "robust")
        away = np.abs(np.array(means) - 0.0)
        assert np.median(away) == 1.0
        assert list(combined.left_out) == expected
    # Three shards are enough to see which one it is.
    combined = bk.combine_shards(shards_at([0.0, 0.001, 9.0]), "robust")
    assert list(combined.left_out) == [2]
    # It is named by its number also where others had been left out before.
    x = shards_at([0.0, 0.001, 0.0, 0.0, 9.0])
    x[1] = 3.0
    combined = bk.combine_shards(x, "robust")
    assert list(combined.left_out) == [1, 4]
    assert combined.used == (0, 2, 3)


def test_an_odd_number_of_kernel_densities_multiplies() -> None:
    means, widths = [1.0, 0.0, 0.0], [[[0.5]], [[1.0]], [[2.0]]]
    draws, mean, covariance = gaussians([[m] for m in means], widths)
    found = bk.combine_shards(draws, "kde", KEY).samples
    assert abs(np.mean(found) - mean[0]) < 0.1
    assert abs(np.std(found) / covariance[0, 0] ** 0.5 - 1) < 0.1


def test_kernel_densities_without_overlap_do_not_underflow() -> None:
    # The weights of all pairs are below the smallest number that there is.
    rng = np.random.default_rng(4)
    draws = np.stack([rng.normal(0, 1, DRAWS), rng.normal(500, 10, DRAWS)])
    found = bk.combine_shards(draws, "kde", KEY).samples
    # That of the nearest pair is by far the largest.
    assert abs(np.mean(found) - (100 * np.max(draws[0]) + np.min(draws[1])) / 101) < 0.5


def test_robust_keeps_shards_that_agree() -> None:
    # The plain rule, which divides by the deviation of few means, leaves out some
    # shard in more than half of all such runs.
    rng = np.random.default_rng(1)
    plain = kept = 0
    for _ in range(200):
        means = rng.normal(size=(4, 1, 8))
        draws = means + np.sqrt(12) * (np.arange(50)[:, None] / 49 - 0.5)
        kept += not np.any(distances(draws) > OUTLYING)
        away = np.abs(means[:, 0] - np.median(means[:, 0], axis=0))
        plain += not np.any(away > OUTLYING * np.median(away, axis=0) / 0.6745)
    assert kept > 180
    assert plain < 100


def test_kde_is_less_biased_for_skewed_factors() -> None:
    # Gamma densities: the product of four of shape a is one of shape 4 a - 3, rate 4.
    draws = np.random.default_rng(0).gamma(2.0, size=(4, *DRAWS))
    mean, width = 5 / 4, 5**0.5 / 4
    kde = bk.combine_shards(draws, "kde", KEY).samples
    consensus = bk.combine_shards(draws).samples
    bias = (np.mean(consensus) - mean) / width
    assert bias > 1
    assert abs(np.mean(kde) - mean) / width < bias / 4
    assert abs(np.std(kde) / width - 1) < 0.1


def test_kde_keeps_two_modes() -> None:
    rng = np.random.default_rng(0)
    draws = np.where(rng.random((2, *DRAWS)) < 0.5, -3, 3) + rng.normal(
        size=(2, *DRAWS)
    )
    kde = bk.combine_shards(draws, "kde", KEY).samples
    assert np.mean(np.abs(kde) < 1) < 0.05
    assert 0.3 < np.mean(kde > 0) < 0.7
    assert np.mean(np.abs(bk.combine_shards(draws).samples) < 1) > 0.3


@every_way
def test_draws_depend_on_samples_and_key_alone(way: str) -> None:
    draws, _, _ = gaussians([[0.0, 0.0], [0.5, 0.5]], [np.eye(2)] * 2)
    raw = jax.random.key_data(KEY)
    first, second = (bk.combine_shards(draws, way, k).samples for k in (KEY, raw))
    np.testing.assert_array_equal(first, second)
    other = bk.combine_shards(draws, way, jax.random.key(4)).samples
    assert np.array_equal(first, other) == (way != "kde")


def test_structure_and_dtypes_are_kept() -> None:
    samples = {
        "a": RNG.normal(size=(3, 2, 50, 2, 2)).astype(np.float32),
        "b": RNG.normal(size=(3, 2, 50)),
    }
    found = bk.combine_shards(samples).samples
    assert found["a"].shape == (2, 50, 2, 2)
    assert found["a"].dtype == np.float32
    assert found["b"].shape == (2, 50)


@every_way
@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-20, 1e20, 1e200, 1e300])
def test_units_whose_squares_overflow_change_nothing(way: str, unit: float) -> None:
    draws, _, _ = gaussians([[0.0, 1.0], [0.5, 0.5]], [np.eye(2), 2 * np.eye(2)])
    scale = np.array([unit, 1.0])
    found = bk.combine_shards(draws * scale, way, KEY)
    expected = bk.combine_shards(draws, way, KEY).samples
    assert found.used == (0, 1)
    np.testing.assert_allclose(found.samples / scale, expected, rtol=1e-6, atol=1e-6)


def test_integers_become_floats() -> None:
    draws = RNG.integers(0, 50, size=(3, *DRAWS))
    found = bk.combine_shards(draws).samples
    assert found.dtype == np.float64
    expected = bk.combine_shards(draws.astype(float)).samples
    np.testing.assert_array_equal(found, expected)


@every_way
def test_shards_without_a_covariance_are_left_out(way: str) -> None:
    draws, _, _ = gaussians([[0.0, 0.0]] * 6, [np.eye(2)] * 6)
    draws[1, ..., 1] = 3.0
    draws[2, 0, 5, 0] = np.nan
    draws[4, ..., 1] = 2 * draws[4, ..., 0]
    combined = bk.combine_shards({"a": draws}, way, KEY)
    assert combined.used == (0, 3, 5)
    for shard, words in (
        (1, "variance of a[1] is zero"),
        (2, "variance of a[0] is NaN"),
        (4, "no inverse"),
    ):
        assert words in combined.left_out[shard]
    rest = bk.combine_shards({"a": draws[[0, 3, 5]]}, way, KEY)
    np.testing.assert_allclose(combined.samples["a"], rest.samples["a"], atol=1e-9)


def test_an_error_says_why_no_shard_is_left() -> None:
    draws = np.zeros((2, 4, 50))
    draws[1] = np.nan
    assert_refuses(
        lambda: bk.combine_shards(draws),
        ValueError,
        ("none of 2 shards", "shard 0", "is zero", "shard 1", "NaN"),
    )


ONES = np.ones((2, 3, 4))
REFUSED: list[tuple[tuple[Any, ...], type[Exception], tuple[str, ...]]] = [
    ((ONES, "mean"), ValueError, ("combine='mean'", "'consensus'", "'kde'")),
    ((ONES, "kde"), ValueError, ("rng_key=None", "jax.random.key(0)")),
    ((ONES, "kde", jax.random.split(KEY)), ValueError, ("one key", "(2,)")),
    ((np.ones((2, 3)),), ValueError, ("(shards, chains, draws, ...)",)),
    (({},), ValueError, ("(shards, chains, draws, ...)",)),
    (([ONES, np.ones((2, 3, 5))],), ValueError, ("(2, 3, 5)",)),
    ((np.ones((2, 3, 4, 0)),), ValueError, ("at least one of each", "(2, 3, 4, 0)")),
    ((ONES + 0j,), TypeError, ("real numbers", "complex128")),
    ((ONES > 0,), TypeError, ("real numbers", "bool")),
    ((np.full((2, 3, 4), "a"),), TypeError, ("real numbers", "<U1")),
    ((ONES, "kde", 3), TypeError, ("rng_key=3", "jax.random.key(0)")),
    ((ONES, "consensus", 3.0), TypeError, ("rng_key=3.0",)),
]


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_cannot_be_right_are_refused(case: Any) -> None:
    args, error, words = case
    assert_refuses(lambda: bk.combine_shards(*args), error, words)
