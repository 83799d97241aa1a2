"""Figures made without pyplot: their axes, and the parameters that they show.

Such a figure has no window and needs no display, and pyplot's current figure and its
settings do not change. The user's own settings, such as the font size, apply to it.
Notebooks display it, see `_shown_figure.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float, PyTree

from ..chains import ChainRun
from ..nested import NestedRun
from ..run._names import columns, join_few, leaves, pooled
from ..run._over_draws import Transform, transformed
from ..run._packages import extra
from ..run._summary import decimal_order
from ..shards import ShardRun


# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY: Final = "#777777"
COLOUR_MAP: Final = "viridis_r"

_MINUS: Final = "\N{MINUS SIGN}"
# An axis gets an offset if it is narrower than this fraction of its numbers.
_NARROW: Final = 1e-3
# The largest number of names in a message.
_MAX_NAMES: Final = 20


def new_figure(width: float, height: float, caller: str, layout: Any = None) -> Any:
    """Make a figure with a width and height in inches."""
    extra("matplotlib.figure", "plots", caller)
    # It imports matplotlib, which is an optional dependency.
    from ._shown_figure import ShownFigure

    return ShownFigure(figsize=(width, height), layout=layout)


def tidy(axes: Any) -> None:
    """Remove the top and right borders, which carry no scale."""
    axes.spines[["top", "right"]].set_visible(False)


@final
class Scale(NamedTuple):
    """The format of the numbers at an axis: `(x - origin) / 10^power`."""

    origin: float
    power: int

    def label(self, label: str) -> str:
        """Return the label of an axis, with the offset and the power."""
        if self.origin:
            sign = "+" if self.origin < 0 else _MINUS
            label = f"{label} {sign} {abs(self.origin):.15g}"
        if self.power:
            label = f"({label})" if self.origin else label
            label = f"{label} / $10^{{{self.power}}}$"
        return label

    def rewrite(self, axis: Any) -> None:
        """Format the tick labels of an axis, unless it has none."""
        # An axis without labels has a formatter whose labels are all empty.
        is_bare = axis.get_major_formatter().format_ticks([0.0]) == [""]
        if self == (0.0, 0) or is_bare:
            return
        axis.set_major_formatter(
            lambda x, _: f"{(x - self.origin) / 10.0**self.power:.6g}".replace(
                "-", _MINUS
            )
        )


def scale_of(low: float, high: float) -> Scale:
    """Choose the format for the numbers of an axis with these limits."""
    width, middle = high - low, (low + high) / 2
    origin = 0.0
    if 0 < width < _NARROW * abs(middle):
        origin = round(middle, -decimal_order(width))
    return Scale(origin, _power(max(abs(low - origin), abs(high - origin))))


def format_median(low: float, middle: float, high: float) -> str:
    """Format a median with its errors, to two digits of the smaller error."""
    errors = (high - middle, middle - low)
    narrow = max(errors) < _NARROW * abs(middle)
    power = 0 if narrow else _power(max(abs(middle), *errors))
    scale = 10.0**power
    smallest = min((x / scale for x in errors if x > 0), default=1.0)
    digits = int(np.clip(1 - decimal_order(smallest), 0, 12))
    value, up, down = (
        # Adding zero turns -0.0 into 0.0.
        f"{round(x / scale, digits) + 0.0:.{digits}f}"
        for x in (middle, *errors)
    )
    times = rf" \times 10^{{{power}}}" if power else ""
    return rf"${value}^{{+{up}}}_{{-{down}}}{times}$"


def _power(largest: float) -> int:
    """Return the power of ten to factor out; 0 if the numbers are short without."""
    power = decimal_order(largest) if largest > 0 else 0
    return 0 if -3 < power < 5 else power


@final
class Parameter(NamedTuple):
    """One scalar of a position, with its value at each point or draw."""

    name: str
    label: str
    values: Float[np.ndarray, " n"]


def weights_of(run: NestedRun | ChainRun | ShardRun) -> Float[np.ndarray, " n"]:
    """Return the weight of each point or draw; they sum to one."""
    if isinstance(run, NestedRun):
        return run.weights
    count = run.num_chains * run.num_samples
    return np.full(count, 1 / count)


def format_draws(run: ChainRun | ShardRun) -> str:
    """Return the number of chains, draws and shards in words."""
    words = f"{run.num_chains:,} chains of {run.num_samples:,} draws"
    if isinstance(run, ShardRun):
        words += f", combined from {len(run.used):,} shards"
        if run.verdict == "unreliable":
            words += ": unreliable"
    return words


def quantiles(
    values: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    of: Sequence[float],
) -> Float[np.ndarray, " k"]:
    """Compute quantiles of weighted values."""
    return np.quantile(values, of, weights=weights, method="inverted_cdf")


def _named_values(
    run: NestedRun | ChainRun | ShardRun, caller: str, transform: Transform
) -> PyTree:
    """Return the values at each point or draw, arrays of shape `(n, ...)`."""
    if isinstance(run, NestedRun):
        return transformed(transform, run.dead.positions, caller, dims=1)
    return pooled(transformed(transform, run.samples, caller))


def names_of(
    run: NestedRun | ChainRun | ShardRun, caller: str, transform: Transform
) -> list[str]:
    """Return the names of all scalars of a position."""
    return [name for name, _ in columns(_named_values(run, caller, transform))]


def parameters_of(
    run: Any,
    names: Sequence[str] | None,
    labels: Mapping[str, str] | None,
    most: int,
    caller: str,
    transform: Transform,
) -> list[Parameter]:
    """Select at most `most` parameters of a figure, by names of scalars or arrays."""
    if not isinstance(run, NestedRun | ChainRun | ShardRun):
        raise TypeError(
            f"{caller}(run=...): run must be a NestedRun, a ChainRun or a ShardRun; "
            f"got {type(run).__name__}."
        )
    tree = _named_values(run, caller, transform)
    named = {name: x.astype(np.float64) for name, x in columns(tree)}
    # The scalars of each array, such as x[0] and x[1] of x, and each scalar itself.
    choices = {
        array: [
            x
            for x in named
            if x == array or (x.startswith(f"{array}[") and x[-1] == "]")
        ]
        for array, _ in leaves(tree)
    }
    choices |= {name: [name] for name in named}

    def choose(argument: str, chosen: Sequence[str]) -> list[str]:
        for name in chosen:
            if name not in choices:
                raise ValueError(
                    f"{caller}({argument}=...): there is no parameter {name!r}. The "
                    f"parameters are {join_few(list(named), _MAX_NAMES)}."
                )
        return list(dict.fromkeys(x for name in chosen for x in choices[name]))

    if names is None:
        names = list(named)
        if len(names) > most:
            raise ValueError(
                f"{caller}(names=None): a figure shows at most {most} parameters, but "
                f"the run has {len(names)}: {join_few(names, _MAX_NAMES)}. Choose "
                f"some, such as names={names[:3]!r}."
            )
    shown = choose("names", [names] if isinstance(names, str) else names)
    if not shown:
        raise ValueError(
            f"{caller}(names={names!r}): names must contain at least one parameter."
        )
    labels = dict(labels or {})
    choose("labels", list(labels))
    weights = weights_of(run)
    for name in shown:
        bad = ~np.isfinite(named[name]) & (weights > 0)
        if bad.any():
            raise ValueError(
                f"{caller}: {np.sum(bad):,} of {len(bad):,} values of {name} are not "
                "finite. Choose other parameters with `names=`."
            )
    return [Parameter(x, labels.get(x, x), named[x]) for x in shown]
