"""What can be wrong with a nested sampling run, how one sees it, and what to do."""

import math
from typing import Final

import jax
import numpy as np
from jaxtyping import Bool, PyTree

from ..run._diagnostic import Diagnostic
from ..run._names import parameter_names
from ._chains_moved import ChainCounts, compared_numbers
from ._dead import DeadPoints
from ._insertion import insertion_p_value


# A sound run fails one in a thousand times.
LOWEST_P_VALUE: Final = 1e-3
# A slice that halves its bracket a hundred times has something wrong with it, but one
# chain in a hundred is too few to move the evidence by its error.
MOST_EXHAUSTED: Final = 0.01
# The evidence counts a copy as a new point. In simulated runs whose points are
# independent but for copies, 1 % of them changed neither mean nor spread of the
# evidence over 150 seeds; 20 % made the spread 1.4 of the error, 50 % 2.9.
MOST_COPIES: Final = 0.01
# In 10 dimensions an evidence leans by an error at 0.39, and hardly any below 0.31: 50
# seeds for each of three problems, see `benchmarks/inner_steps.py`.
MOST_CORRELATED: Final = 0.3
# Points that tie are counted rightly, but most likelihoods have none.
MOST_TIED: Final = 0.01
# New points all begin at points that stay: with few of those, they are alike.
MOST_REPLACED: Final = 0.5


def diagnose(
    dead: DeadPoints,
    *,
    num_inner_steps: int | None = None,
    dim: int | None = None,
    num_delete: int | None = None,
    chains: ChainCounts | None = None,
) -> tuple[Diagnostic, ...]:
    """Looks for everything that may be wrong with a run.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import diagnose

    x = np.linspace(0.0, 1.0, 10)
    dead = bk.DeadPoints(x, x, np.full(10, -np.inf), np.zeros(10))
    assert diagnose(dead, num_inner_steps=5, dim=2, num_delete=5) == ()
    ```

    **Arguments:**

    - `dead`: the points of the run.
    - `num_inner_steps`: the steps of the chain that makes a new point. What is None, by
        default all of these, is not looked at. Where `chains` tells how far they moved,
        that counts instead.
    - `dim`: how many numbers a position has.
    - `num_delete`: how many points were replaced at once.
    - `chains`: how many chains there were, how many had trouble, and how they moved,
        see `batchkit.nested.ChainCounts`.

    **Returns:**

    What was found, the most serious first.
    """
    found = [check_copies(dead), check_insertion_ranks(dead)]
    if chains is not None:
        found.append(check_exhausted(chains))
    if chains is not None and chains.chains > 0 and len(chains.products) > 0:
        found.append(check_correlation(chains, dead.positions))
    elif num_inner_steps is not None and dim is not None:
        found.append(check_inner_steps(num_inner_steps, dim))
    if num_delete is not None:
        found.append(check_replacement(num_delete, dead.num_prior))
    found.append(check_plateaus(dead))
    return tuple(x for x in found if x is not None)


def check_insertion_ranks(dead: DeadPoints) -> Diagnostic | None:
    """Warns if new points were not drawn from all of the volume above their contours.

    See `insertion_p_value`.
    """
    p_value = insertion_p_value(dead)
    if p_value >= LOWEST_P_VALUE:
        return None
    return Diagnostic(
        "insertion ranks",
        p_value,
        LOWEST_P_VALUE,
        f"the ranks of new points among the live ones are not uniform (p = "
        f"{p_value:.1g}; a sound run is below {LOWEST_P_VALUE:g} one in a thousand "
        "times). New points are not independent draws from the prior above their "
        "contours, and the evidence may be biased. Use more `num_inner_steps`; where "
        "the likelihood has several peaks, also more live points.",
    )


def check_copies(dead: DeadPoints) -> Diagnostic | None:
    """Warns if new points are at the positions of other points."""
    share = float(np.mean(copies(dead)))
    if share <= MOST_COPIES:
        return None
    return Diagnostic(
        "copies",
        share,
        MOST_COPIES,
        f"{share:.2%} of the points are at the position of another point: chains ended "
        "where they began, and each such point counts as a new draw from the prior. "
        "Evidence and posterior are wrong by an unknown amount, and the run has not "
        "converged. Use more `num_inner_steps`, or an inner kernel that moves. If it "
        "happens late in the run, the contour may be smaller than the positions can "
        "resolve: compute in float64 (`jax_enable_x64`), or stop earlier.",
    )


