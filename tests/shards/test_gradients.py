"""Integration by parts over draws, against posteriors in closed form."""

from typing import Any

import numpy as np
import pytest

from batchkit.shards._gradients import GradientCheck, check_gradients


DRAWS, FEW = 1600, 200
UNRELIABLE = {"mean gradient", "integration by parts"}


def check(
    draws: np.ndarray, gradients_fn: Any
) -> tuple[GradientCheck | None, list[str], str]:
    places = np.linspace(0, len(draws) - 1, min(FEW, len(draws))).astype(int)
    some = draws[places] - np.mean(draws[places], 0) + np.mean(draws, 0)
    names = tuple(f"x[{i}]" for i in range(draws.shape[1]))
    found, warnings = check_gradients(draws, places, some, gradients_fn(some), names)
    text = " ".join(str(warning) for warning in warnings)
    return found, [warning.name for warning in warnings], text


def rate(make: Any, gradients_fn: Any, seeds: int, names: set[str]) -> float:
    """Share of seeds for which one of the warnings is raised."""
    found = [
        check(make(np.random.default_rng(seed)), gradients_fn)[1]
        for seed in range(seeds)
    ]
    return float(np.mean([bool(names & set(x)) for x in found]))


def normal(dim: int) -> Any:
    return lambda rng: rng.normal(size=(DRAWS, dim))


def correlated(rng: np.random.Generator) -> np.ndarray:
    """An autoregressive chain, of which eight draws are worth one."""
    x = rng.normal(size=(DRAWS, 3))
    for i in range(1, DRAWS):
        x[i] = 0.78 * x[i - 1] + (1 - 0.78**2) ** 0.5 * x[i]
    return x


def root_of(correlation: float, dim: int = 4) -> np.ndarray:
    matrix = np.full((dim, dim), correlation) + (1 - correlation) * np.eye(dim)
    return np.linalg.cholesky(matrix).T


def test_the_matrix_of_gaussians_is_a_product_of_covariances() -> None:
    rng = np.random.default_rng(0)
    dim = 3
    a, b = (np.eye(dim) + 0.3 * rng.normal(size=(dim, dim)) for _ in range(2))
    p, q = 4 * a @ a.T, b @ b.T
    mean = np.array([0.3, 0.0, -0.2])
    draws = rng.normal(size=(40_000, dim)) @ np.linalg.cholesky(q).T
    found, names, _ = check(draws, lambda y: -(y - mean) @ np.linalg.inv(p))
    assert found is not None
    width = np.sqrt(np.diag(q))
    matrix = q @ np.linalg.inv(p) * width / width[:, None]
    gradient = width * (np.linalg.inv(p) @ mean)
    for value, error, expected in (
        (found.matrix, found.matrix_err, matrix),
        (found.mean_gradient, found.mean_gradient_err, gradient),
        (found.shift, found.shift_err, q @ np.linalg.inv(p) @ mean / width),
        (
            found.excess,
            found.excess_err,
            q @ (np.linalg.inv(p) @ q - np.eye(dim)) / np.outer(width, width),
        ),
    ):
        assert np.all(np.abs(value - expected) < 5 * error + 0.01)
        assert np.all(error < 0.25)
    assert set(names) == UNRELIABLE
    assert found.num_draws == FEW


def test_standard_errors_are_the_spread_of_estimates() -> None:
    def gradient(y: np.ndarray) -> np.ndarray:
        return 3 - np.exp(y)

    found = []
    for seed in range(100):
        draws = np.log(np.random.default_rng(seed).gamma(3, size=(DRAWS, 2)))
        one, _, _ = check(draws, gradient)
        assert one is not None
        found.append(one)
    for name, truth in (
        ("shift", np.zeros(2)),
        ("mean_gradient", np.zeros(2)),
        ("matrix", np.eye(2)),
        ("excess", np.zeros((2, 2))),
    ):
        values = np.array([getattr(x, name) for x in found])
        errors = np.array([getattr(x, f"{name}_err") for x in found])
        spread = np.std(values, axis=0)
        assert np.all(np.abs(np.mean(values, 0) - truth) < 0.5 * spread + 1e-9)
        ratio = np.sqrt(np.mean(errors**2, 0)) / spread
        assert np.all((ratio > 0.75) & (ratio < 1.35))


