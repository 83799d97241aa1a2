"""The posterior of each parameter and of each pair."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ..chains import ChainRun
from ..nested import NestedRun
from ..run._extras import extra
from ._figure import COLOURS, new_figure
from ._numbers import median_in_words, scale_of
from ._parameters import parameters_of, quantiles, weights_of
from ._run import evidence_of


if TYPE_CHECKING:
    import matplotlib.figure


_MOST: Final = 10
# What a figure shows of the mass, and by how much more than that.
_SHOWN: Final = (0.003, 0.997)
_MARGIN: Final = 0.1
_LEVELS: Final = (0.68, 0.95)
# In bins.
_SMOOTH: Final = 0.8
_QUANTILES: Final = (0.16, 0.5, 0.84)


def plot_corner(
    run: NestedRun | ChainRun,
    names: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> "matplotlib.figure.Figure":
    """Draws the posterior of each parameter, and of each pair of them.

    The points of a nested run count by their weights, the draws of chains all alike.
    Above each histogram stand the median and how far the 16 % and the 84 % quantiles
    are from it; the contours hold about 68 % and 95 % of the posterior. The figure is
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

    - `run`: a nested run or chains.
    - `names`: which parameters, by the name of a number (`"shear[0]"`) or of all in an
        array (`"shear"`). By default all, if they are at most 10.
    - `labels`: what stands at the axis in place of a name, such as a unit; names by
        default.

    **Returns:**

    A figure of matplotlib that pyplot does not know of. `savefig` writes it, and as the
    last line of a notebook's cell it is shown.

    **Raises:**

    `TypeError` if `run` is something else; `ValueError` if there are more than 10
    parameters and no `names`, if there is none of a name, if values are not finite, or
    if there are fewer points than parameters; `ImportError` if corner is not installed.
    """
    parameters = parameters_of(run, names, labels, _MOST, "plot_corner")
    weights = weights_of(run)
    heavy = weights > 0
    weights = weights[heavy]
    count = len(parameters)
    if len(weights) < count:
        raise ValueError(
            f"plot_corner(run=...): there are {len(weights)} points for {count} "
            "parameters, and a figure needs as many. Choose fewer by `names=`."
        )
    columns = [x.values[heavy] for x in parameters]
    ranges = [_range(x, weights) for x in columns]
    scales = [scale_of(*ends) for ends in ranges]
    side = 1.4 + 2.0 * count * (1 if count <= 5 else 0.8)
    figure = new_figure(side, side, "plot_corner")
    extra("corner", "plots", "plot_corner").corner(
        np.stack(columns, axis=1),
        bins=_bins(1 / np.sum(weights**2)),
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
        axes[i, i].set_title(median_in_words(low, middle, high), fontsize=11)
        scales[i].rewrite(axes[-1, i].xaxis)
        scales[i].rewrite(axes[i, 0].yaxis)
    if count > 1:
        figure.text(0.98, 0.98, _told(run), ha="right", va="top")
    return figure


def _told(run: NestedRun | ChainRun) -> str:
    if isinstance(run, NestedRun):
        of = f"{evidence_of(run)}\n{len(run.dead):,} points worth {run.ess:,.0f}"
    else:
        of = f"{run.num_chains:,} chains of {run.num_samples:,} draws"
    return f"{of}\ncontours: {_LEVELS[0]:.0%} and {_LEVELS[1]:.0%}"


def _bins(size: float) -> int:
    """The number of bins for a number of draws that are worth `size`.

    With these and the smoothing the contours of 1,000 normal draws hold 70 % and 96 %.
    """
    return int(np.clip(3 * size ** (1 / 3), 15, 50))


def _range(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    low, high = quantiles(values, weights, _SHOWN)
    # What never changes is shown, too.
    width = high - low or abs(high) or 1.0
    return low - _MARGIN * width, high + _MARGIN * width
