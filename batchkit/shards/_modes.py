"""Whether draws of one number have two modes.

Coefficients of skewness and kurtosis take a skewed density for a bimodal one, and
ratios to the mean see modes in anything centred at zero. What makes two modes is the
valley between them, so it is looked for: in a kernel density, wide enough that the
noise of as many independent draws makes no valley of its own.
"""

from typing import Final

import numpy as np
from jaxtyping import Float


# A valley counts if the density falls below this part of the lower mode,
VALLEY: Final = 0.6
# if beyond it lies this part of all draws,
SMALLEST_MODE: Final = 0.05
# and if its depth is more than so many standard deviations of noise.
SURE: Final = 4.0
_PLACES: Final = 512
_FEWEST: Final = 50


def is_bimodal(draws: Float[np.ndarray, " draws"], ess: float) -> bool:
    """Whether there is a valley between two modes.

    **Arguments:**

    - `draws`: all draws of one number.
    - `ess`: how many independent ones they are worth. Of less than 50 it cannot be
        said, and is not.
    """
    if not np.all(np.isfinite(draws)) or not ess >= _FEWEST:
        return False
    low, high = np.quantile(draws, [0.001, 0.999])
    width = min(np.std(draws), np.subtract(*np.quantile(draws, [0.75, 0.25])) / 1.349)
    if not (high > low and width > 0):
        return False
    # Silverman (1986, Density Estimation for Statistics and Data Analysis, 3.31).
    kernel = 0.9 * width * min(ess, len(draws)) ** -0.2
    grid = np.linspace(low - 3 * kernel, high + 3 * kernel, _PLACES)
    counts = np.histogram(draws, bins=_edges(grid))[0].astype(np.float64)
    offsets = grid - grid[_PLACES // 2]
    density = np.convolve(counts, np.exp(-0.5 * (offsets / kernel) ** 2), "same")
    # At each place the lower of the highest modes on both sides of it.
    left = np.maximum.accumulate(density)
    right = np.maximum.accumulate(density[::-1])[::-1]
    below = np.cumsum(counts) / max(np.sum(counts), 1.0)
    between = (below > SMALLEST_MODE) & (below < 1 - SMALLEST_MODE)
    lower = np.minimum(left, right)
    is_deep = density < VALLEY * lower
    # In long tails a mode is a few draws. The variance of a sum of kernels is its
    # height over the root of two.
    share = min(ess, len(draws)) / len(draws)
    noise = np.sqrt((lower + density) / 2**0.5 / share)
    return bool(np.any(between & is_deep & (lower - density > SURE * noise)))


def _edges(grid: np.ndarray) -> np.ndarray:
    half = (grid[1] - grid[0]) / 2
    return np.append(grid - half, grid[-1] + half)
