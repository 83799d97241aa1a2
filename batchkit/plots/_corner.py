"""`plot_corner`: the posterior of each parameter and of each pair."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import PyTree

from ..chains import ChainRun
from ..nested import NestedRun
from ..run._packages import extra
from ..shards import ShardRun
from ._figure import (
    COLOURS,
    format_draws,
    format_median,
    new_figure,
    parameters_of,
    quantiles,
    scale_of,
    weights_of,
)
from ._run import evidence_of


if TYPE_CHECKING:
    import matplotlib.figure


_MOST: Final = 10
# The range of an axis: these quantiles, and a margin relative to their distance.
_SHOWN: Final = (0.003, 0.997)
_MARGIN: Final = 0.1
_LEVELS: Final = (0.68, 0.95)
# The width of the Gaussian filter, in bins.
_SMOOTH: Final = 0.8
_QUANTILES: Final = (0.16, 0.5, 0.84)


def plot_corner(
    run: NestedRun | ChainRun | ShardRun,
    names: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    transform: Callable[[PyTree], PyTree] | None = None,
) -> "matplotlib.figure.Figure":
    """Draw the posterior of each parameter, and of each pair of them.

    The points of a nested run are weighted, draws have equal weights.
    The title of each histogram has the median and its distances to the 16 % and 84 %
    quantiles; the contours contain about 68 % and 95 % of the posterior. The figure is
    made by [corner](https://corner.readthedocs.io).

    It needs `pip install 'batchkit-jax[plots]'`.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    run = bk.ChainRun({"mass": draws[..., 0], "shear": draws})
    figure = bk.plot_corner(run, ["mass", "shear"], {"mass": "mass [kg]"})
    ```

    **Arguments:**

    - `run`: a nested run, chains, or shards, whose combined draws are shown.
    - `names`: the parameters, by the name of a scalar (`"shear[0]"`) or of a whole
        array (`"shear"`). By default all, if they are at most 10.
    - `labels`: axis labels by name, for example with a unit; names by default.
    - `transform`: a function from one position to the parameters to show, such as those
        whose logarithms were sampled. It is mapped over points or draws in chunks. By
        default the parameters of the positions are shown.

    **Returns:**

    A matplotlib figure that is not registered with pyplot. `savefig` writes it, and
    notebooks display it as the last line of a cell.

    **Raises:**

    `TypeError` if `run` is of another type; `ValueError` if there are more than 10
    parameters and no `names`, if a name is unknown, if values are not finite, or if
    there are fewer points than parameters; `ImportError` if corner is not installed.
    """
    parameters = parameters_of(run, names, labels, _MOST, "plot_corner", transform)
    weights = weights_of(run)
    # Points without weight would only widen the ranges, and may have NaN.
    heavy = weights > 0
    weights = weights[heavy]
    count = len(parameters)
    if len(weights) < count:
        raise ValueError(
            f"plot_corner(run=...): there are {len(weights)} points for {count} "
            "parameters, but a figure needs at least as many points as parameters. "
            "Choose fewer parameters with `names=`."
        )
    columns = [x.values[heavy] for x in parameters]
    ranges = [_range(x, weights) for x in columns]
    scales = [scale_of(*ends) for ends in ranges]
    # Bins and filter are narrow enough that the contours of 1,000 normal draws contain
    # 70 % and 96 %.
    size = 1 / np.sum(weights**2)
    side = 1.4 + 2.0 * count * (1 if count <= 5 else 0.8)
    figure = new_figure(side, side, "plot_corner")
    extra("corner", "plots", "plot_corner").corner(
        np.stack(columns, axis=1),
        bins=int(np.clip(3 * size ** (1 / 3), 15, 50)),
        range=ranges,
        weights=weights,
        color=COLOURS[0],
        smooth=_SMOOTH,
        labels=[
            scale.label(x.label) for x, scale in zip(parameters, scales, strict=True)
        ],
        levels=_LEVELS,
        plot_datapoints=False,
        plot_density=False,
        fill_contours=True,
        quiet=True,
        max_n_ticks=4,
        use_math_text=True,
        hist_kwargs={"linewidth": 1.5},
        fig=figure,
    )
    axes = np.array(figure.axes).reshape(count, count)
    for i, column in enumerate(columns):
        low, middle, high = quantiles(column, weights, _QUANTILES)
        axes[i, i].set_title(format_median(low, middle, high), fontsize=11)
        scales[i].rewrite(axes[-1, i].xaxis)
        scales[i].rewrite(axes[i, 0].yaxis)
    if isinstance(run, NestedRun):
        caption = f"{evidence_of(run)}\n{len(run.dead):,} points, ESS {run.ess:,.0f}"
    else:
        caption = format_draws(run)
    if count > 1:
        caption += f"\ncontours: {_LEVELS[0]:.0%} and {_LEVELS[1]:.0%}"
        figure.text(0.98, 0.98, caption, ha="right", va="top")
    return figure


def _range(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    low, high = quantiles(values, weights, _SHOWN)
    # A constant parameter needs a range, too.
    width = high - low or abs(high) or 1.0
    return low - _MARGIN * width, high + _MARGIN * width
