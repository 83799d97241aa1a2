"""`plot_corner`: the posterior of each parameter and of each pair."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Float, PyTree

from ..chains import ChainRun
from ..nested import NestedRun
from ..run._names import join_few, named_numbers
from ..run._over_draws import Transform
from ..shards import ShardRun
from ._figure import (
    COLOURS,
    GREY,
    Parameter,
    Scale,
    format_draws,
    format_median,
    names_of,
    new_figure,
    parameters_of,
    quantiles,
    scale_of,
    tidy,
    weights_of,
)
from ._run import evidence_of


if TYPE_CHECKING:
    import matplotlib.figure


_Run: TypeAlias = NestedRun | ChainRun | ShardRun

_MOST: Final = 10
# The range of an axis: these quantiles, and a margin relative to their distance.
_SHOWN: Final = (0.003, 0.997)
_MARGIN: Final = 0.1
# Shares within one and two standard deviations of a Gaussian in two dimensions.
_LEVELS: Final = tuple(1 - np.exp(-0.5 * k**2) for k in (1, 2))
_QUANTILES: Final = (0.16, 0.5, 0.84)
# Cells of a density, in coordinates without correlation and of a contour plot.
_CELLS: Final = 80
_PIXELS: Final = 200
# Inches, of one of several histograms and of a single one.
_PANEL: Final = 1.9
_SINGLE: Final = 3.2
_MARGINS: Final = (0.95, 0.75, 0.15)  # left, bottom, right
_LINE: Final = 0.2
_LETTER: Final = 0.08
# Names with more letters than this are written smaller.
_LETTERS: Final = 24


def plot_corner(
    run: NestedRun
    | ChainRun
    | ShardRun
    | Mapping[str, NestedRun | ChainRun | ShardRun],
    names: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    truths: PyTree = None,
    transform: Callable[[PyTree], PyTree] | None = None,
) -> "matplotlib.figure.Figure":
    """Draw the posterior of each parameter, and of each pair of them.

    The points of a nested run are weighted, draws have equal weights. The title of each
    histogram has the median and its distances to the 16 % and 84 % quantiles. The
    contours contain 39 % and 86 % of the posterior: one and two standard deviations of
    a Gaussian in two dimensions. Their shape is that of a kernel density; its levels
    are those above which the points have these shares of the weight.

    It needs `pip install 'batchkit-jax[plots]'`.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    run = bk.ChainRun({"mass": draws[..., 0], "shear": draws})
    figure = bk.plot_corner(run, ["mass", "shear"], {"mass": "mass [kg]"})

    other = bk.ChainRun({"mass": 1.5 * draws[..., 0], "shear": draws + 1})
    truths = {"mass": 0.0, "shear": np.zeros(2)}
    figure = bk.plot_corner({"first": run, "second": other}, truths=truths)
    ```

    **Arguments:**

    - `run`: a nested run, chains, or shards, whose combined draws are shown. Several
        runs are drawn over each other as a dict from the names in the legend.
    - `names`: the parameters, by the name of a scalar (`"shear[0]"`) or of a whole
        array (`"shear"`). By default all, if they are at most 10; several runs must
        have the same.
    - `labels`: axis labels by name, for example with a unit; names by default.
    - `truths`: finite values to mark by lines, such as those that data were simulated
        from: a pytree like the parameters, or a dict of some of them by name.
    - `transform`: a function from one position to the parameters to show, such as those
        whose logarithms were sampled. It is mapped over points or draws in chunks. By
        default the parameters of the positions are shown.

    **Returns:**

    A matplotlib figure that is not registered with pyplot. `savefig` writes it, and
    notebooks display it as the last line of a cell.

    **Raises:**

    `TypeError` if `run` is of another type; `ValueError` if there are more than 10
    parameters and no `names`, if a name is unknown, if values are not finite, if there
    are fewer points than parameters, or if there are more runs than colours, 6;
    `ImportError` if matplotlib is not installed.
    """
    runs = run if isinstance(run, Mapping) else {"": run}
    if not 1 <= len(runs) <= len(COLOURS):
        raise ValueError(
            f"plot_corner(run=...): there are {len(runs)} runs, but a figure shows at "
            f"least one and at most {len(COLOURS)}."
        )
    layers: list[_Layer] = []
    for (name, each), colour in zip(runs.items(), COLOURS, strict=False):
        parameters = parameters_of(each, names, labels, _MOST, "plot_corner", transform)
        layers.append(_layer(name, each, parameters, colour))
    parameters = layers[0].parameters
    for layer in layers:
        differing = {x.name for x in layer.parameters} ^ {x.name for x in parameters}
        if differing:
            raise ValueError(
                f"plot_corner(run=...): not all runs have {min(differing)!r}. Choose "
                "parameters that all of them have with `names=`."
            )
    first = next(iter(runs.values()))
    marks = _marks(truths, [x.name for x in parameters], first, transform)
    count = len(parameters)
    ranges = [_range(layers, i, marks[i]) for i in range(count)]
    figure, axes = _grid(count, [x.caption for x in layers if len(layers) > 1])
    # Several filled contours over each other would hide whose they are.
    fill = 1.0 if len(layers) == 1 else 0.4
    for i in range(count):
        for j in range(i):
            for layer in layers:
                _contours(axes[i, j], layer, j, i, fill)
            _mark(axes[i, j], marks[j], marks[i])
            axes[i, j].set(xlim=ranges[j], ylim=ranges[i])
        for layer in layers:
            _histogram(axes[i, i], layer, i)
        _mark(axes[i, i], marks[i], None)
        axes[i, i].set(xlim=ranges[i], yticks=[])
        axes[i, i].set_ylim(bottom=0)
        _title(axes[i, i], layers, i)
    scales = [scale_of(*ends) for ends in ranges]
    _label(axes, [x.label for x in parameters], scales)
    _caption(figure, layers, count)
    return figure


@final
class _Layer(NamedTuple):
    """One run of a figure: the points with a weight."""

    name: str
    parameters: list[Parameter]
    weights: Float[np.ndarray, " n"]
    colour: str
    caption: str

    @property
    def size(self) -> float:
        """The effective sample size (Kish 1965)."""
        return 1 / np.sum(self.weights**2)

    def median(self, i: int) -> str:
        values = self.parameters[i].values
        return format_median(*quantiles(values, self.weights, _QUANTILES))


def _layer(name: str, run: _Run, parameters: list[Parameter], colour: str) -> _Layer:
    weights = weights_of(run)
    # Points without weight would only widen the ranges, and may have NaN.
    heavy = weights > 0
    weights = weights[heavy]
    if len(weights) < len(parameters):
        raise ValueError(
            f"plot_corner(run=...): there are {len(weights)} points for "
            f"{len(parameters)} parameters, but a figure needs at least as many points "
            "as parameters. Choose fewer parameters with `names=`."
        )
    if isinstance(run, NestedRun):
        caption = f"{evidence_of(run)}\n{len(run.dead):,} points, ESS {run.ess:,.0f}"
    else:
        caption = format_draws(run)
    if name:
        caption = f"{name}: {caption}".replace("\n", ", ")
    parameters = [x._replace(values=x.values[heavy]) for x in parameters]
    return _Layer(name, parameters, weights, colour, caption)


def _marks(
    truths: PyTree, names: list[str], run: _Run, transform: Transform
) -> list[float | None]:
    """Return the true value of each parameter, None where there is none."""
    found = {} if truths is None else dict(named_numbers(truths))
    every = names_of(run, "plot_corner", transform)
    if unknown := found.keys() - set(every):
        raise ValueError(
            f"plot_corner(truths=...): there is no parameter {min(unknown)!r}. The "
            f"parameters are {join_few(every, 20)}."
        )
    for name, value in found.items():
        if not np.isfinite(value):
            raise ValueError(
                f"plot_corner(truths=...): the true value of {name} must be finite; "
                f"got {value}. Leave it out if it is not known."
            )
    return [found.get(name) for name in names]


def _range(layers: list[_Layer], i: int, mark: float | None) -> tuple[float, float]:
    ends = [quantiles(x.parameters[i].values, x.weights, _SHOWN) for x in layers]
    shown = [*np.ravel(ends), *([] if mark is None else [mark])]
    low, high = min(shown), max(shown)
    # A constant parameter needs a range, too.
    width = high - low or abs(high) or 1.0
    return low - _MARGIN * width, high + _MARGIN * width


def _grid(count: int, legend: list[str]) -> tuple[Any, np.ndarray]:
    """Make a figure with room for a legend, and its axes up to the diagonal."""
    left, bottom, right = _MARGINS
    panel = _PANEL if count > 1 else _SINGLE
    # Above the first histogram are its title, the medians of several runs, and, where
    # no panel is missing beside it, the legend.
    top = _LINE * (2.5 + max(len(legend), 0.5))
    if legend and count < 4:
        top += _LINE * (len(legend) + 1.5)
    longest = max((_LETTER * len(x) for x in legend), default=0.0)
    width = max(left + panel * count + right, longest + 0.8)
    height = bottom + panel * count + top
    figure = new_figure(width, height, "plot_corner")
    spec = figure.add_gridspec(
        *(count, count),
        left=left / width,
        right=(left + panel * count) / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=0.06,
        hspace=0.06,
    )
    axes = np.full((count, count), None, object)
    for i in range(count):
        for j in range(i + 1):
            axes[i, j] = figure.add_subplot(
                spec[i, j], sharex=None if i == j else axes[j, j]
            )
            tidy(axes[i, j])
            axes[i, j].tick_params(labelbottom=i == count - 1, labelleft=j == 0 < i)
    return figure, axes


def _histogram(axes: Any, layer: _Layer, i: int) -> None:
    bins = int(np.clip(3 * layer.size ** (1 / 3), 15, 50))
    values = layer.parameters[i].values
    ends = _range([layer], i, None)
    counts, edges = np.histogram(values, bins, ends, weights=layer.weights)
    # Long tails beyond the range count as well.
    heights = counts / np.diff(edges)
    axes.stairs(heights, edges, color=layer.colour, lw=1.5, label=layer.name)


def _contours(axes: Any, layer: _Layer, j: int, i: int, fill: float) -> None:
    points = np.stack([layer.parameters[j].values, layer.parameters[i].values])
    density = _density(points, layer.weights, layer.size)
    if density is None:
        axes.plot(*points, ".", ms=2, color=layer.colour, rasterized=True)
        return
    at_points = density(points)
    order = np.argsort(-at_points)
    share = np.cumsum(layer.weights[order])
    places = np.searchsorted(share, _LEVELS[::-1]).clip(max=len(order) - 1)
    levels = at_points[order[places]]
    # Over the range of this run: another one may be far wider.
    ends = [_range([layer], k, None) for k in (j, i)]
    grid = np.meshgrid(*[np.linspace(*x, _PIXELS) for x in ends])
    heights = density(np.stack([np.ravel(x) for x in grid])).reshape(grid[0].shape)
    # Contours of many points with one density would coincide.
    levels = np.unique(levels[levels > 0])
    for k, level in enumerate(levels):
        top = levels[k + 1] if k + 1 < len(levels) else np.inf
        alpha = fill * (0.2 + 0.25 * k)
        axes.contourf(*grid, heights, [level, top], colors=layer.colour, alpha=alpha)
    axes.contour(*grid, heights, levels, colors=layer.colour, linewidths=1.2)


def _density(
    points: Float[np.ndarray, "2 n"], weights: Float[np.ndarray, " n"], size: float
) -> Callable[[Float[np.ndarray, "2 m"]], Float[np.ndarray, " m"]] | None:
    """Estimate a density by a Gaussian kernel of the points' own covariance.

    The width of the kernel is that of Scott (1992, Multivariate Density Estimation,
    section 6.3), `size^(-1/6)`. Without the covariance a narrow ridge would get as wide
    as the kernel. Points are counted in cells before the kernel is applied, which takes
    a thousandth of the time of a sum over all of them. It is None where the points are
    on a line.
    """
    from scipy.interpolate import RegularGridInterpolator
    from scipy.ndimage import gaussian_filter

    # From the first point on, so that a constant has a spread of exactly zero.
    centre = points[:, :1]
    centre = centre + ((points - centre) @ weights)[:, None]
    spread = np.sqrt(weights @ (points - centre).T ** 2)
    if not np.all(spread > 0):
        return None
    scaled = (points - centre) / spread[:, None]
    values, vectors = np.linalg.eigh((weights * scaled) @ scaled.T)
    if values[0] < 1e-12:
        return None
    whiten = (vectors / np.sqrt(values)).T / spread
    white = whiten @ (points - centre)
    width = size ** (-1 / 6)
    ends = [quantiles(x, weights, (0.0005, 0.9995)) for x in white]
    edges = [np.linspace(a - 4 * width, b + 4 * width, _CELLS + 1) for a, b in ends]
    counts, *_ = np.histogram2d(white[0], white[1], edges, weights=weights)
    smooth = gaussian_filter(
        counts, [width / (x[1] - x[0]) for x in edges], mode="constant"
    )
    centres = [(x[1:] + x[:-1]) / 2 for x in edges]
    at = RegularGridInterpolator(centres, smooth, bounds_error=False, fill_value=0.0)
    return lambda points: at((whiten @ (points - centre)).T)


def _mark(axes: Any, across: float | None, up: float | None) -> None:
    """Draw the true values as lines, and as a point where there are two."""
    style: Any = {"color": GREY, "lw": 1, "zorder": 3}
    if across is not None:
        axes.axvline(across, **style)
    if up is not None:
        axes.axhline(up, **style)
    if across is not None and up is not None:
        axes.plot(across, up, "s", ms=4, color=GREY, zorder=3)


def _title(axes: Any, layers: list[_Layer], i: int) -> None:
    """Write the name of a parameter, and its median in each run, above an axis."""
    label = layers[0].parameters[i].label
    size = _font_size(label)
    if len(layers) == 1:
        axes.set_title(f"{label}\n{layers[0].median(i)}", fontsize=size, pad=4)
        return
    height = 72 * _LINE
    axes.set_title(label, fontsize=size, pad=4 + height * len(layers))
    for line, layer in enumerate(reversed(layers)):
        axes.annotate(
            layer.median(i),
            (0.5, 1.0),
            xytext=(0, 4 + height * line),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=layer.colour,
        )


def _font_size(label: str) -> float:
    return 10 * min(1.0, _LETTERS / max(len(label), 1))


def _label(axes: np.ndarray, labels: list[str], scales: list[Scale]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = len(labels) - 1
    ticks: Any = {"nbins": 4 if last < 5 else 3, "prune": "both"}
    for i, (label, scale) in enumerate(zip(labels, scales, strict=True)):
        words, size = scale.label(label), _font_size(label)
        axes[last, i].set_xlabel(words, fontsize=size)
        axes[last, i].xaxis.set_major_locator(MaxNLocator(**ticks))
        axes[last, i].tick_params(axis="x", rotation=30, labelsize=9)
        axes[i, 0].tick_params(axis="y", labelsize=9)
        scale.rewrite(axes[last, i].xaxis)
        if i:
            axes[i, 0].set_ylabel(words, fontsize=size)
            scale.rewrite(axes[i, 0].yaxis)
        for j in range(i):
            axes[i, j].yaxis.set_major_locator(MaxNLocator(**ticks))
    axes[last, 0].figure.align_labels([x for x in axes.flat if x is not None])


def _caption(figure: Any, layers: list[_Layer], count: int) -> None:
    """Write what was drawn into the corner above the diagonal."""
    from matplotlib.lines import Line2D

    levels = f"contours: {_LEVELS[0]:.0%} and {_LEVELS[1]:.0%}" if count > 1 else None
    if len(layers) == 1:
        if levels:
            text = f"{layers[0].caption}\n{levels}"
            figure.text(0.99, 0.99, text, ha="right", va="top")
        return
    lines = [Line2D([], [], color=x.colour) for x in layers]
    figure.legend(
        lines,
        [x.caption for x in layers],
        title=levels,
        loc="upper right",
        frameon=False,
    )
