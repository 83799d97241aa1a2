"""A figure that notebooks display.

IPython displays matplotlib's figures only after an import of pyplot. For other objects
IPython, like other notebooks, calls `_repr_png_`.

The class is in a file of its own because it needs matplotlib when it is defined, and a
class defined inside of a function could not be pickled.
"""

import io
from typing import final

from matplotlib.figure import Figure


@final
class ShownFigure(Figure):
    """A `matplotlib.figure.Figure` with a PNG representation for notebooks."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        # The options that IPython uses for the figures of pyplot.
        self.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
