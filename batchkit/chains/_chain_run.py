"""The result of chains: draws, their table, their checks, and their file."""

import abc
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from .._util._checks import check_type
from ..run._arguments import REAL, named_leaves
from ..run._names import named_numbers, pooled
from ..run._over_draws import Transform, log_likelihoods_of, transformed
from ..run._packages import Provenance
from ..run._result import (
    AbstractResult,
    Arrays,
    Header,
    Seconds,
    datatree,
    saved_names,
)
from ..run._summary import Summary
from ..run._trees import array_names, names_to_save, numbers, tree_from_json, typed
from ._convergence import WITH_WARMUP, WITHOUT_WARMUP, Convergence, diagnose_chains


_REAL: Final = (jnp.floating,)
_COUNT: Final = (jnp.integer, jnp.bool_)
# Statistics with one number for each draw.
_OF_DRAWS: Final = {
    "logdensity": _REAL,
    "diverging": _COUNT,
    "acceptance_rate": _REAL,
    "num_integration_steps": _COUNT,
    "tree_depth": _COUNT,
    "energy": _REAL,
}
# Results of the warm-up of each chain.
_OF_CHAINS: Final = ("step_size", "inverse_mass_matrix")
# Fields of draws in a checkpoint that have another name in a result.
_IN_CHECKPOINT: Final = {"samples": "position", "acceptance_rate": "acceptance"}


class AbstractDraws(AbstractResult):
    """The result of a run whose draws have equal weights, in several chains."""

    samples: PyTree

    _convergence: Convergence

    @property
    @abc.abstractmethod
    def seconds(self) -> Seconds:
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

    def _rows_of_draws(self) -> list[tuple[str, str]]:
        bulk, tail = _extreme(self.ess_bulk, min), _extreme(self.ess_tail, min)
        rhat = _extreme(self.rhat, max)
        return [
            ("draws", f"{self.num_chains:,} chains of {self.num_samples:,}"),
            ("R-hat", f"at most {rhat[1]:.3f} ({rhat[0]})"),
            ("bulk ESS", f"at least {bulk[1]:,.0f} ({bulk[0]})"),
            ("tail ESS", f"at least {tail[1]:,.0f} ({tail[0]})"),
        ]

    def _summary(self, quantiles: Sequence[float], transform: Transform) -> Summary:
        caller = f"{type(self).__name__}.summary"
        samples = transformed(transform, self.samples, caller)
        found = self._convergence if transform is None else Convergence(samples)
        convergence = found.rhat, found.ess_bulk, found.ess_tail
        return Summary(pooled(samples), quantiles=quantiles, convergence=convergence)

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


