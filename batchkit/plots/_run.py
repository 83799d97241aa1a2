"""`plot_run`: evidence, live points and insertion ranks of a nested run."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..nested import NestedRun, insertion_ranks
from ..nested._nested_diagnostics import p_value_of_ranks
from ._figure import COLOURS, GREY, new_figure, tidy


if TYPE_CHECKING:
    import matplotlib.figure


VOLUME: Final = r"prior volume, $-\ln X$  [nats]"

_BLUE, _ORANGE, _GREEN, *_ = COLOURS
_MASS: Final = r"posterior mass per unit of $\ln X$"
_BINS: Final = 20
# The mean of at least this number of ranks is nearly normal.
_PIECE: Final = 25


def plot_run(run: NestedRun) -> "matplotlib.figure.Figure":
    """Draw the evidence, the live points and the insertion ranks of a nested run.

    The prior volume is its expected value for the live points, `-ln X = sum 1 / n`.
    The four panels show

    - the likelihood, and the posterior mass per unit of `ln X`, each divided by its
        maximum. If a run stopped too early, the mass is still high at its end.
    - the number of live points.
    - the insertion ranks of new points, which are uniform if the sampler is unbiased,
        with the range of 95 % of the bars of a uniform histogram (Fowlie, Handley and
        Su 2020, arXiv:2006.03371).
    - the same ranks in order of birth, with running means, which show at which point
        of the run the ranks are biased.

    It needs `pip install 'batchkit-jax[plots]'`.

    ```python
    import jax
    import numpy as np
    import batchkit as bk
    from batchkit.nested import DeadPoints

    x = np.random.default_rng(0).uniform(size=500)
    dead = DeadPoints({"x": x}, -x, np.full(500, -np.inf), np.zeros(500))
    run = bk.NestedRun(dead, key=jax.random.key(0))
    figure = bk.plot_run(run)  # figure.savefig("run.png")
    ```

    **Arguments:**

    - `run`: a nested run.

    **Returns:**

    A matplotlib figure that is not registered with pyplot. `savefig` writes it, and
    notebooks display it as the last line of a cell.

    **Raises:**

    `TypeError` if `run` is of another type; `ImportError` if matplotlib is not
    installed.
    """
    if not isinstance(run, NestedRun):
        raise TypeError(
            f"plot_run(run=...): run must be a NestedRun; got {type(run).__name__}. "
            "For chains and shards use `plot_trace`."
        )
    figure = new_figure(10.0, 6.4, "plot_run", "constrained")
    axes = figure.subplot_mosaic(
        [["mass", "ranks"], ["live", "order"]], width_ratios=(3, 2)
    )
    depth = depth_of(run)
    _mass(axes["mass"], run, depth)
    _live(axes["live"], run, depth)
    axes["live"].sharex(axes["mass"])
    axes["mass"].tick_params(labelbottom=False)
    ranks = insertion_ranks(run.dead)
    axes["ranks"].set_title("Insertion ranks")
    axes["order"].set_title("Insertion ranks along the run")
    if len(ranks):
        _ranks(axes["ranks"], ranks, int(run.dead.num_live.max()))
        _order(axes["order"], ranks)
    else:
        for each in (axes["ranks"], axes["order"]):
            each.set(xticks=[], yticks=[])
            text = "no point was replaced"
            each.text(0.5, 0.5, text, ha="center", transform=each.transAxes)
    for each in axes.values():
        tidy(each)
    figure.suptitle(
        f"{evidence_of(run)},  information {run.information:.2f} nats,  "
        f"{len(run.dead):,} points, ESS {run.ess:,.0f}"
    )
    return figure


def evidence_of(run: NestedRun) -> str:
    """Format the evidence and its error for a figure."""
    return rf"$\ln Z = {run.log_evidence:.2f} \pm {run.log_evidence_err:.2f}$"


def format_p_value(p: float) -> str:
    """Format a probability, which is never shown as exactly zero or one."""
    if p < 0.001:
        return "p < 0.001"
    return "p > 0.99" if p > 0.99 else f"p = {p:.2g}"


def depth_of(run: NestedRun) -> np.ndarray:
    """Return the expected `-ln X` at each point: the cumulative sum of `1 / n`.

    Skilling 2006, Bayesian Analysis 1(4), 833-859.
    """
    return np.cumsum(1 / run.dead.num_live)


def relative_mass(run: NestedRun) -> np.ndarray:
    """Return the posterior mass per unit of the log-volume, divided by its maximum.

    A point represents the volume between the midpoints to its neighbours.
    """
    steps = 1 / run.dead.num_live
    widths = (steps + np.append(steps[1:], 1.0)) / 2
    mass = run.weights / widths
    return mass / mass.max()


def _mass(axes: Any, run: NestedRun, depth: np.ndarray) -> None:
    logl = run.dead.loglikelihood.astype(np.float64)
    mass = relative_mass(run)
    axes.fill_between(depth, mass, color=_ORANGE, alpha=0.25, linewidth=0)
    axes.plot(depth, mass, color=_ORANGE, lw=1, label=_MASS)
    # The last point has the largest likelihood, so the exponential cannot overflow.
    axes.plot(depth, np.exp(logl - logl[-1]), color=_BLUE, lw=1.5, label="likelihood")
    # The limit leaves room for the legend above the curves.
    axes.set(ylim=(0, 1.35), yticks=np.linspace(0, 1, 6), xlim=(0, depth[-1]))
    axes.set(ylabel="relative to the maximum", title="Where the evidence is")
    axes.legend(frameon=False, loc="upper left")


def _live(axes: Any, run: NestedRun, depth: np.ndarray) -> None:
    live = run.dead.num_live
    axes.plot(depth, live, color=_GREEN, lw=1, drawstyle="steps-pre")
    axes.set(ylim=(0, 1.08 * live.max()), xlabel=VOLUME)
    axes.set(ylabel="live points", title="Live points")


def _ranks(axes: Any, ranks: np.ndarray, num_live: int) -> None:
    axes.set(xlim=(0, 1), xlabel="insertion rank / live points", ylabel="new points")
    axes.hist(ranks, np.linspace(0, 1, _BINS + 1), color=_BLUE, alpha=0.7)
    mean, share = len(ranks) / _BINS, 1 / _BINS
    spread = 1.96 * np.sqrt(len(ranks) * share * (1 - share))
    axes.axhspan(max(0, mean - spread), mean + spread, color=GREY, alpha=0.3, lw=0)
    axes.axhline(mean, color=GREY, lw=1)
    p = format_p_value(p_value_of_ranks(ranks, num_live))
    axes.set_title(f"Insertion ranks ({p})")


def _order(axes: Any, ranks: np.ndarray) -> None:
    axes.set(xlabel="new points, in order of birth", xlim=(0, len(ranks)))
    axes.set(ylabel="insertion rank / live points", ylim=(0, 1))
    axes.plot(ranks, ".", ms=3, color=_BLUE, alpha=0.3, mew=0, rasterized=True)
    pieces = np.array_split(
        np.arange(len(ranks)), max(1, min(20, len(ranks) // _PIECE))
    )
    # The variance of a uniform number is 1 / 12.
    spread = np.array([1.96 / np.sqrt(12 * len(x)) for x in pieces])
    ends = np.array([x[0] for x in pieces] + [len(ranks)])
    axes.stairs(
        0.5 + spread, ends, baseline=0.5 - spread, color=GREY, alpha=0.3, fill=True
    )
    means = [np.mean(ranks[x]) for x in pieces]
    axes.stairs(means, ends, baseline=None, color=_ORANGE, lw=1.5)
