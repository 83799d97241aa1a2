"""The insertion-rank test of whether new points are draws from above their contours.

The rank of a new point among the live points above its contour is uniform if it is
drawn from the prior there. A chain that stays close to where it began, or finds one of
two peaks only, shows as a departure (Fowlie, Handley and Su 2020, arXiv:2006.03371).

The ranks follow from births and deaths alone. The points that are born at one contour
are inserted one after the other, each ranked among those before it too: then all ranks
are independent, however many are born at once. The order of insertion must not depend
on their likelihoods, and is drawn.

Ranks are discrete, and their distance to a continuous distribution alone would fail the
Kolmogorov-Smirnov test in a long run. A rank `r` of `m + 1` possible ones therefore
becomes `(r + u) / (m + 1)`, where `u` is uniform: exactly uniform if the rank is. The
same `u` decides between equal likelihoods.
"""

import bisect
import zlib

import numpy as np
from jaxtyping import Float

from ..run._extras import delayed
from ._dead import DeadPoints


def insertion_ranks(dead: DeadPoints) -> Float[np.ndarray, " born"]:
    """Return the rank of each new point among the live ones, from 0 (worst) to 1.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import DeadPoints
    from batchkit.nested import insertion_ranks

    likelihoods = np.array([0.0, 1.0, 2.0, 3.0, 9.0])
    births = np.array([-np.inf, -np.inf, -np.inf, -np.inf, 0.0])
    dead = DeadPoints(likelihoods, likelihoods, births, np.zeros(5))
    assert insertion_ranks(dead) > 0.75  # the best of four
    ```

    **Arguments:**

    - `dead`: the points of a run.

    **Returns:**

    A number for each point that was not drawn from the whole prior, in the order of
    their births; independent and uniform between 0 and 1 in a sound run.
    """
    # From a seed of the run, so that calls agree and two runs are independent.
    data = np.stack([dead.loglikelihood, dead.loglikelihood_birth])
    rng = np.random.default_rng(zlib.crc32(data.tobytes()))
    of_prior = np.isneginf(dead.loglikelihood_birth)
    live = dead.loglikelihood[of_prior].tolist()  # sorted, as all of them are
    values, births = data[:, ~of_prior]
    order = np.lexsort((rng.permutation(len(births)), births))
    chance = rng.random(len(births))
    ranks = np.empty(len(births))
    pairs = zip(values[order].tolist(), births[order].tolist(), strict=True)
    for i, (value, birth) in enumerate(pairs):
        del live[: bisect.bisect_right(live, birth)]
        first, last = bisect.bisect_left(live, value), bisect.bisect_right(live, value)
        ranks[i] = (first + chance[i] * (last - first + 1)) / (len(live) + 1)
        live.insert(last, value)
    return ranks


def insertion_p_value(dead: DeadPoints) -> float:
    """Return the p-value of the hypothesis that insertion ranks are uniform.

    The Kolmogorov-Smirnov test of `insertion_ranks`, on the whole run, and on pieces of
    as many new points as there were live points: a fault at one time is diluted in the
    whole. The smallest p-value of `k` pieces becomes `1 - (1 - p)^k` (Fowlie, Handley
    and Su 2020, arXiv:2006.03371), and so does the smaller one of whole and pieces,
    with `k = 2` (Sidak 1967, Journal of the American Statistical Association 62,
    626-633). The p-value of a run with a single piece is not corrected.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import DeadPoints
    from batchkit.nested import insertion_p_value

    # Nothing but draws from the prior: no point was ever inserted.
    x = np.linspace(0.0, 1.0, 10)
    dead = DeadPoints(x, x, np.full(10, -np.inf), np.zeros(10))
    assert insertion_p_value(dead) == 1.0
    ```

    **Arguments:**

    - `dead`: the points of a run.

    **Returns:**

    The p-value; 1 if no point was inserted.
    """
    return p_value_of_ranks(insertion_ranks(dead), int(dead.num_live.max()))


def p_value_of_ranks(ranks: Float[np.ndarray, " born"], length: int) -> float:
    """Return the p-value of ranks, in pieces of at least `length` ranks."""
    if len(ranks) == 0:
        return 1.0
    whole = _p_value(ranks)
    count = max(1, len(ranks) // length)
    if count == 1:
        return whole
    smallest = min(_p_value(piece) for piece in np.array_split(ranks, count))
    return _of_smallest(min(whole, _of_smallest(smallest, count)), 2)


def _of_smallest(p_value: float, count: int) -> float:
    """`1 - (1 - p)^k`, without the rounding of `1 - p`."""
    return float(-np.expm1(count * np.log1p(-min(p_value, 1 - 1e-16))))


def _p_value(ranks: Float[np.ndarray, " born"]) -> float:
    return float(delayed("scipy.stats").kstest(ranks, "uniform").pvalue)
