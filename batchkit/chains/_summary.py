"""The draws of several chains as a table."""

from collections.abc import Mapping
from typing import Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..rebuild._table import html_table, table
from ..run._names import columns
from ._convergence import Convergence


_QUANTILES: Final = {"5 %": 0.05, "50 %": 0.5, "95 %": 0.95}
_CONVERGENCE: Final = ("R-hat", "bulk ESS", "tail ESS")
_HEAD: Final = ("parameter", "mean", "std", *_QUANTILES, *_CONVERGENCE)
# A printed table of more rows hides what is around it.
_ROWS: Final = 60


@final
class ChainSummary:
    """Each parameter: mean, deviation, quantiles, R-hat and effective sample sizes.

    Prints as a table.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(4, 1000))
    summary = bk.ChainRun({"x": draws}).summary()
    assert abs(summary["x"]["mean"]) < 0.1
    assert summary["x"]["R-hat"] < 1.01
    print(summary)
    ```
    """

    def __init__(self, samples: PyTree, convergence: Convergence) -> None:
        """**Arguments:**

        - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
        - `convergence`: R-hat and the effective sample sizes of them.
        """
        values: dict[str, dict[str, float]] = {}
        for name, x in pooled_columns(samples):
            row = {"mean": float(np.mean(x)), "std": float(np.std(x, ddof=x.size > 1))}
            found = np.quantile(x, list(_QUANTILES.values()))
            row.update(zip(_QUANTILES, map(float, found), strict=True))
            values[name] = row
        told = (convergence.rhat, convergence.ess_bulk, convergence.ess_tail)
        for column, tree in zip(_CONVERGENCE, told, strict=True):
            for name, value in named_numbers(tree):
                values[name][column] = value
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
            (
                name,
                *(f"{row[column]:.4g}" for column in ("mean", "std", *_QUANTILES)),
                f"{row['R-hat']:.3f}",
                *(f"{row[column]:,.0f}" for column in _CONVERGENCE[1:]),
            )
            for name, row in self.values.items()
        ]


def pooled_columns(samples: PyTree) -> list[tuple[str, np.ndarray]]:
    """Each number of a position with its name: its draws in all chains, as float64."""
    pooled = jax.tree.map(lambda x: np.reshape(x, (-1, *np.shape(x)[2:])), samples)
    return [(name, x.astype(np.float64)) for name, x in columns(pooled)]


def named_numbers(tree: PyTree) -> list[tuple[str, float]]:
    """The numbers of a pytree like one position, with their names."""
    rows = jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return [(name, float(x[0])) for name, x in columns(rows)]
