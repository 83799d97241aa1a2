"""Search by linear interpolation for the largest size that fits a budget.

Memory grows linearly with the number of lanes, plus a constant. So the line through two
measurements predicts the size at which the budget is used up. The prediction is then
measured. Where it is wrong, because of rounding or because XLA chooses another
algorithm, the search continues between the largest size that fits and the smallest that
does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final


# If a prediction was within this relative error, the next one needs no measurement.
_TOLERANCE: Final = 0.01


@final
@dataclass(frozen=True)
class SearchResult:
    """The largest size that fits, and the bytes of all sizes that were measured."""

    size: int  # 0 if nothing fits
    measured: dict[int, int]

    @property
    def bytes(self) -> int:
        """The bytes of `size`, or the smallest measured bytes if nothing fits."""
        return self.measured[self.size] if self.size else min(self.measured.values())

    def bytes_at(self, size: int) -> int:
        """Return the bytes of any size: measured, or interpolated."""
        if size in self.measured:
            return self.measured[size]
        return round(_line(self.measured, size))


def largest_that_fits(
    bytes_at: Callable[[int], int], budget: int, most: int
) -> SearchResult:
    """Search for the largest size up to `most` whose bytes are at most the budget.

    `bytes_at` measures a size. It is called at most once for each size.
    """
    measured = {most: bytes_at(most)}
    if measured[most] <= budget:
        return SearchResult(most, measured)
    fits, over, is_linear = 0, most, False
    while over - fits > 1:
        if fits in measured and is_linear and _line(measured, fits + 1) > budget:
            break  # `fits` is measured, and the next size is predicted to be over
        size = min(max(_guess(measured, budget), fits + 1), over - 1)
        expected = _line(measured, size)
        measured[size] = bytes_at(size)
        is_linear = abs(measured[size] - expected) <= _TOLERANCE * expected
        if measured[size] <= budget:
            fits = size
        else:
            over = size
    return SearchResult(fits, measured)


def _guess(measured: dict[int, int], budget: int) -> int:
    """Solve for the size at the budget, on the line through the nearest two points."""
    if len(measured) == 1:
        ((size, needed),) = measured.items()
        return size * budget // needed  # without a constant
    (x, f), (y, g) = sorted(measured.items(), key=lambda each: abs(each[1] - budget))[
        :2
    ]
    if f == g:
        return (x + y) // 2
    return int(x + (budget - f) * (y - x) // (g - f))


def _line(measured: dict[int, int], size: int) -> float:
    """Interpolate the bytes of a size from the two measurements nearest to it."""
    if len(measured) == 1:
        ((other, needed),) = measured.items()
        return needed * size / other
    (x, f), (y, g) = sorted(measured.items(), key=lambda each: abs(each[0] - size))[:2]
    return f + (g - f) * (size - x) / (y - x)
