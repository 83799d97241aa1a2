"""Convergence of chains: split R-hat and effective sample sizes, in NumPy.

The formulas are those of Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021,
Bayesian Analysis 16(2), 667-718, arXiv:1903.08008). The programs of blackjax compile
for seconds for each number of chains and draws, to run for milliseconds on arrays that
are on the host by then. The results are those of ArviZ to rounding, except that draws
that are all equal have an effective sample size of 0.
"""

from typing import Final, final

import jax
import numpy as np
from jaxtyping import Float, PyTree

from ..run._extras import delayed


# Half a chain must have a variance.
FEWEST_DRAWS: Final = 4
_TAILS: Final = (0.05, 0.95)


@final
class Convergence:
    """Split R-hat, bulk and tail effective sample size of each number of a position.

    Each is a pytree like one position, of float64. A number is NaN where a draw is not
    finite and where there are fewer than four draws. Where all draws are equal, R-hat
    is NaN and both sizes are 0.

    ```python
    import numpy as np
    from batchkit.chains import Convergence

    draws = np.random.default_rng(0).normal(size=(4, 1000, 2))
    found = Convergence({"x": draws})
    assert np.all(found.rhat["x"] < 1.01)
    assert np.all(found.ess_bulk["x"] > 3000)
    ```
    """

    def __init__(self, samples: PyTree) -> None:
        """**Arguments:**

        - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
        """
        leaves, treedef = jax.tree.flatten(samples)
        results = [_of_leaf(np.asarray(leaf)) for leaf in leaves]
        self.rhat, self.ess_bulk, self.ess_tail = (
            jax.tree.unflatten(treedef, [values[i] for values in results])
            for i in range(3)
        )


def _of_leaf(leaf: np.ndarray) -> np.ndarray:
    chains, draws, *shape = leaf.shape
    columns = leaf.reshape(chains, draws, -1).transpose(2, 0, 1).astype(np.float64)
    values = np.array([_of_column(x) for x in columns]).reshape(-1, 3)
    return values.T.reshape(3, *shape)


def _of_column(x: Float[np.ndarray, "chains draws"]) -> tuple[float, float, float]:
    """Return R-hat, bulk and tail effective sample size of one number."""
    if x.shape[1] < FEWEST_DRAWS or not np.all(np.isfinite(x)):
        return np.nan, np.nan, np.nan
    if np.all(x == x[0, 0]):
        return np.nan, 0.0, 0.0
    scores = _scores(_halves(x))
    below = [_halves(x <= np.quantile(x, p)) for p in _TAILS]
    tails = [_ess(half.astype(np.float64)) for half in below]
    folded = np.abs(_halves(x) - np.median(_halves(x)))
    rhat = max(_rhat(scores), _rhat(_scores(folded)))
    return float(rhat), _ess(scores), min(tails)


def _halves(x: np.ndarray) -> np.ndarray:
    """Split each chain in two halves; a draw in the middle is left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _scores(x: Float[np.ndarray, "chains draws"]) -> Float[np.ndarray, "chains draws"]:
    """Return normal scores of the ranks, `ndtri((rank - 3/8) / (S + 1/4))`.

    Equal draws have the mean of their ranks. The offset is Blom's (1958, Statistical
    Estimates and Transformed Beta-Variables).
    """
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.reshape(x.shape)]
    return delayed("scipy.special").ndtri((ranks - 3 / 8) / (x.size + 1 / 4))


def _rhat(x: Float[np.ndarray, "chains draws"]) -> float:
    """Return `sqrt((B / W + n - 1) / n)`.

    `W` is the mean of the variances within chains, `B` is `n` times the variance of
    their means and `n` the number of draws (Gelman and Rubin 1992, Statistical Science
    7(4), 457-472).
    """
    n = x.shape[1]
    within = np.mean(np.var(x, axis=1, ddof=1))
    between = n * np.var(np.mean(x, axis=1), ddof=1)
    # Chains that never move, each at another place, never agree.
    return float(np.sqrt((between / within + n - 1) / n)) if within > 0 else np.inf


def _ess(x: Float[np.ndarray, "chains draws"]) -> float:
    """Return `S / tau`, with `S` draws and the autocorrelation time `tau`.

    `tau = -1 + 2 sum P_k`, where `P_k` are sums of the autocorrelations, over all
    chains, at the lags `2k` and `2k + 1`: as far as they are positive, and made
    monotone (Geyer 1992, Statistical Science 7(4), 473-483). The even lag after those
    is added once, which helps antithetic chains. `S / tau` is at most `S log10(S)`.
    """
    n = x.shape[1]
    if np.all(x == x[0, 0]):  # no draw is beyond a quantile, since many are equal
        return float(x.size)
    rho = _autocorrelations(x)
    even, odd = rho[0 : n - 1 : 2], rho[1:n:2]
    pairs = even + odd
    # The longest lags are estimated from few draws, so they are not used.
    last = max((n - 3) // 2, 0)
    ended = np.flatnonzero(pairs[: last + 1] <= 0)
    end = int(ended[0]) if ended.size else last
    after = even[end] if even[end] > 0 or pairs[end] >= 0 else 0.0
    tau = -1 + 2 * np.sum(np.minimum.accumulate(pairs[:end])) + after
    return float(x.size / max(tau, 1 / np.log10(x.size)))


def _autocorrelations(x: Float[np.ndarray, "chains draws"]) -> np.ndarray:
    """Return the autocorrelation at each lag, over all chains.

    `1 - (W - mean_m(c_m)) / V`, with `c_m` the autocovariance of chain `m`, by FFT, and
    `V` the variance of all draws, estimated within and between chains.
    """
    chains, n = x.shape
    centered = x - np.mean(x, axis=1, keepdims=True)
    size = 2 ** (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(centered, size, axis=1)) ** 2
    covariance = np.mean(np.fft.irfft(power, size, axis=1)[:, :n], axis=0) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0]
    if chains > 1:
        total = total + np.var(np.mean(x, axis=1), ddof=1)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    return rho
