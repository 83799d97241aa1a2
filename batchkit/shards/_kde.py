"""The product of densities that are known by draws alone.

A kernel density is a mixture of as many Gaussians as there are draws, and the product
of two of them a mixture of as many as there are pairs: that of draws `x` and `y` lies
at their mean, weighted by the inverse covariances of the kernels, and its weight falls
off with their distance. Two shards at a time, all pairs can be computed and one is
drawn by its weight, so that no chain over indices has to converge.
"""

from typing import Final

import numpy as np
from jaxtyping import Float


# Pairs are the square of it: 32 MB of weights.
_DRAWS: Final = 2000


def product_of_densities(
    factors: list[Float[np.ndarray, "draws dim"]], rng: np.random.Generator
) -> Float[np.ndarray, "draws dim"]:
    """Draws of the product, as many as there are of one factor."""
    count = len(factors[0])
    while len(factors) > 1:
        pairs = zip(factors[::2], factors[1::2], strict=False)
        odd = factors[len(factors) // 2 * 2 :]
        factors = [*odd, *(_product(x, y, count, rng) for x, y in pairs)]
    return factors[0]


def _product(
    x: np.ndarray, y: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    x, of_x = _kernels(_some(x))
    y, of_y = _kernels(_some(y))
    whiten = np.linalg.inv(np.linalg.cholesky(of_x + of_y))
    u, v = x @ whiten.T, y @ whiten.T
    distance = np.sum(u**2, 1)[:, None] + np.sum(v**2, 1) - 2 * u @ v.T
    # Of the nearest pair the weight is one: not all may underflow.
    total = np.cumsum(np.exp(-0.5 * (distance - np.min(distance))))
    # A grid with one random offset has less noise than independent numbers.
    chosen = np.searchsorted(
        total, (np.arange(count) + rng.random()) / count * total[-1]
    )
    i, j = np.divmod(rng.permutation(np.minimum(chosen, total.size - 1)), len(y))
    inverse_x, inverse_y = np.linalg.inv(of_x), np.linalg.inv(of_y)
    covariance = np.linalg.inv(inverse_x + inverse_y)
    means = (x[i] @ inverse_x + y[j] @ inverse_y) @ covariance
    noise = rng.standard_normal(means.shape) @ np.linalg.cholesky(covariance).T
    return means + noise


def _some(x: np.ndarray) -> np.ndarray:
    if len(x) <= _DRAWS:
        return x
    return x[np.linspace(0, len(x) - 1, _DRAWS).astype(int)]


def _kernels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of kernels and their covariance, together with the moments of `x`.

    The width `h = (4 / (n (dim + 2)))^(1 / (dim + 4))` is the best one for a Gaussian
    (Silverman 1986, Density Estimation for Statistics and Data Analysis, 4.14).
    """
    count, dim = x.shape
    squared = (4 / (count * (dim + 2))) ** (2 / (dim + 4))
    squared = min(squared, 0.9)
    mean = np.mean(x, axis=0)
    covariance = np.atleast_2d(np.cov(x.T))
    return mean + np.sqrt(1 - squared) * (x - mean), squared * covariance
