"""Volumes of the prior from births and deaths, and the evidence from those.

The evidence is the integral of the likelihood over the prior, Z = int L dX, where X(L)
is the share of the prior whose likelihood is above L (Skilling 2006, Bayesian Analysis
1(4), 833-859). A run has the likelihoods, but not X; with n points alive, X shrinks by
a factor that is distributed as the largest of n uniform numbers. So histories of the
volume are simulated, the evidence is computed in each, and mean and spread of its
logarithm are the estimate and its error (ibid.).

Within a history the integral is a sum over points of L_i dX_i, where point i represents
the volume between the midpoints to its neighbours. The first one represents all the
volume up to 1, and the last one all down to 0:

    dX_1 = 1 - (X_1 + X_2) / 2,   dX_i = (X_(i-1) - X_(i+1)) / 2,
    dX_n = (X_(n-1) + X_n) / 2,

so that the dX sum to one and the evidence of a constant is that constant.
`blackjax.ns.utils.log_weights` counts only half of the volume before the first point
and half of that after the last one, and it subtracts long sums in the precision of JAX.
Here all is double precision, and a difference is computed from the shrinkages at its
two ends.
"""

from typing import Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from ._dead import DeadPoints


# With so many simulated histories the error has an error of 3 %.
HISTORIES: Final = 500
# The most numbers of an array, for 32 MB.
_MAX_NUMBERS: Final = 4_000_000


@final
class Volumes(NamedTuple):
    """Evidence and weights of a run from simulated histories of the prior volume.

    - `log_evidence`: log Z in each history.
    - `information`: H in each history, in nats.
    - `weights`: the posterior weight of each point, the mean over the histories of
        `L_i dX_i / Z`. They sum to one.
    """

    log_evidence: Float[np.ndarray, " histories"]
    information: Float[np.ndarray, " histories"]
    weights: Float[np.ndarray, " n"]


def generator(key: Key[Array, ""] | UInt32[Array, " words"]) -> np.random.Generator:
    """Seed NumPy's generator by a key of JAX."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return np.random.default_rng([int(word) for word in words])


def simulate(
    dead: DeadPoints, rng: np.random.Generator, histories: int = HISTORIES
) -> Volumes:
    """Simulate histories of the prior volume, and integrate over each.

    The volume shrinks by `log(X_(i-1) / X_i) ~ Exponential(n_i)` when one of `n_i` live
    points dies (Skilling 2006; with plateaus Fowlie, Handley and Su 2020,
    arXiv:2010.13884). The information is `H = sum_i p_i log(L_i / Z)`, where
    `p_i = L_i dX_i / Z` (Skilling 2006).
    """
    n = len(dead)
    logl = dead.loglikelihood.astype(np.float64)
    # Zero times minus infinity would be NaN in the information.
    finite = np.where(np.isneginf(logl), 0.0, logl)
    chunk = max(1, _MAX_NUMBERS // n)
    log_evidence, information, weights = [], [], np.zeros(n)
    for start in range(0, histories, chunk):
        shape = (min(chunk, histories - start), n)
        shrinkage = rng.standard_exponential(shape) / dead.num_live
        # Relative to the largest of `L_i X_i`, since either factor may underflow.
        log_terms = logl - np.cumsum(shrinkage, axis=1)
        scale = log_terms.max(axis=1, keepdims=True)
        terms = np.exp(log_terms - scale) * _relative_elements(shrinkage)
        total = terms.sum(axis=1, keepdims=True)
        log_z = (scale + np.log(total))[:, 0]
        terms /= total
        log_evidence.append(log_z)
        information.append(terms @ finite - log_z)
        weights += terms.sum(axis=0)
    return Volumes(
        np.concatenate(log_evidence), np.concatenate(information), weights / histories
    )


def _relative_elements(
    shrinkage: Float[np.ndarray, "histories n"],
) -> Float[np.ndarray, "histories n"]:
    """Return `dX_i / X_i`, from the differences of log-volumes between neighbours."""
    before = np.expm1(shrinkage)  # (X_(i-1) - X_i) / X_i
    after = np.ones_like(shrinkage)  # (X_i - X_(i+1)) / X_i, where X_(n+1) is 0
    after[:, :-1] = -np.expm1(-shrinkage[:, 1:])
    elements = (before + after) / 2
    elements[:, 0] += before[:, 0] / 2
    elements[:, -1] += 1 / 2
    return elements


def resample(
    weights: Float[np.ndarray, " n"], draws: int, rng: np.random.Generator
) -> Int[np.ndarray, " draws"]:
    """Draw indices in proportion to weights that sum to one, in random order.

    Systematic resampling (Kitagawa 1996, Journal of Computational and Graphical
    Statistics 5(1), 1-25): an index is drawn `draws` times its weight, rounded up or
    down.
    """
    ends = np.cumsum(weights)
    places = (np.arange(draws) + rng.random()) / draws * ends[-1]
    # Rounding may bring the last place to the very end.
    places = np.minimum(places, np.nextafter(ends[-1], 0.0))
    return rng.permutation(np.searchsorted(ends, places, side="right"))
