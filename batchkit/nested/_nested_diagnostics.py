"""Reasons to doubt a nested sampling run, how each is measured, and remedies.

The insertion-rank test shows whether new points are draws from above their contours.
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
import math
import zlib
from typing import Final

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

from ..run._names import parameter_names
from ..run._packages import delayed
from ..run._result import Diagnostic
from ._chain_counts import ChainCounts, compared_numbers
from ._dead import DeadPoints


# A sound run fails one in a thousand times.
_MIN_P_VALUE: Final = 1e-3
# A slice that halves its bracket a hundred times is faulty, but one chain in a hundred
# is too few to move the evidence by its error.
_MAX_EXHAUSTED: Final = 0.01
# The evidence counts a copy as a new point. In simulated runs whose points are
# independent but for copies, 1 % of them changed neither mean nor spread of the
# evidence over 150 seeds; 20 % made the spread 1.4 of the error, 50 % 2.9.
_MAX_COPIES: Final = 0.01
# In 10 dimensions an evidence is biased by an error at 0.39, and hardly below 0.31: 50
# seeds for each of three problems, see `benchmarks/inner_steps.py`.
_MAX_CORRELATION: Final = 0.3
_SWAPPED: Final = (
    " If `logprior_fn` and `loglikelihood_fn` are the wrong way round, swap them."
)
# Ties are counted correctly, but most likelihoods have none.
_MAX_TIED: Final = 0.01
# New points all begin at points that stay: few of those make them alike.
_MAX_REPLACED: Final = 0.5


def diagnose(
    dead: DeadPoints,
    *,
    num_inner_steps: int | None = None,
    dim: int | None = None,
    num_delete: int | None = None,
    chains: ChainCounts | None = None,
) -> tuple[Diagnostic, ...]:
    """Look for all reasons to doubt a run.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import DeadPoints
    from batchkit.nested import diagnose

    x = np.linspace(0.0, 1.0, 10)
    dead = DeadPoints(x, x, np.full(10, -np.inf), np.zeros(10))
    assert diagnose(dead, num_inner_steps=5, dim=2, num_delete=5) == ()
    ```

    **Arguments:**

    - `dead`: the points of the run.
    - `num_inner_steps`: the steps of the chain that makes a new point. With None, the
        default of all of these, it is not checked. If `chains` has recorded how far the
        chains moved, that counts instead.
    - `dim`: how many numbers a position has.
    - `num_delete`: how many points were replaced at once.
    - `chains`: the number of chains and of those that failed, and how they moved, see
        `batchkit.nested.ChainCounts`.

    **Returns:**

    What was found, the most serious first.
    """
    found: list[Diagnostic] = []

    def check(name: str, share: float, limit: float, message: str) -> None:
        if share > limit:
            found.append(Diagnostic(name, share, limit, message))

    share = float(np.mean(copies(dead)))
    check(
        "copies",
        share,
        _MAX_COPIES,
        f"{share:.2%} of the points are at the position of another point: chains ended "
        "where they began, and each such point counts as a new draw from the prior. "
        "Evidence and posterior are wrong by an unknown amount, and the run has not "
        "converged. Use more `num_inner_steps`, or an inner kernel that moves. If it "
        "happens late in the run, the contour may be smaller than the positions can "
        "resolve: compute in float64 (`jax_enable_x64`), or stop earlier.",
    )
    p_value = insertion_p_value(dead)
    if p_value < _MIN_P_VALUE:
        message = (
            f"the ranks of new points among the live ones are not uniform (p = "
            f"{p_value:.1g}; a sound run is below {_MIN_P_VALUE:g} one in a thousand "
            "times). New points are not independent draws from the prior above their "
            "contours, and the evidence may be biased. Use more `num_inner_steps`; if "
            "the likelihood has several peaks, also more live points."
        )
        found.append(Diagnostic("insertion ranks", p_value, _MIN_P_VALUE, message))
    if chains is not None and int(chains.chains) > 0:
        share = int(chains.exhausted) / int(chains.chains)
        check(
            "exhausted slices",
            share,
            _MAX_EXHAUSTED,
            f"{share:.2%} of the chains had a slice that found no point above the "
            "contour and stayed in place. Raise `max_shrinkage`. If that does not "
            "help, the likelihood is noisy or differs from call to call, or positions "
            "differ by less than their precision: compute in float64 "
            "(`jax_enable_x64`).",
        )
    if chains is not None and chains.has_moves:
        found += _correlation(chains, dead.positions)
    elif num_inner_steps is not None and dim is not None:
        # The recommendation of `blackjax.nss`.
        enough = max(5, 2 * dim)
        if num_inner_steps < enough:
            message = (
                f"{num_inner_steps} inner steps are few for {dim} dimensions: new "
                "points stay close to those they began at, which biases the evidence "
                f"upward. Use `num_inner_steps={enough}` or more, max(5, 2 dimensions)."
            )
            numbers = float(num_inner_steps), float(enough)
            found.append(Diagnostic("inner steps", *numbers, message))
    if num_delete is not None:
        num_live = dead.num_prior
        check(
            "replacement share",
            num_delete / num_live,
            _MAX_REPLACED,
            f"{num_delete} of {num_live} live points are replaced at once, and the "
            f"chains begin at the other {num_live - num_delete}: new points are alike, "
            "and the uncertainty of the volume is large. Use a `num_delete` of at most "
            "half of the live points, or more live points.",
        )
    share = tied_share(dead)
    check(
        "plateaus",
        share,
        _MAX_TIED,
        f"{share:.1%} of the points share their likelihood with another point. The "
        "evidence allows for that, but slices find no direction on a plateau. If the "
        "likelihood is not meant to be constant anywhere, it is rounded: compute in "
        "float64 (`jax_enable_x64`), or subtract a constant from the log-likelihood."
        + (_SWAPPED if share == 1 else ""),
    )
    return tuple(found)


def _correlation(chains: ChainCounts, positions: PyTree) -> list[Diagnostic]:
    """Check the correlation of new points with the points they began at."""
    correlations = np.asarray(chains.correlations, float)
    mean = float(np.mean(correlations))
    # One of a thousand means over so many independent chains is higher by chance.
    noise = 3 / math.sqrt(int(chains.chains))
    if mean <= _MAX_CORRELATION + noise:
        return []
    names = parameter_names(positions)
    worst = int(np.argmax(correlations))
    name = names[compared_numbers(len(names))[worst]]
    steps = len(chains.distances)
    # For a chain that forgets the same share of its start in each step.
    needed = steps * math.log(_MAX_CORRELATION) / math.log(min(mean, 0.999))
    moved = math.sqrt(max(0.0, float(np.asarray(chains.moved)[-1])))
    message = (
        f"start and end of a chain of {steps} inner steps have a correlation of "
        f"{mean:.2f} ({correlations[worst]:.2f} for {name}), and chains move "
        f"{moved:.2f} of the distance between independent points. New points stay "
        "close to live ones, which biases the evidence upward. Use `num_inner_steps="
        f"{math.ceil(needed)}` or more."
    )
    return [Diagnostic("chain correlation", mean, _MAX_CORRELATION, message)]


