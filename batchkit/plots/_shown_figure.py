"""A figure that a notebook shows.

IPython shows a figure of matplotlib only once pyplot has been imported there. Of other
objects it asks for their PNG by `_repr_png_`, as do other notebooks.
"""

import io
from typing import final

from matplotlib.figure import Figure


@final
class ShownFigure(Figure):
    """A `matplotlib.figure.Figure` that is its own PNG."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        # As IPython does with the figures of pyplot.
        self.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
