"""Figures made without pyplot.

Such a figure has no window and needs no display, and pyplot's current figure and its
settings do not change. The user's own settings, such as the font size, apply to it.
Notebooks display it, see `_shown_figure.py`.
"""

from typing import Any, Final

from ..run._extras import extra


# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY: Final = "#777777"
COLOUR_MAP: Final = "viridis_r"


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
