"""Short formats for numbers at axes and in titles: offsets and powers of ten."""

from typing import Any, Final, NamedTuple, final

import numpy as np


# An axis gets an offset if it is narrower than this fraction of its numbers.
_NARROW: Final = 1e-3


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
            sign = "+" if self.origin < 0 else "\N{MINUS SIGN}"
            label = f"{label} {sign} {abs(self.origin):.15g}"
        if self.power:
            label = f"({label})" if self.origin else label
            label = f"{label} / $10^{{{self.power}}}$"
        return label

    def rewrite(self, axis: Any) -> None:
        """Format the tick labels of an axis, unless it has none."""
        if self == PLAIN or axis.get_major_formatter().format_ticks([0.0]) == [""]:
            return
        axis.set_major_formatter(
            lambda x, _: f"{(x - self.origin) / 10.0**self.power:.6g}".replace(
                "-", "\N{MINUS SIGN}"
            )
        )


PLAIN: Final = Scale(0.0, 0)


def scale_of(low: float, high: float) -> Scale:
    """Choose the format for the numbers of an axis with these limits."""
    width, middle = high - low, (low + high) / 2
    origin = 0.0
    if 0 < width < _NARROW * abs(middle):
        origin = round(middle, -_order(width))
    return Scale(origin, _power(max(abs(low - origin), abs(high - origin))))


def format_median(low: float, middle: float, high: float) -> str:
    """Format a median with its errors, to two digits of the smaller error."""
    errors = (high - middle, middle - low)
    narrow = max(errors) < _NARROW * abs(middle)
    power = 0 if narrow else _power(max(abs(middle), *errors))
    scale = 10.0**power
    smallest = min((x / scale for x in errors if x > 0), default=1.0)
    digits = int(np.clip(1 - _order(smallest), 0, 12))
    value, up, down = (
        # Adding zero turns -0.0 into 0.0.
        f"{round(x / scale, digits) + 0.0:.{digits}f}"
        for x in (middle, *errors)
    )
    times = rf" \times 10^{{{power}}}" if power else ""
    return rf"${value}^{{+{up}}}_{{-{down}}}{times}$"


def _order(x: float) -> int:
    """Return the decimal order of magnitude."""
    return int(np.floor(np.log10(x)))


def _power(largest: float) -> int:
    """Return the power of ten to factor out; 0 if the numbers are short without."""
    power = _order(largest) if largest > 0 else 0
    return 0 if -3 < power < 5 else power
