"""The insertion-rank test: whether new points come from all of the volume they should.

A new point that is drawn from the prior above a contour is equally likely to come
anywhere in the order of the points that are alive above it. So its rank among them is
uniform, and a chain that stays close to where it began, or finds one of two peaks only,
shows as a departure (Fowlie, Handley and Su 2020, arXiv:2006.03371).

The ranks follow from births and deaths alone. The points that are born at one contour
come in one after the other, each ranked among those before it too: then all ranks are
independent, however many are born at once. The order in which they come must not depend
on where they are, and is drawn.

A rank is one of a few numbers, and their distances to a continuous distribution
would make the Kolmogorov-Smirnov test fail by themselves in a long run. A rank `r` of
`m + 1` possible ones therefore becomes `(r + u) / (m + 1)`, where `u` is uniform:
exactly uniform if the rank is. The same `u` decides between equal likelihoods.
"""

import bisect
import zlib

import numpy as np
from jaxtyping import Float

from ..run._extras import delayed
from ._dead import DeadPoints


def insertion_ranks(dead: DeadPoints) -> Float[np.ndarray, " born"]:
    """Where each new point came among the points alive, from 0 (worst) to 1 (best).

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import insertion_ranks

    likelihoods = np.array([0.0, 1.0, 2.0, 3.0, 9.0])
    births = np.array([-np.inf, -np.inf, -np.inf, -np.inf, 0.0])
    dead = bk.DeadPoints(likelihoods, likelihoods, births, np.zeros(5))
    assert insertion_ranks(dead) > 0.75  # the best of four
    ```

    **Arguments:**

    - `dead`: the points of a run.

    **Returns:**

    A number for each point that was not drawn from the whole prior, in the order of
    their births; independent and uniform between 0 and 1 in a sound run.
    """
    # Two calls on one run agree, and what is drawn for two runs is independent.
    data = np.stack([dead.loglikelihood, dead.loglikelihood_birth])
    rng = np.random.default_rng(zlib.crc32(data.tobytes()))
    of_prior = np.isneginf(dead.loglikelihood_birth)
    live = dead.loglikelihood[of_prior].tolist()  # sorted, as all of them are
    values, births = (
        x[~of_prior] for x in (dead.loglikelihood, dead.loglikelihood_birth)
    )
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
    """The p-value of the hypothesis that new points were drawn as they should be.

    The Kolmogorov-Smirnov test of `insertion_ranks` against the uniform distribution,
    on the whole run, and on pieces of as many new points as there were live points: a
    fault at one time is diluted in the whole. The smallest p-value of `k` pieces
    becomes `1 - (1 - p)^k` (Fowlie, Handley and Su 2020, arXiv:2006.03371), and so does
    the smaller one of whole and pieces, with `k = 2` (Sidak 1967, Journal of the
    American Statistical Association 62, 626-633). Of a run with one piece, that is the
    whole and its p-value is taken as it is.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import insertion_p_value

    # Nothing but draws from the prior: no point was ever inserted.
    x = np.linspace(0.0, 1.0, 10)
    dead = bk.DeadPoints(x, x, np.full(10, -np.inf), np.zeros(10))
    assert insertion_p_value(dead) == 1.0
    ```

    **Arguments:**

    - `dead`: the points of a run.

    **Returns:**

    The p-value. 1 if no point was inserted.
    """
    return p_value_of(insertion_ranks(dead), int(dead.num_live.max()))


def p_value_of(ranks: Float[np.ndarray, " born"], length: int) -> float:
    """The same from the ranks, in pieces of at least `length` ranks."""
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
    stats = delayed("scipy.stats")
    return float(stats.kstest(ranks, "uniform").pvalue)
