"""Numbers at axes and in titles, written shortly."""

from typing import Any, Final, NamedTuple, final

import numpy as np


# An axis over less than this part of its numbers is written from an origin.
_NARROW: Final = 1e-3


@final
class Scale(NamedTuple):
    """How the numbers at an axis are written: `(x - origin) / 10^power`.

    The data stay as they are, so whatever is drawn on top fits.
    """

    origin: float
    power: int

    def label(self, label: str) -> str:
        """What stands at the axis of a parameter."""
        if self.origin:
            sign = "+" if self.origin < 0 else "\N{MINUS SIGN}"
            label = f"{label} {sign} {abs(self.origin):.15g}"
        if self.power:
            label = f"({label})" if self.origin else label
            label = f"{label} / $10^{{{self.power}}}$"
        return label

    def rewrite(self, axis: Any) -> None:
        """Writes the numbers of an axis so, if there are any at it."""
        if self == PLAIN or axis.get_major_formatter().format_ticks([0.0]) == [""]:
            return
        axis.set_major_formatter(
            lambda x, _: f"{(x - self.origin) / 10.0**self.power:.6g}".replace(
                "-", "\N{MINUS SIGN}"
            )
        )


PLAIN: Final = Scale(0.0, 0)


def scale_of(low: float, high: float) -> Scale:
    """How numbers between two others are best written."""
    width, middle = high - low, (low + high) / 2
    origin = 0.0
    if 0 < width < _NARROW * abs(middle):
        origin = round(middle, -_order(width))
    return Scale(origin, _power(max(abs(low - origin), abs(high - origin))))


def median_in_words(low: float, middle: float, high: float) -> str:
    """A median with its errors, to two digits of the smaller one."""
    errors = (high - middle, middle - low)
    narrow = max(errors) < _NARROW * abs(middle)
    power = 0 if narrow else _power(max(abs(middle), *errors))
    scale = 10.0**power
    smallest = min((x / scale for x in errors if x > 0), default=1.0)
    digits = int(np.clip(1 - _order(smallest), 0, 12))
    value, up, down = (
        # Minus zero is zero.
        f"{round(x / scale, digits) + 0.0:.{digits}f}"
        for x in (middle, *errors)
    )
    times = rf" \times 10^{{{power}}}" if power else ""
    return rf"${value}^{{+{up}}}_{{-{down}}}{times}$"


def _order(x: float) -> int:
    return int(np.floor(np.log10(x)))


def _power(largest: float) -> int:
    """The power of ten to take out of numbers; 0 if they are short as they are."""
    power = _order(largest) if largest > 0 else 0
    return 0 if -3 < power < 5 else power
