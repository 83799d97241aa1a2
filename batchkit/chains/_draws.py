"""Draws of several chains as a result: their table, convergence, and ArviZ's form."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._datatree import datatree
from ..run._names import columns
from ..run._over_draws import Transform, log_likelihoods_of, transformed
from ..run._result import AbstractResult
from ..run._summary import QUANTILES, AbstractSummary, quantile_labels
from ._convergence import Convergence


_CONVERGENCE: Final = ("R-hat", "bulk ESS", "tail ESS")


@final
class ChainSeconds(NamedTuple):
    """How long chains took: to compile, to warm up, to sample, and to be diagnosed.

    `diagnostics` is the time for R-hat, the effective sample sizes and the warnings.

    ```python
    import batchkit as bk
    from batchkit.chains import ChainSeconds

    assert sum(ChainSeconds(compile=1.5, warmup=2.0, sampling=20.0)) == 23.5
    ```
    """

    compile: float
    warmup: float
    sampling: float
    diagnostics: float = 0.0


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
        - `convergence`: their R-hat and effective sample sizes.
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


class AbstractDraws(AbstractResult[ChainSummary]):
    """The result of a run whose draws have equal weights, in several chains."""

    samples: PyTree

    _convergence: Convergence

    @property
    @abc.abstractmethod
    def seconds(self) -> ChainSeconds:
        """The wall time: to compile, to warm up, to sample and to diagnose."""

    @abc.abstractmethod
    def _sample_stats(self) -> dict[str, Any]:
        """Return statistics of each draw by ArviZ's names; None if unknown."""

    @property
    def num_chains(self) -> int:
        """The number of chains."""
        return jax.tree.leaves(self.samples)[0].shape[0]

    @property
    def num_samples(self) -> int:
        """The number of draws in each chain."""
        return jax.tree.leaves(self.samples)[0].shape[1]

    @property
    def rhat(self) -> PyTree:
        """Split R-hat of ranks, of each number of a position; 1 if chains agree."""
        return self._convergence.rhat

    @property
    def ess_bulk(self) -> PyTree:
        """The effective sample size of each number for its mean or median."""
        return self._convergence.ess_bulk

    @property
    def ess_tail(self) -> PyTree:
        """The effective sample size of each number for its 5 % and 95 % quantiles."""
        return self._convergence.ess_tail

    def _summary(
        self, quantiles: Sequence[float], transform: Transform
    ) -> ChainSummary:
        caller = f"{type(self).__name__}.summary"
        samples = transformed(transform, self.samples, caller)
        convergence = self._convergence if transform is None else Convergence(samples)
        return ChainSummary(samples, convergence, quantiles)

    def to_arviz(
        self,
        *,
        log_likelihood: Callable[[PyTree], PyTree] | None = None,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Any:
        """Return the draws for ArviZ.

        It needs `pip install 'batchkit-jax[arviz]'`. The groups are

        - `posterior`: each array of a position under its name (`"lens.mass"`).
        - `sample_stats`, as far as the sampler reports them: `lp`, `diverging` (whether
            any transition on the way to a draw did), `acceptance_rate`, `n_steps`,
            `tree_depth`, `reached_max_treedepth`, `energy` and `step_size`. Combined
            draws of shards have none: each is made of draws of all shards.
        - `log_likelihood`, if the argument is given: what `arviz.loo` and
            `arviz.compare` work on.

        ```python
        import jax
        import numpy as np
        import batchkit as bk

        draws = np.random.default_rng(0).normal(size=(4, 100, 2))
        y = np.array([0.3, -1.2, 0.8])

        def log_likelihood(position):
            return jax.scipy.stats.norm.logpdf(y, position["x"][0], 1.0)

        data = bk.ChainRun({"x": draws}).to_arviz(log_likelihood=log_likelihood)
        assert data.posterior["x"].dims == ("chain", "draw", "x_dim_0")
        assert data.log_likelihood["y"].shape == (4, 100, 3)
        ```

        **Arguments:**

        - `log_likelihood`: a function from one position to the log-likelihoods of the
            observations (of shards, of the observations of all), an array with one
            number for each (its variable is `y`) or a dict of such by name. It is
            mapped over draws in chunks. By default the group is left out.
        - `transform`: a function from one position to what `posterior` has in its
            place, such as the parameters whose logarithms were sampled. It is mapped
            over draws in chunks. By default positions are there as they are.

        **Returns:**

        An `xarray.DataTree`, or an `arviz.InferenceData` before ArviZ 1.0.

        **Raises:**

        `ImportError` if ArviZ is not installed; `ValueError` if a parameter has the
        name of another or of an axis; `TypeError` if `log_likelihood` does not return
        arrays of numbers for observations.
        """
        caller = f"{type(self).__name__}.to_arviz"
        shown = transformed(transform, self.samples, caller)
        groups: dict[str, PyTree] = {"posterior": shown}
        # None is no leaf, so a pytree without leaves is empty.
        if jax.tree.leaves(stats := self._sample_stats()):
            groups["sample_stats"] = stats
        if log_likelihood is not None:
            groups["log_likelihood"] = log_likelihoods_of(
                log_likelihood, self.samples, caller
            )
        return datatree(
            {name: (("chain", "draw"), tree) for name, tree in groups.items()},
            self.seconds.sampling,
            caller,
        )


def pooled_columns(samples: PyTree) -> list[tuple[str, np.ndarray]]:
    """Return the draws of each number in all chains, as float64, with its name."""
    pooled = jax.tree.map(lambda x: np.reshape(x, (-1, *np.shape(x)[2:])), samples)
    return [(name, x.astype(np.float64)) for name, x in columns(pooled)]


def named_numbers(tree: PyTree) -> list[tuple[str, float]]:
    """Return the numbers of a pytree like one position, with their names."""
    rows = jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return [(name, float(x[0])) for name, x in columns(rows)]