@final
class ChainRun(AbstractDraws):
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

    _title = "chains"
    _positions = ("samples",)

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
        seconds: Seconds = Seconds(),
        provenance: Sequence[Provenance] = (),
    ) -> None:
        """**Arguments:**

        - `samples`: the draws, a pytree of arrays of shape `(chains, draws, ...)`.
        - `logdensity`: the log-density of each draw. This and the others are None by
            default, for samplers that do not report them.
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
        - `seconds`: how long it took, a `batchkit.run.Seconds`; 0 by default. The time
            of the diagnostics is measured if it is 0.
        - `provenance`: which versions computed it from which draw on, a
            `batchkit.run.Provenance` for each; empty by default.

        **Raises:**

        `ValueError` if the arrays of `samples` differ in chains or draws, or if there
        are none; `TypeError` if one holds no real numbers.
        """
        self.samples = jax.tree.map(np.asarray, samples)
        for name, leaf in named_leaves("samples", self.samples):
            is_real = any(jnp.issubdtype(leaf.dtype, kind) for kind in REAL)
            rule = "an array of real numbers; split complex ones into two"
            check_type(is_real, "ChainRun", name, leaf, rule)
        shapes = {x.shape[:2] for x in jax.tree.leaves(self.samples)}
        if len(shapes) != 1 or len(min(shapes)) != 2 or 0 in min(shapes):
            raise ValueError(
                f"ChainRun(samples=...): every array must have the shape (chains, "
                f"draws, ...), with the same chains and draws; got {sorted(shapes)}."
            )
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
            # Without a tuned step size there was no warm-up to prolong.
            remedies=WITHOUT_WARMUP if step_size is None else WITH_WARMUP,
        )
        took = seconds.diagnostics or time.perf_counter() - start
        self._seconds = seconds._replace(diagnostics=took)

    @property
    def seconds(self) -> Seconds:
        """The wall time: to compile, to warm up, to sample and to diagnose."""
        return self._seconds

    @property
    def divergences(self) -> Int[np.ndarray, " chains"] | None:
        """The number of divergent transitions of each chain; None if unknown."""
        return None if self.diverging is None else np.sum(self.diverging, axis=1)

    @property
    def acceptance(self) -> Float[np.ndarray, " chains"] | None:
        """The mean acceptance rate of each chain; None if unknown."""
        rate = self.acceptance_rate
        return None if rate is None else np.mean(rate, axis=1)

    def _sample_stats(self) -> dict[str, Any]:
        shape = (self.num_chains, self.num_samples)
        diverging, depth, step = self.diverging, self.tree_depth, self.step_size
        reached = None
        if depth is not None and self.max_tree_depth is not None:
            reached = np.asarray(depth) >= self.max_tree_depth
        if step is not None:
            step = np.broadcast_to(np.asarray(step)[:, None], shape)
        return {
            "lp": self.logdensity,
            "diverging": None if diverging is None else np.asarray(diverging) > 0,
            "acceptance_rate": self.acceptance_rate,
            "n_steps": self.num_integration_steps,
            "tree_depth": depth,
            "energy": self.energy,
            "reached_max_treedepth": reached,
            "step_size": step,
        }

    def _rows(self) -> list[tuple[str, str]]:
        rows = self._rows_of_draws()
        if self.divergences is not None:
            rows.append(("divergences", f"{np.sum(self.divergences):,}"))
        for name, values, form in (
            ("acceptance", self.acceptance, ".2f"),
            ("step size", self.step_size, ".3g"),
            ("tree depth", self.tree_depth, ".0f"),
            ("integration steps", self.num_integration_steps, ",.0f"),
        ):
            if values is not None:
                low, mean, high = np.min(values), np.mean(values), np.max(values)
                rows.append((name, f"{low:{form}} to {high:{form}}, mean {mean:.3g}"))
        times = (
            "{:.1f} to compile, {:.1f} to warm up, {:.1f} to sample, {:.1f} for R-hat "
            "and ESS"
        )
        return [*rows, ("seconds", times.format(*self.seconds))]

    def _values(self) -> dict[str, Any]:
        depth = self.max_tree_depth
        return {
            "samples": self.samples,
            **{name: getattr(self, name) for name in (*_OF_DRAWS, *_OF_CHAINS)},
            "max_tree_depth": None if depth is None else int(depth),
            "seconds": [float(x) for x in self.seconds],
        }

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "ChainRun":
        shape = jax.tree.leaves(values["samples"])[0].shape[:2]
        # An inverse mass matrix has one or two more axes.
        kinds = {**_OF_DRAWS, **dict.fromkeys(_OF_CHAINS, _REAL)}
        for name, real_or_count in kinds.items():
            expected = shape if name in _OF_DRAWS else shape[:1]
            array = typed(values, name, np.ndarray, type(None))
            if array is not None and not (
                any(jnp.issubdtype(array.dtype, kind) for kind in real_or_count)
                and array.shape[: len(expected)] == expected
            ):
                raise ValueError(f"its {name} is {array.dtype} of shape {array.shape}")
        return cls(
            values["samples"],
            **{name: values[name] for name in kinds},
            max_tree_depth=typed(values, "max_tree_depth", int, type(None)),
            seconds=Seconds(*numbers(values, "seconds", 4)),
            provenance=values["provenance"],
        )

    @staticmethod
    def _read_checkpoint(header: Header, arrays: Arrays) -> dict[str, Any]:
        names = saved_names(header, "run_chains", "position")

        def found(name: str) -> Any:
            places = tree_from_json(names.get(_IN_CHECKPOINT.get(name, name)), {})
            return jax.tree.map(lambda x: arrays[x], places)

        return {
            **{name: found(name) for name in ("samples", *_OF_DRAWS, *_OF_CHAINS)},
            "max_tree_depth": header["max_tree_depth"],
            "seconds": header["seconds"],
            "provenance": header.get("provenance", []),
        }


def names_for_load(state: Any, draws: Any) -> dict[str, Any]:
    """Return header entries with which `ChainRun.load` reads a checkpoint."""
    names = {
        name: array_names(f"draws/{name}", part)
        for name, part in draws._asdict().items()
    }
    adaptation = array_names("state", state).adaptation
    tuned = {} if adaptation is None else adaptation._asdict()
    names |= {name: tuned[name] for name in _OF_CHAINS if name in tuned}
    return {name: names_to_save(x) for name, x in names.items()}


def _extreme(tree: PyTree, which: Callable[..., Any]) -> tuple[str, float]:
    """Return the name and value of the largest or smallest number; NaN before all."""
    named = named_numbers(tree)
    for name, value in named:
        if np.isnan(value):
            return name, value
    return which(named, key=lambda pair: pair[1])
