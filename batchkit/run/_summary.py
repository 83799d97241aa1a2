"""A posterior as a table."""

from collections.abc import Mapping
from typing import Final, final

import numpy as np
from jaxtyping import Float, PyTree

from ..rebuild._table import html_table, table
from ._names import columns


_QUANTILES: Final = {"5 %": 0.05, "50 %": 0.5, "95 %": 0.95}
_HEAD: Final = ("parameter", "mean", "std", *_QUANTILES)
# A printed table of more rows hides what is around it.
_ROWS: Final = 60


@final
class Summary:
    """The posterior of each parameter: mean, standard deviation and quantiles.

    Prints as a table.

    ```python
    import numpy as np
    from batchkit.run import Summary

    x = np.array([0.0, 1.0, 2.0])
    summary = Summary({"x": x}, weights=np.array([0.25, 0.5, 0.25]))
    assert summary["x"]["mean"] == summary["x"]["50 %"] == 1.0
    assert summary["x"]["std"] == 0.5**0.5
    print(summary)
    ```
    """

    def __init__(self, positions: PyTree, weights: Float[np.ndarray, " n"]) -> None:
        """**Arguments:**

        - `positions`: a pytree of arrays of shape `(n, ...)`, one row a point.
        - `weights`: the weight of each point, of shape `(n,)`; they sum to one.
        """
        values: dict[str, dict[str, float]] = {}
        for name, column in columns(positions):
            x = column.astype(np.float64)
            mean = float(weights @ x)
            row = {"mean": mean, "std": float(np.sqrt(weights @ (x - mean) ** 2))}
            # The other methods of NumPy know no weights.
            found = np.quantile(
                x, list(_QUANTILES.values()), weights=weights, method="inverted_cdf"
            )
            row.update(zip(_QUANTILES, map(float, found), strict=True))
            values[name] = row
        self.values: Mapping[str, Mapping[str, float]] = values

    def __getitem__(self, name: str) -> Mapping[str, float]:
        return self.values[name]

    def __repr__(self) -> str:
        text = table(_HEAD, self._rows()[:_ROWS])
        hidden = len(self.values) - _ROWS
        return f"{text}\n... and {hidden:,} more" if hidden > 0 else text

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (name, *(f"{row[column]:.4g}" for column in _HEAD[1:]))
            for name, row in self.values.items()
        ]
