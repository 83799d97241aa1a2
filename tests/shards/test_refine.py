"""Draws moved to where the mean gradient is zero, with gradients made by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchkit.shards._refine import _DRAWS, _DRAWS_AT_ONCE, refined


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
def test_draws_of_any_width_end_where_they_belong(wider: float) -> None:
    # Newton's method alone leads away from it where draws are 1.42 times too wide.
    x = draws()
    precision = wider**2 * np.linalg.inv(np.cov(x.reshape(-1, DIM).T))
    width = np.std(x, axis=(0, 1))
    mean = np.array([1.0, -2.0, 0.5]) * width
    gradients, sizes = of(lambda y: -(y - mean) @ precision)
    moved, shift, *rest = refined(x, gradients)
    away = (np.mean(moved, axis=(0, 1)) - mean) / width
    np.testing.assert_allclose(away, 0, atol=0.05)
    # All by the same, and by as much as is said.
    np.testing.assert_allclose(
        moved - x, np.broadcast_to(moved[0, 0] - x[0, 0], x.shape)
    )
    assert shift is not None
    np.testing.assert_allclose(shift * width, moved[0, 0] - x[0, 0], rtol=1e-3)
    assert set(sizes) == {_DRAWS}
    assert len(sizes) <= 8
    # The gradients are those where the draws are now.
    draws_now, places, some, gradients_now = rest
    np.testing.assert_allclose(draws_now, moved.reshape(-1, DIM))
    np.testing.assert_allclose(np.mean(some, 0), np.mean(draws_now, 0))
    apart = some - draws_now[places]
    np.testing.assert_allclose(apart, np.broadcast_to(apart[0], apart.shape), atol=1e-9)
    np.testing.assert_allclose(gradients_now, -(some - mean) @ precision)


def test_gradients_where_draws_are_if_they_are_not_to_be_moved() -> None:
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
def test_factors_that_are_not_gaussian(slope: Slope) -> None:
    x = np.random.default_rng(1).normal(size=(4, 500, 1))
    gradients, _ = of(slope)
    moved, shift = refined(x, gradients)[:2]
    assert shift is not None
    # Of the same draws, since few of them tell of tails.
    some = x.reshape(-1, 1)[np.linspace(0, x[..., 0].size - 1, _DRAWS).astype(int)]
    some = some - np.mean(some) + np.mean(moved)
    assert abs(np.mean(slope(some))) < 0.05


@pytest.mark.parametrize(
    "slope",
    [
        lambda y: np.ones_like(y),  # of no density
        lambda y: 1 / (1 + y**2),
        lambda y: np.where(y > 0.5, np.nan, 1.0),
        lambda y: np.full_like(y, np.nan),
    ],
)
def test_where_there_is_no_place_draws_stay(slope: Slope) -> None:
    x = np.random.default_rng(1).normal(size=(4, 500, 1))
    gradients, sizes = of(slope)
    same, shift, _, _, some, found = refined(x, gradients)
    assert shift is None
    np.testing.assert_array_equal(same, x)
    np.testing.assert_allclose(found, slope(some))
    assert len(sizes) <= 16


def test_what_is_not_finite_is_kept_away_from() -> None:
    # A step of full length would end where the gradient is none.
    x = 0.1 * np.random.default_rng(1).normal(size=(4, 500, 1))
    x = np.clip(x, -0.25, 0.25) - 0.5
    gradients, _ = of(lambda y: np.where(y > 0.3, np.nan, -500 * y))
    moved, shift = refined(x, gradients)[:2]
    assert shift is not None
    assert abs(np.mean(moved)) < 0.01


def test_draws_that_are_right_stay_and_pytrees_stay_pytrees() -> None:
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
