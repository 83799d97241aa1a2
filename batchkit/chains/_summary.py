"""The draws of several chains as a table, with convergence diagnostics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._names import columns
from ..run._over_draws import over_draws
from ..run._summary import QUANTILES, AbstractSummary, quantile_labels
from ._convergence import Convergence


_CONVERGENCE: Final = ("R-hat", "bulk ESS", "tail ESS")


@final
class ChainSummary(AbstractSummary):
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

    def __init__(
        self,
        samples: PyTree,
        convergence: Convergence,
        quantiles: Sequence[float] = QUANTILES,
    ) -> None:
        """**Arguments:**

        - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
        - `convergence`: R-hat and the effective sample sizes of them.
        - `quantiles`: the ones to show, between 0 and 1; 0.05, 0.5 and 0.95 by default.

        **Raises:**

        `TypeError` or `ValueError` if `quantiles` are no such numbers.
        """
        labels = quantile_labels(quantiles)
        values: dict[str, dict[str, float]] = {}
        for name, x in pooled_columns(samples):
            row = {"mean": float(np.mean(x)), "std": float(np.std(x, ddof=x.size > 1))}
            found = np.quantile(x, list(labels.values()))
            row.update(zip(labels, map(float, found), strict=True))
            values[name] = row
        diagnostics = (convergence.rhat, convergence.ess_bulk, convergence.ess_tail)
        for column, tree in zip(_CONVERGENCE, diagnostics, strict=True):
            for name, value in named_numbers(tree):
                values[name][column] = value
        self.values = values

    def _more_cells(self, row: Mapping[str, float]) -> list[str]:
        sizes = (f"{row[column]:,.0f}" for column in _CONVERGENCE[1:])
        return [f"{row['R-hat']:.3f}", *sizes]


def summary_of_draws(
    samples: PyTree,
    convergence: Convergence,
    transform: Callable[[PyTree], PyTree] | None,
    quantiles: Sequence[float],
    caller: str,
) -> ChainSummary:
    """Return the table of draws, or of what a function makes of each of them.

    **Arguments:**

    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `convergence`: R-hat and the effective sample sizes of them.
    - `transform`: a function of one position, or None.
    - `quantiles`: the ones to show, between 0 and 1.
    - `caller`: the method that the user called.
    """
    if transform is not None:
        samples = over_draws(transform, samples, caller)
        convergence = Convergence(samples)
    return ChainSummary(samples, convergence, quantiles)


def pooled_columns(samples: PyTree) -> list[tuple[str, np.ndarray]]:
    """Each number of a position with its name: its draws in all chains, as float64."""
    pooled = jax.tree.map(lambda x: np.reshape(x, (-1, *np.shape(x)[2:])), samples)
    return [(name, x.astype(np.float64)) for name, x in columns(pooled)]


def named_numbers(tree: PyTree) -> list[tuple[str, float]]:
    """The numbers of a pytree like one position, with their names."""
    rows = jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return [(name, float(x[0])) for name, x in columns(rows)]
