"""`plot_trace`: each parameter along a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import PyTree

from ..chains import ChainRun, Convergence
from ..nested import NestedRun
from ..shards import ShardRun
from ._figure import (
    COLOUR_MAP,
    COLOURS,
    GREY,
    Parameter,
    format_draws,
    new_figure,
    parameters_of,
    quantiles,
    tidy,
    weights_of,
)
from ._run import VOLUME, depth_of, evidence_of, relative_mass


if TYPE_CHECKING:
    import matplotlib.figure


_MOST: Final = 12
_BINS: Final = 30
_SHOWN: Final = (0.0005, 0.9995)
_ROW: Final = 1.6
# Points of less relative posterior mass are small and grey.
_VISIBLE: Final = 0.01
_SIDEWAYS: Final[Any] = {"orientation": "horizontal"}
# With more chains colours repeat, and there is no legend.
_NAMED_CHAINS: Final = len(COLOURS)


def plot_trace(
    run: NestedRun | ChainRun | ShardRun,
    names: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    transform: Callable[[PyTree], PyTree] | None = None,
) -> "matplotlib.figure.Figure":
    """Draw each parameter along a run, and its posterior beside it.

    For a nested run, all points are plotted against the prior volume `-ln X`, from the
    whole prior on the left to the peak on the right, coloured by the posterior mass,
    and grey where that is below 1 % of its maximum. The posterior has an axis of its
    own, since it may be far narrower than the prior.
    For chains, the draws of each chain are plotted in order, with marks at the bottom
    for divergent transitions. The combined draws of shards have no marks, since each is
    made from a draw of every shard.

    It needs `pip install 'batchkit-jax[plots]'`.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    run = bk.ChainRun({"mass": draws[..., 0], "shear": draws})
    figure = bk.plot_trace(run, ["mass"], {"mass": "mass [kg]"})
    ```

    **Arguments:**

    - `run`: a nested run, chains, or shards, whose combined draws are shown.
    - `names`: the parameters, by the name of a scalar (`"shear[0]"`) or of a whole
        array (`"shear"`). By default all, if they are at most 12.
    - `labels`: axis labels by name, for example with a unit; names by default.
    - `transform`: a function from one position to the parameters to show, such as those
        whose logarithms were sampled. It is mapped over points or draws in chunks. By
        default the parameters of the positions are shown.

    **Returns:**

    A matplotlib figure that is not registered with pyplot. `savefig` writes it, and
    notebooks display it as the last line of a cell.

    **Raises:**

    `TypeError` if `run` is of another type; `ValueError` if there are more than 12
    parameters and no `names`, if a name is unknown, or if values are not finite;
    `ImportError` if matplotlib is not installed.
    """
    parameters = parameters_of(run, names, labels, _MOST, "plot_trace", transform)
    rows = len(parameters)
    figure = new_figure(10.0, 1.1 + _ROW * rows, "plot_trace", "constrained")
    # The points of a nested run fill the whole prior, where a posterior is a line.
    apart = isinstance(run, NestedRun)
    axes = figure.subplots(
        rows, 2, sharey="none" if apart else "row", width_ratios=(4, 1), squeeze=False
    )
    for (left, right), parameter in zip(axes, parameters, strict=True):
        left.set_ylabel(parameter.label)
        left.sharex(axes[-1, 0])
        left.tick_params(labelbottom=left is axes[-1, 0])
        right.set_xticks([])
        right.tick_params(left=apart)
        right.spines["bottom"].set_visible(False)
        right.spines["left"].set_visible(apart)
        tidy(left)
        tidy(right)
    if isinstance(run, NestedRun):
        _nested(figure, axes, run, parameters)
    else:
        _chains(figure, axes, run, parameters)
    figure.align_ylabels(axes[:, 0])
    return figure


def _nested(
    figure: Any, axes: Any, run: NestedRun, parameters: list[Parameter]
) -> None:
    depth, mass = depth_of(run), relative_mass(run)
    # Points with much mass are drawn last, on top of the others.
    order = np.argsort(mass)
    light, order = np.split(order, [np.searchsorted(mass[order], _VISIBLE)])
    weights = weights_of(run)
    points: Any = None
    given: Any = {"linewidths": 0, "rasterized": True}
    for (left, right), (*_, values) in zip(axes, parameters, strict=True):
        left.scatter(depth[light], values[light], c=GREY, s=2, alpha=0.4, **given)
        points = left.scatter(
            depth[order],
            values[order],
            c=mass[order],
            cmap=COLOUR_MAP,
            vmin=0,
            vmax=1,
            s=6,
            **given,
        )
        heavy = weights > 0
        _posterior(right, values[heavy], weights[heavy])
    axes[-1, 0].set(xlabel=VOLUME, xlim=(0, depth[-1]))
    axes[0, 1].set_title("posterior")
    figure.colorbar(
        points, ax=axes, aspect=12 * len(parameters), fraction=0.03, pad=0.02
    ).set_label("relative posterior mass")
    figure.suptitle(f"{len(run.dead):,} points,  {evidence_of(run)}")


def _chains(
    figure: Any, axes: Any, run: ChainRun | ShardRun, parameters: list[Parameter]
) -> None:
    shape, weights = (run.num_chains, run.num_samples), weights_of(run)
    diverging = run.diverging if isinstance(run, ChainRun) else None
    for (left, right), (*_, values) in zip(axes, parameters, strict=True):
        draws = values.reshape(shape)
        found = Convergence(draws)
        for i, chain in enumerate(draws):
            colour = COLOURS[i % len(COLOURS)]
            left.plot(chain, color=colour, lw=0.6, alpha=0.8, label=f"chain {i}")
            if run.num_chains <= _NAMED_CHAINS:
                heights, edges = np.histogram(chain, _edges(values, weights))
                right.stairs(heights, edges, **_SIDEWAYS, color=colour, lw=1)
        if run.num_chains > _NAMED_CHAINS:
            _posterior(right, values, weights)
        right.set_title(
            f"R-hat {found.rhat:.3f}, ESS {found.ess_bulk:,.0f}", fontsize=9
        )
        # matplotlib's constrained layout collapses for an empty line without clipping.
        if np.any(diverging):
            _, at = np.nonzero(np.asarray(diverging))
            left.plot(
                at,
                np.zeros(len(at)),
                "|",
                color="black",
                ms=8,
                transform=left.get_xaxis_transform(),
                clip_on=False,
            )
    axes[-1, 0].set(xlabel="draw", xlim=(0, max(1, run.num_samples - 1)))
    title = format_draws(run)
    if diverging is not None:
        title += f", {np.sum(diverging):,} divergences"
        title += " (marked below)" if np.any(diverging) else ""
    figure.suptitle(title)
    if run.num_chains <= _NAMED_CHAINS:
        handles, words = axes[0, 0].get_legend_handles_labels()
        place = "outside lower center"
        figure.legend(handles, words, loc=place, ncols=run.num_chains, frameon=False)


def _posterior(axes: Any, values: np.ndarray, weights: np.ndarray) -> None:
    """Draw a horizontal histogram."""
    heights, edges = np.histogram(values, _edges(values, weights), weights=weights)
    axes.stairs(heights, edges, **_SIDEWAYS, color=COLOURS[0], alpha=0.7, fill=True)


def _edges(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the edges of bins over nearly all of the posterior."""
    return np.histogram_bin_edges(quantiles(values, weights, _SHOWN), _BINS)
