"""Figures that nobody else sees.

A figure is made without pyplot: it belongs to no window, needs no display, and neither
pyplot's current figure nor its settings change. The user's own settings, such as the
size of fonts, hold in it. A notebook shows it all the same, see `_shown_figure.py`.
"""

from typing import Any, Final

from ..run._extras import extra


# Of Okabe and Ito (2008), which those can tell apart who see fewer colours.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY: Final = "#777777"
# A density to look at needs no more points than a figure has pixels.
COLOUR_MAP: Final = "viridis_r"


def new_figure(width: float, height: float, caller: str, layout: Any = None) -> Any:
    """A figure of a size in inches.

    **Raises:**

    `ImportError` if matplotlib is not installed.
    """
    extra("matplotlib.figure", "plots", caller)
    from ._shown_figure import ShownFigure

    return ShownFigure(figsize=(width, height), layout=layout)


def tidy(axes: Any) -> None:
    """Leaves the frame away where nothing is read off it."""
    axes.spines[["top", "right"]].set_visible(False)