def tied_share(dead: DeadPoints) -> float:
    """Return the share of points with the finite likelihood of another, but copies."""
    values = dead.loglikelihood[~copies(dead)]
    _, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    return float(np.sum(counts[counts > 1]) / len(dead))


def copies(dead: DeadPoints) -> Bool[np.ndarray, " n"]:
    """Return True for each point at the position of a point before it."""
    # Only points with equal likelihoods, usually few, have positions to compare.
    _, groups, counts = np.unique(
        dead.loglikelihood, return_inverse=True, return_counts=True
    )
    tied = np.flatnonzero(counts[groups] > 1)
    found = np.zeros(len(dead), bool)
    if len(tied) == 0:
        return found
    rows = [x[tied].reshape(len(tied), -1) for x in jax.tree.leaves(dead.positions)]
    table = np.concatenate([groups[tied, None], *rows], axis=1)
    _, first = np.unique(table, axis=0, return_index=True)
    found[tied] = True
    found[tied[first]] = False
    return found


def insertion_ranks(dead: DeadPoints) -> Float[np.ndarray, " born"]:
    """Return the rank of each new point among the live ones, from 0 (worst) to 1.

    In the order of births; independent and uniform in a sound run. A point that was
    drawn from the whole prior has none.
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
    626-633). The p-value of a run with a single piece is not corrected; it is 1 if no
    point was inserted.
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
