"""Draws moved to where the mean gradient is zero, with gradients made by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchkit.shards._combine import _DRAWS, _DRAWS_AT_ONCE, refined


Slope = Callable[[np.ndarray], np.ndarray]
DIM = 3


def draws(dim: int = DIM) -> np.ndarray:
    rng = np.random.default_rng(0)
    root = np.eye(dim) + np.tril(rng.normal(size=(dim, dim)))
    return rng.normal(size=(4, 500, dim)) @ root.T


def of(slope: Slope) -> tuple[Any, list[int]]:
    """The gradients at positions, and a list of how many were asked for at a time."""
    sizes: list[int] = []

    def gradients(positions: np.ndarray) -> list[np.ndarray]:
        sizes.append(len(positions))
        return [slope(np.asarray(positions))]

    return gradients, sizes


@pytest.mark.parametrize("wider", [0.5, 1.0, 1.3, 2.0, 5.0])
def test_draws_of_any_width_are_moved_to_the_mean(wider: float) -> None:
    # Newton's method alone leads away from it where draws are 1.42 times too wide.
    x = draws()
    precision = wider**2 * np.linalg.inv(np.cov(x.reshape(-1, DIM).T))
    width = np.std(x, axis=(0, 1))
    mean = np.array([1.0, -2.0, 0.5]) * width
    gradients, sizes = of(lambda y: -(y - mean) @ precision)
    found = refined(x, gradients)
    moved, shift = found.samples, found.shift
    away = (np.mean(moved, axis=(0, 1)) - mean) / width
    # The search ends where its next step is at most 0.01 standard deviations, which is
    # Newton's: all steps are along one line, on which the curvature is known.
    np.testing.assert_allclose(away, 0, atol=0.0101)
    # All draws by the same, which is `shift`.
    np.testing.assert_allclose(
        moved - x, np.broadcast_to(moved[0, 0] - x[0, 0], x.shape)
    )
    assert shift is not None
    np.testing.assert_allclose(shift * width, moved[0, 0] - x[0, 0], rtol=1e-3)
    assert set(sizes) == {_DRAWS}
    assert len(sizes) <= 8
    # The gradients are those where the draws are now.
    np.testing.assert_allclose(found.draws, moved.reshape(-1, DIM))
    np.testing.assert_allclose(np.mean(found.some, 0), np.mean(found.draws, 0))
    apart = found.some - found.draws[found.places]
    np.testing.assert_allclose(apart, np.broadcast_to(apart[0], apart.shape), atol=1e-9)
    np.testing.assert_allclose(found.gradients, -(found.some - mean) @ precision)


def test_draws_that_are_not_to_be_moved_stay() -> None:
    x = draws()
    gradients, sizes = of(lambda y: -3 * (y - 1))
    found = refined(x, gradients, refine=False)
    assert found.shift is None
    assert sizes == [_DRAWS_AT_ONCE]
    np.testing.assert_array_equal(found.samples, x)
    np.testing.assert_allclose(found.gradients, -3 * (found.some - 1))


@pytest.mark.parametrize(
    "slope",
    [
        lambda y: 1 - np.exp(y - 4),
        lambda y: 1 - np.exp(3 * (y - 8)),  # steps too far are never made up for
        lambda y: -((y - 4) ** 3),
        lambda y: -3 * (y - 4) / (2 + (y - 4) ** 2),
    ],
)
def test_draws_are_moved_for_factors_that_are_not_gaussian(slope: Slope) -> None:
    x = np.random.default_rng(1).normal(size=(4, 500, 1))
    found = refined(x, of(slope)[0])
    assert found.shift is not None
    # Newton's next step would be at most 0.01 standard deviations.
    above, here, below = (np.mean(slope(found.some + h)) for h in (1e-4, 0.0, -1e-4))
    assert abs(here / (below - above) * 2e-4) < 0.01 * np.std(x)
    np.testing.assert_allclose(np.mean(found.gradients), here)
    np.testing.assert_allclose(np.mean(found.some), np.mean(found.samples))


@pytest.mark.parametrize(
    "slope",
    [
        lambda y: np.ones_like(y),  # of no density
        lambda y: 1 / (1 + y**2),
        lambda y: np.where(y > 0.5, np.nan, 1.0),
        lambda y: np.full_like(y, np.nan),
    ],
)
def test_draws_stay_if_the_search_fails(slope: Slope) -> None:
    x = np.random.default_rng(1).normal(size=(4, 500, 1))
    gradients, sizes = of(slope)
    found = refined(x, gradients)
    assert found.shift is None
    np.testing.assert_array_equal(found.samples, x)
    np.testing.assert_allclose(found.gradients, slope(found.some))
    assert len(sizes) <= 16


def test_a_step_to_where_the_gradient_is_not_finite_is_shortened() -> None:
    # A step of full length would end where the gradient is none.
    x = 0.1 * np.random.default_rng(1).normal(size=(4, 500, 1))
    x = np.clip(x, -0.25, 0.25) - 0.5
    gradients, _ = of(lambda y: np.where(y > 0.3, np.nan, -500 * y))
    moved, shift = refined(x, gradients)[:2]
    assert shift is not None
    assert abs(np.mean(moved)) < 0.01


def test_draws_that_are_right_stay_and_keep_structure_and_dtype() -> None:
    x = draws()
    x -= np.mean(x, axis=(0, 1))
    precision = np.linalg.inv(np.cov(x.reshape(-1, DIM).T))
    tree = {"a": x[..., :2].astype(np.float32), "b": x[..., 2].astype(np.float32)}

    def gradients(positions: Any) -> list[np.ndarray]:
        assert positions["a"].shape == (_DRAWS, 2)
        assert positions["b"].shape == (_DRAWS,)
        assert positions["a"].dtype == np.float32
        y = np.column_stack([positions["a"], positions["b"]])
        slope = -y @ precision
        return [slope[:, :2], slope[:, 2]]

    moved, shift = refined(tree, gradients)[:2]
    assert shift is not None
    np.testing.assert_allclose(shift, 0, atol=0.01)
    assert moved["a"].shape == (4, 500, 2)
    assert moved["b"].dtype == np.float32
