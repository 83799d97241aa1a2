"""Figures made without pyplot, and short numbers at their axes.

Such a figure has no window and needs no display, and pyplot's current figure and its
settings do not change. The user's own settings, such as the font size, apply to it.
Notebooks display it, see `_shown_figure.py`.
"""

from typing import Any, Final, NamedTuple, final

import numpy as np

from ..run._extras import extra
from ..run._summary import decimal_order


# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY: Final = "#777777"
COLOUR_MAP: Final = "viridis_r"

_MINUS: Final = "\N{MINUS SIGN}"
# An axis gets an offset if it is narrower than this fraction of its numbers.
_NARROW: Final = 1e-3


def new_figure(width: float, height: float, caller: str, layout: Any = None) -> Any:
    """Make a figure with a width and height in inches.

    **Raises:**

    `ImportError` if matplotlib is not installed.
    """
    extra("matplotlib.figure", "plots", caller)
    # It imports matplotlib, which is an optional dependency.
    from ._shown_figure import ShownFigure

    return ShownFigure(figsize=(width, height), layout=layout)


def tidy(axes: Any) -> None:
    """Remove the top and right borders, which carry no scale."""
    axes.spines[["top", "right"]].set_visible(False)


@final
class Scale(NamedTuple):
    """The format of the numbers at an axis: `(x - origin) / 10^power`.

    The data are not rescaled, so that users can draw on top of them.
    """

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