@pytest.mark.parametrize(
    ("make", "gradients_fn", "seeds"),
    [
        (normal(1), lambda y: -y, 60),
        (normal(10), lambda y: -y, 60),
        (normal(30), lambda y: -y, 10),
        (correlated, lambda y: -y, 60),
        (
            lambda rng: rng.normal(size=(DRAWS, 4)) @ root_of(0.99),
            lambda y: -y @ np.linalg.inv(root_of(0.99).T @ root_of(0.99)),
            60,
        ),
        (
            lambda rng: np.log(rng.gamma(3, size=(DRAWS, 4))),
            lambda y: 3 - np.exp(y),
            60,
        ),
        (
            lambda rng: rng.standard_t(10, (DRAWS, 4)),
            lambda y: -11 * y / (10 + y**2),
            60,
        ),
    ],
    ids=["1", "10", "30", "slow chain", "strong correlation", "skewed", "long tails"],
)
def test_draws_of_the_posterior_are_hardly_ever_called_unreliable(
    make: Any, gradients_fn: Any, seeds: int
) -> None:
    assert rate(make, gradients_fn, seeds, UNRELIABLE) <= 0.035


@pytest.mark.parametrize(
    ("make", "gradients_fn", "name"),
    [
        (normal(10), lambda y: -(y - 0.18 * np.eye(10)[4]), "mean gradient"),
        (normal(10), lambda y: -1.44 * y, "integration by parts"),
        (normal(10), lambda y: -y / 1.44, "integration by parts"),
        (
            normal(10),
            lambda y: -y * (1 + 0.44 * np.eye(10)[3]),
            "integration by parts",
        ),
        # The right widths of all, the wrong correlation.
        (
            lambda rng: rng.normal(size=(DRAWS, 4)),
            lambda y: -y @ np.linalg.inv(root_of(0.4).T @ root_of(0.4)),
            "integration by parts",
        ),
        (
            lambda rng: rng.normal(size=(DRAWS, 4)) @ root_of(0.98),
            lambda y: -y @ np.linalg.inv(root_of(0.99).T @ root_of(0.99)),
            "integration by parts",
        ),
        # All widths off together, where matrix[i, i] itself is close to 1.
        (
            lambda rng: (
                rng.normal(size=(DRAWS, 10)) @ root_of(0.9, 10)
                + 0.7 * rng.normal(size=(DRAWS, 1))
            ),
            lambda y: -y @ np.linalg.inv(root_of(0.9, 10).T @ root_of(0.9, 10)),
            "integration by parts",
        ),
    ],
    ids=["mean", "wide", "narrow", "one", "correlation", "difference", "together"],
)
def test_draws_that_are_off_are_found(make: Any, gradients_fn: Any, name: str) -> None:
    assert rate(make, gradients_fn, 20, {name}) >= 0.9


def test_small_errors_are_not_warned_of() -> None:
    def gradient(y: np.ndarray) -> np.ndarray:
        return -1.1 * (y - 0.05)

    draws = np.random.default_rng(0).normal(size=(50_000, 2))
    found, names, _ = check(draws, gradient)
    assert found is not None
    assert names == []
    assert found.shift[0] > 5 * found.shift_err[0]
    shift, variance = found.bounds
    assert 0.05 < shift < 0.1
    assert 0.1 < variance < 0.2


def test_warnings_name_parameters_and_sizes() -> None:
    draws = np.random.default_rng(0).normal(size=(DRAWS, 3))
    _, _, text = check(draws, lambda y: -y * [1, 1, 1.6] + [0, 0.3, 0])
    assert "standard deviations of x[1], and more than 0.1 in x[1]." in text
    assert "the variance of x[2] is too large by 0." in text
    assert "sharded_logdensity" in text
    _, _, text = check(draws[:, :2] @ root_of(0.35, 2), lambda y: -y)
    assert "the covariance of x[0] with x[1] is too large by 0.3" in text
    assert "more than 0.25 off are x[0] with x[1]." in text
    _, _, text = check(draws[:, :2], lambda y: -y / 4)
    assert "is too small by 0." in text


def test_noisy_and_infinite_gradients_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    _, names, _ = check(
        rng.standard_t(2.1, (400, 2)), lambda y: -3.1 * y / (2.1 + y**2)
    )
    assert names == ["gradients too noisy"]
    draws = rng.normal(size=(DRAWS, 2))
    found, names, text = check(draws, lambda y: np.where(y > [9, 1], np.nan, -y))
    assert found is None
    assert names == ["gradients not finite"]
    assert "in x[1] is" in text
    found, names, text = check(draws[:3], lambda y: -y)
    assert found is None
    assert names == ["gradients too noisy"]


def test_a_check_prints_as_a_table_of_at_most_60_rows() -> None:
    draws = np.random.default_rng(0).normal(size=(DRAWS, 70))
    found, _, _ = check(draws, lambda y: -y)
    text = repr(found)
    assert "matrix (1)" in text
    assert "x[59]" in text
    assert "x[60] " not in text
    assert "and 10 more" in text
    one, _, _ = check(draws[:, :1], lambda y: -y)
    assert "x[0]" in repr(one)
