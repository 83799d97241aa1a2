"""The largest size that fits a budget, found with few measurements.

Memory grows in proportion to the lanes, after a fixed part. So a line through two
measurements tells where the budget ends, and what it tells is measured before it is
believed: where rounding or another algorithm of XLA breaks the line, the search goes on
between what fits and what does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final


# A line that told the last measurement so well tells the next one too.
_TRUSTED: Final = 0.01


@final
@dataclass(frozen=True)
class Found:
    """The largest size that fits; all sizes that were measured, with their bytes."""

    size: int  # 0 if nothing fits
    measured: dict[int, int]

    @property
    def bytes(self) -> int:
        """What the size needs, or the least that was measured if nothing fits."""
        return self.measured[self.size] if self.size else min(self.measured.values())

    def of(self, size: int) -> int:
        """The bytes of any size: measured, or on the line through its neighbours."""
        if size in self.measured:
            return self.measured[size]
        return round(_line(self.measured, size))


def largest_that_fits(
    bytes_at: Callable[[int], int], budget: int, most: int, least: int = 1
) -> Found:
    """Searches for the largest size whose bytes are in the budget.

    **Arguments:**

    - `bytes_at`: measures a size. It is called once for each size that is looked at.
    - `budget`: the most bytes.
    - `most`: the largest size that is of use.
    - `least`: the smallest, at least 1.
    """
    measured = {most: bytes_at(most)}
    if measured[most] <= budget:
        return Found(most, measured)
    fits, over, known = least - 1, most, False
    while over - fits > 1:
        if fits in measured and known and _line(measured, fits + 1) > budget:
            break  # measured to fit, and the next one is known to be over
        size = min(max(_guess(measured, budget), fits + 1), over - 1)
        expected = _line(measured, size)
        measured[size] = bytes_at(size)
        known = abs(measured[size] - expected) <= _TRUSTED * expected
        if measured[size] <= budget:
            fits = size
        else:
            over = size
    return Found(fits if fits in measured else 0, measured)


def _guess(measured: dict[int, int], budget: int) -> int:
    """Where the line through the measurements nearest to the budget meets it."""
    if len(measured) == 1:
        ((size, needed),) = measured.items()
        return size * budget // needed  # as if nothing were fixed
    (x, f), (y, g) = _nearest(measured, lambda _, needed: abs(needed - budget))
    if f == g:
        return (x + y) // 2
    return int(x + (budget - f) * (y - x) // (g - f))


def _line(measured: dict[int, int], size: int) -> float:
    """The bytes of a size on the line through the measurements nearest to it."""
    if len(measured) == 1:
        ((other, needed),) = measured.items()
        return needed * size / other
    (x, f), (y, g) = _nearest(measured, lambda other, _: abs(other - size))
    return f + (g - f) * (size - x) / (y - x)


def _nearest(
    measured: dict[int, int], distance: Callable[[int, int], int]
) -> list[tuple[int, int]]:
    return sorted(measured.items(), key=lambda pair: distance(*pair))[:2]
