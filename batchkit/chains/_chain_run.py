"""What chains have found, and whether to trust it."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from .._util._table import html_table, table
from ..run._environment import Provenance, provenance_rows
from ..run._file import understood
from ..run._result_file import AGAIN
from ..run._summary import QUANTILES
from ._convergence import Convergence
from ._diagnostics import OF_ALGORITHM, OF_API, diagnose_chains
from ._exports import sample_stats_of, to_arviz
from ._saved import load_chains, save_chains
from ._summary import ChainSummary, named_numbers, summary_of_draws


@final
class ChainSeconds(NamedTuple):
    """How long chains took: to compile, to warm up, to sample, and to be diagnosed.

    `diagnostics` is the time for R-hat, the effective sample sizes and the warnings.

    ```python
    import batchkit as bk

    assert sum(bk.ChainSeconds(compile=1.5, warmup=2.0, sampling=20.0)) == 23.5
    ```
    """

    compile: float
    warmup: float
    sampling: float
    diagnostics: float = 0.0


@final
class ChainRun:
    """The result of Markov chain Monte Carlo: draws, and whether to trust them.

    R-hat and the effective sample sizes are those of Vehtari et al. (2021, Bayesian
    Analysis 16(2), 667-718, arXiv:1903.08008): of the ranks, each half of a chain taken
    for a chain of its own. Draws made elsewhere may be given too.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(4, 1000, 2))
    run = bk.ChainRun({"x": draws})
    assert np.all(run.rhat["x"] < 1.01)
    assert run.warnings == ()
    print(run)
    print(run.summary())
    ```
    """

    def __init__(
        self,
        samples: PyTree,
        *,
        logdensity: Float[np.ndarray, "chains draws"] | None = None,
        diverging: Int[np.ndarray, "chains draws"] | None = None,
        acceptance_rate: Float[np.ndarray, "chains draws"] | None = None,
        num_integration_steps: Int[np.ndarray, "chains draws"] | None = None,
        tree_depth: Int[np.ndarray, "chains draws"] | None = None,
        energy: Float[np.ndarray, "chains draws"] | None = None,
        step_size: Float[np.ndarray, " chains"] | None = None,
        inverse_mass_matrix: Float[np.ndarray, "chains *dims"] | None = None,
        max_tree_depth: int | None = None,
        seconds: tuple[float, ...] = (0.0, 0.0, 0.0),
        provenance: Sequence[Provenance] = (),
    ) -> None:
        """**Arguments:**

        - `samples`: the draws, a pytree of arrays of shape `(chains, draws, ...)`.
        - `logdensity`: the log-density of each draw. This and the others are None by
            default, if the sampler does not tell.
        - `diverging`: how many transitions diverged on the way to each draw.
        - `acceptance_rate`: the mean acceptance rate on the way to each draw.
        - `num_integration_steps`: the integration steps on the way to each draw.
        - `tree_depth`: how often the longest trajectory on the way to each draw was
            doubled.
        - `energy`: the energy of each draw, potential and kinetic, with the momentum of
            its own transition.
        - `step_size`: of each chain.
        - `inverse_mass_matrix`: of each chain, its diagonal or the whole of it.
        - `max_tree_depth`: how often a trajectory may be doubled.
        - `seconds`: how long it took to compile, to warm up and to sample; 0 by
            default. A fourth, for the diagnostics, is measured if it is not given.
        - `provenance`: which versions computed it from which draw on, a
            `batchkit.run.Provenance` for each; empty by default.

        **Raises:**

        `ValueError` if the arrays of `samples` differ in chains or draws, or if there
        are none.
        """
        self.samples = jax.tree.map(np.asarray, samples)
        shapes = {x.shape[:2] for x in jax.tree.leaves(self.samples)}
        if len(shapes) != 1 or len(min(shapes)) != 2 or 0 in min(shapes):
            raise ValueError(
                f"ChainRun(samples=...): every array must have the shape (chains, "
                f"draws, ...), with the same chains and draws; got {sorted(shapes)}."
            )
        ((self.num_chains, self.num_samples),) = shapes
        self.logdensity = logdensity
        self.diverging = diverging
        self.acceptance_rate = acceptance_rate
        self.num_integration_steps = num_integration_steps
        self.tree_depth = tree_depth
        self.energy = energy
        self.step_size = step_size
        self.inverse_mass_matrix = inverse_mass_matrix
        self.max_tree_depth = max_tree_depth
        self.provenance = tuple(provenance)
        start = time.perf_counter()
        self._convergence = Convergence(self.samples)
        self.warnings = diagnose_chains(
            self.samples,
            self._convergence,
            logdensity=logdensity,
            diverging=diverging,
            tree_depth=tree_depth,
            max_tree_depth=max_tree_depth,
            # Where no step size was tuned there was no warm-up to prolong.
            remedies=OF_ALGORITHM if step_size is None else OF_API,
        )
        measured = (time.perf_counter() - start,) if len(seconds) == 3 else ()
        self.seconds = ChainSeconds(*seconds, *measured)

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

    @property
    def divergences(self) -> Int[np.ndarray, " chains"] | None:
        """How many transitions of each chain diverged; None if that is not known."""
        return None if self.diverging is None else np.sum(self.diverging, axis=1)

    @property
    def acceptance(self) -> Float[np.ndarray, " chains"] | None:
        """The mean acceptance rate of each chain; None if that is not known."""
        rate = self.acceptance_rate
        return None if rate is None else np.mean(rate, axis=1)

    def summary(
        self,
        *,
        quantiles: Sequence[float] = QUANTILES,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> ChainSummary:
        """Return a table of the parameters: mean, deviation, quantiles, R-hat, ESS.

        ```python
        import jax.numpy as jnp
        import numpy as np
        import batchkit as bk

        draws = np.random.default_rng(0).normal(size=(4, 1000))
        run = bk.ChainRun({"log_mass": draws})
        found = run.summary(
            quantiles=(0.16, 0.84), transform=lambda p: {"mass": jnp.exp(p["log_mass"])}
        )
        assert abs(found["mass"]["84 %"] - np.exp(0.994)) < 0.3
        ```

        **Arguments:**

        - `quantiles`: the ones to show, between 0 and 1; 0.05, 0.5 and 0.95 by default.
        - `transform`: a function from one position to what is shown in its place, such
            as the parameters whose logarithms were sampled. It is mapped over draws in
            chunks. By default positions are shown as they are.

        **Returns:**

        A `ChainSummary`, which prints as a table and has `to_dataframe` and `to_latex`.

        **Raises:**

        `TypeError` or `ValueError` if `quantiles` are no numbers between 0 and 1;
        `TypeError` if `transform` does not return real numbers.
        """
        return summary_of_draws(
            self.samples,
            self._convergence,
            transform,
            quantiles,
            "ChainRun.summary",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the run to a file, from which `load` makes it again, bit for bit.

        It is an HDF5 file without pickles, which any reader of HDF5 can read: the
        arrays are in `arrays`, such as `arrays/samples/mass` and `arrays/logdensity`;
        the rest is JSON in `header`. Another result at that path is replaced whole or
        not at all; any other file stays.

        ```python
        import os
        import tempfile
        import numpy as np
        import batchkit as bk

        run = bk.ChainRun({"x": np.random.default_rng(0).normal(size=(4, 100))})
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.h5")
            run.save(path)
            again = bk.ChainRun.load(path)
        assert np.all(again.samples["x"] == run.samples["x"])
        ```

        **Arguments:**

        - `path`: the file, in a folder that exists.

        **Raises:**

        `CheckpointError` if it cannot be written, or if there is a file that is no
        result of batchkit; `TypeError` if samples hold anything but numbers.
        """
        save_chains(path, self)

    @staticmethod
    def load(path: str | os.PathLike[str], *, like: PyTree | None = None) -> "ChainRun":
        """Read a run that `save` wrote, or the checkpoint of one.

        A checkpoint of a run that has not ended gives the draws that were saved.

        **Arguments:**

        - `path`: the file.
        - `like`: a position with the structure to have; only the structure counts. By
            default dicts, lists and tuples are what they were, and in place of a class,
            such as a NamedTuple, there is a dict of its fields: a file holds no code.

        **Returns:**

        The run, with the bits and dtypes that it had. Warnings are looked for anew.

        **Raises:**

        `CheckpointError` if there is no file, if it is damaged, from elsewhere, of
        another kind, or in a newer format; `ValueError` if `like` has other names.
        """
        samples, told = load_chains(path, like)
        with understood(os.fspath(path), AGAIN):
            return ChainRun(samples, **told)

    def to_arviz(
        self,
        *,
        log_likelihood: Callable[[PyTree], PyTree] | None = None,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Any:
        """The run for ArviZ.

        It needs `pip install 'batchkit-jax[arviz]'`. The groups are

        - `posterior`: each array of a position under its name (`"lens.mass"`).
        - `sample_stats`, as far as the sampler tells: `lp`, `diverging` (whether any
            transition on the way to a draw did), `acceptance_rate`, `n_steps`,
            `tree_depth`, `reached_max_treedepth`, `energy` and `step_size`.
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
            observations, an array with one number for each (its variable is `y`) or a
            dict of such by name. It is mapped over draws in chunks. By default the
            group is left out.
        - `transform`: a function from one position to what `posterior` has in its
            place, such as the parameters whose logarithms were sampled. It is mapped
            over draws in chunks. By default positions are there as they are.

        **Returns:**

        What the installed ArviZ works on: an `xarray.DataTree`, or an
        `arviz.InferenceData` before ArviZ 1.0.

        **Raises:**

        `ImportError` if ArviZ is not installed; `ValueError` if a parameter has the
        name of another or of an axis; `TypeError` if `log_likelihood` does not return
        arrays of numbers for observations.
        """
        return to_arviz(
            self.samples,
            sample_stats_of(self),
            log_likelihood,
            transform,
            self.seconds.sampling,
            "ChainRun.to_arviz",
        )

    def __repr__(self) -> str:
        return table(_HEAD, self._rows())

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        bulk, tail = _extreme(self.ess_bulk, min), _extreme(self.ess_tail, min)
        rhat = _extreme(self.rhat, max)
        rows = [
            ("draws", f"{self.num_chains:,} chains of {self.num_samples:,}"),
            ("R-hat", f"at most {rhat[1]:.3f} ({rhat[0]})"),
            ("bulk ESS", f"at least {bulk[1]:,.0f} ({bulk[0]})"),
            ("tail ESS", f"at least {tail[1]:,.0f} ({tail[0]})"),
        ]
        if self.divergences is not None:
            rows.append(("divergences", f"{np.sum(self.divergences):,}"))
        for name, values, form in (
            ("acceptance", self.acceptance, "{:.2f}"),
            ("step size", self.step_size, "{:.3g}"),
            ("tree depth", self.tree_depth, "{:.0f}"),
            ("integration steps", self.num_integration_steps, "{:,.0f}"),
        ):
            if values is not None:
                rows.append((name, _range(values, form)))
        times = (
            "{:.1f} to compile, {:.1f} to warm up, {:.1f} to sample, {:.1f} for R-hat "
            "and ESS"
        )
        rows.append(("seconds", times.format(*self.seconds)))
        rows += provenance_rows(self.provenance)
        return rows + [("warning", str(warning)) for warning in self.warnings]


_HEAD: Final = ("chains", "")


def _extreme(tree: PyTree, which: Any) -> tuple[str, float]:
    """The largest or smallest number of a pytree, with its name; NaN before all."""
    named = named_numbers(tree)
    for name, value in named:
        if np.isnan(value):
            return name, value
    return which(named, key=lambda pair: pair[1])


def _range(values: np.ndarray, form: str) -> str:
    low, mean, high = np.min(values), np.mean(values), np.max(values)
    return f"{form.format(low)} to {form.format(high)}, mean {mean:.3g}"