def check_correlation(chains: ChainCounts, positions: PyTree) -> Diagnostic | None:
    """Warns if new points are still correlated with the points they began at."""
    correlations = np.asarray(chains.correlations, float)
    mean = float(np.mean(correlations))
    # Of so many independent chains one in a thousand is above it.
    noise = 3 / math.sqrt(int(chains.chains))
    if mean <= MOST_CORRELATED + noise:
        return None
    names = parameter_names(positions)
    worst = int(np.argmax(correlations))
    name = names[compared_numbers(len(names))[worst]]
    steps = len(chains.distances)
    # As of a chain that forgets the same share of its start in each step.
    needed = steps * math.log(MOST_CORRELATED) / math.log(min(mean, 0.999))
    moved = math.sqrt(max(0.0, float(np.asarray(chains.moved)[-1])))
    return Diagnostic(
        "chain correlation",
        mean,
        MOST_CORRELATED,
        f"start and end of a chain of {steps} inner steps have a correlation of "
        f"{mean:.2f} ({correlations[worst]:.2f} for {name}), and chains move "
        f"{moved:.2f} of the distance between independent points. New points stay "
        "close to live ones, which biases the evidence upward. Use `num_inner_steps="
        f"{math.ceil(needed)}` or more.",
    )


def check_exhausted(chains: ChainCounts) -> Diagnostic | None:
    """Warns if slices shrank as often as they may without finding a point."""
    share = _share(chains.exhausted, chains.chains)
    if share <= MOST_EXHAUSTED:
        return None
    return Diagnostic(
        "exhausted slices",
        share,
        MOST_EXHAUSTED,
        f"{share:.2%} of the chains had a slice that found no point above the contour "
        "and stayed in place. Raise `max_shrinkage`. If that does not help, the "
        "likelihood is noisy or differs from call to call, or positions differ by less "
        "than their precision: compute in float64 (`jax_enable_x64`).",
    )


def check_inner_steps(num_inner_steps: int, dim: int) -> Diagnostic | None:
    """Warns if the chains are too short to forget where they began.

    `max(5, 2 dim)` is what `blackjax.nss` recommends: with fewer, new points stay close
    to live ones and the evidence is biased upward.
    """
    enough = max(5, 2 * dim)
    if num_inner_steps >= enough:
        return None
    return Diagnostic(
        "inner steps",
        float(num_inner_steps),
        float(enough),
        f"{num_inner_steps} inner steps are few for {dim} dimensions: new points stay "
        "close to those they began at, which biases the evidence upward. Use "
        f"`num_inner_steps={enough}` or more, max(5, 2 dimensions).",
    )


def check_replacement(num_delete: int, num_live: int) -> Diagnostic | None:
    """Warns if so many points are replaced at once that the rest are too few."""
    share = num_delete / num_live
    if share <= MOST_REPLACED:
        return None
    return Diagnostic(
        "replacement share",
        share,
        MOST_REPLACED,
        f"{num_delete} of {num_live} live points are replaced at once, and the chains "
        f"begin at the other {num_live - num_delete}: new points are alike, and the "
        "volume is known badly. Use a `num_delete` of at most half of the live points, "
        "or more live points.",
    )


def check_plateaus(dead: DeadPoints) -> Diagnostic | None:
    """Warns if many points share their likelihood, other than one of zero.

    Copies are left out: they tie wherever they are.
    """
    share = tied_share(dead)
    if share <= MOST_TIED:
        return None
    return Diagnostic(
        "plateaus",
        share,
        MOST_TIED,
        f"{share:.1%} of the points share their likelihood with another point. The "
        "evidence allows for that, but slices find no direction on a plateau. If the "
        "likelihood is not meant to be constant anywhere, it is rounded: compute in "
        "float64 (`jax_enable_x64`), or subtract a constant from the log-likelihood.",
    )


def tied_share(dead: DeadPoints) -> float:
    """The share of points with the likelihood of another, without infinite ones."""
    values = dead.loglikelihood[~copies(dead)]
    _, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    return float(np.sum(counts[counts > 1]) / len(dead))


def copies(dead: DeadPoints) -> Bool[np.ndarray, " n"]:
    """Which points are at the position of a point before them."""
    # Points at one position have one likelihood, and few others share theirs.
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


def _share(some: object, all_of_them: object) -> float:
    count = int(np.asarray(all_of_them))
    return int(np.asarray(some)) / count if count else 0.0
