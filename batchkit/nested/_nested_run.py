"""The result of a nested sampling run, its file, and its forms for other packages."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt32

from ..batchers import AbstractBatcher, Vmap
from ..run._arguments import check_key
from ..run._names import columns
from ..run._over_draws import Transform, transformed, with_derived
from ..run._packages import Provenance, extra
from ..run._result import (
    AbstractResult,
    Arrays,
    Diagnostic,
    Header,
    Seconds,
    datatree,
    diagnostics_as_saved,
    saved_names,
)
from ..run._summary import Summary
from ..run._trees import (
    array_names,
    describable,
    names_to_save,
    numbers,
    record_from,
    tree_from_json,
    typed,
)
from ._dead import (
    DeadPoints,
    Points,
    Volumes,
    concatenate,
    dead_points,
    generator,
    points_of,
    resample,
    simulate,
)


_OF_RUN: Final = ("log_evidence", "log_evidence_err", "information", "ess")
_OF_POINTS: Final = Points._fields
# anesthetic leaves out points that are born and die at minus infinity, which are those
# of the prior with a likelihood of zero. So a zero is a low number for it.
_ZERO: Final = -1e30
_TAKEN_BY_ANESTHETIC: Final = ("logL", "logL_birth", "nlive", "insertion")


@final
@dataclass(frozen=True, eq=False, repr=False)
class NestedRun(AbstractResult):
    """The result of nested sampling: evidence, posterior, and whether to trust them.

    The evidence and its error come from simulated histories of the prior volume over
    all points, those alive at the end among them (Skilling 2006, Bayesian Analysis
    1(4), 833-859). Likelihoods that tie, a likelihood of zero over part of the prior,
    and any number of points replaced at once are allowed for (Fowlie, Handley and Su
    2020, arXiv:2010.13884). The error is that of the volumes; it does not include
    points that were not drawn as they should be. `warnings` has the signs of that.

    ```python
    import jax
    import numpy as np
    import batchkit as bk
    from batchkit.nested import DeadPoints

    # 1,000 points of the prior, uniform between 0 and 1, none of them replaced.
    x = np.random.default_rng(0).uniform(size=1000)
    dead = DeadPoints({"x": x}, -x, np.full(1000, -np.inf), np.zeros(1000))
    run = bk.NestedRun(dead, key=jax.random.key(0))
    exact = np.log(1 - np.exp(-1))
    assert abs(run.log_evidence - exact) < 4 * run.log_evidence_err
    draws = run.posterior(jax.random.key(1), 100, lambda p: {"square": p["x"] ** 2})
    assert draws["square"].shape == (100,)
    print(run)
    print(run.summary())
    ```

    **Arguments:**

    - `dead`: all points of the run. The other arguments are given by name.
    - `key`: a key of JAX, from which the volumes are simulated.
    - `num_steps`: the number of steps; 0 by default.
    - `num_evaluations`: the number of evaluated likelihoods; None, the default, if
        unknown.
    - `converged`: whether the run ended because its rule to stop was met; True by
        default.
    - `stop_reason`: why it ended, in words; empty by default.
    - `warnings`: reasons to doubt the result, see `batchkit.nested.diagnose`; by
        default none.
    - `seconds`: how long it took, a `batchkit.run.Seconds`; 0 by default.
    - `settings`: the arguments of the run by name; empty by default.
    - `provenance`: which versions computed it from which step on, a
        `batchkit.run.Provenance` for each; empty by default.

    **Raises:**

    `ValueError` if the likelihood of every point is zero.
    """

    dead: DeadPoints
    _: KW_ONLY
    key: Key[Array, ""] | UInt32[Array, " words"]
    num_steps: int = 0
    num_evaluations: int | None = None
    converged: bool = True
    stop_reason: str = ""
    warnings: tuple[Diagnostic, ...] = ()
    seconds: Seconds = field(default_factory=Seconds)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: tuple[Provenance, ...] = ()

    _title = "nested run"
    _positions = ("positions",)

    def __post_init__(self) -> None:
        if not np.isfinite(self.dead.loglikelihood[-1]):
            raise ValueError(
                f"NestedRun(dead={self.dead}): the log-likelihood of every point is "
                "minus infinity, so that the evidence is zero and there is no "
                "posterior. Begin with more points, or narrow the prior to where the "
                "likelihood is above zero."
            )
        # Callers may pass any sequences, and keep the settings to change them.
        vars(self).update(
            warnings=tuple(self.warnings),
            seconds=Seconds(*self.seconds),
            settings=dict(self.settings),
            provenance=tuple(self.provenance),
        )

    @functools.cached_property
    def _volumes(self) -> Volumes:
        return simulate(self.dead, generator(self.key))

    @property
    def log_evidence(self) -> float:
        """The mean of the log-evidence over the simulated volumes."""
        return float(np.mean(self._volumes.log_evidence))

    @property
    def log_evidence_err(self) -> float:
        """The standard deviation of the log-evidence over the simulated volumes.

        It is close to `sqrt(information / live points)` (Skilling 2006).
        """
        return float(np.std(self._volumes.log_evidence, ddof=1))

    @property
    def information(self) -> float:
        """The Kullback-Leibler divergence of the posterior from the prior, in nats.

        The mean over the simulated volumes. It says by how much the data narrow the
        prior (Skilling 2006).
        """
        return float(np.mean(self._volumes.information))

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """The weight of each of `dead` in the posterior; they sum to one.

        The mean over the simulated volumes of the weights in each of them.
        """
        return self._volumes.weights

    @property
    def ess(self) -> float:
        """The effective sample size of the weights, `(sum w)^2 / sum w^2`.

        This is Kish's (1965, Survey Sampling): the number of equally weighted points
        that would estimate a mean as well, if the volumes were known. Means of
        quantities that go with the likelihood have larger errors than that.
        """
        return float(1 / np.sum(self.weights**2))

    def posterior(
        self,
        key: Key[Array, ""] | UInt32[Array, " words"],
        n: int,
        derived_fn: Callable[[PyTree], PyTree] | None = None,
        *,
        batcher: AbstractBatcher = Vmap(),
    ) -> PyTree:
        """Draw positions from the posterior, all of equal weight.

        Each point is drawn as often as its weight says, rounded up or down (systematic
        resampling), so more draws than `ess` are drawn repeatedly.

        **Arguments:**

        - `key`: a key of JAX.
        - `n`: the number of draws.
        - `derived_fn`: computes more quantities from one position, as
            `jax.vmap(derived_fn)` takes it; none by default.
        - `batcher`: how the positions are laid out for `derived_fn`. By default all at
            once.

        **Returns:**

        The positions, `n` rows in each array. With `derived_fn`, a pair of positions
        and derived quantities; where both are dicts, one dict with the names of both.

        **Raises:**

        `TypeError` if `key` is no key; `ValueError` if `n` is below one, or if a
        derived quantity has the name of a parameter.
        """
        check_key(key, "posterior", "key")
        chosen = self._resample(n, key, "posterior")
        draws = jax.tree.map(lambda x: jnp.asarray(x[chosen]), self.dead.positions)
        return draws if derived_fn is None else with_derived(draws, derived_fn, batcher)

    def _resample(self, n: int, key: Any, caller: str) -> np.ndarray:
        """Draw indices of points; without a key, with one that comes from the run's."""
        if n < 1:
            raise ValueError(
                f"{caller}(n={n}): n must be at least 1, a number of draws."
            )
        key = jax.random.fold_in(self.key, n) if key is None else key
        return resample(self.weights, n, generator(key))

    def _summary(self, quantiles: Sequence[float], transform: Transform) -> Summary:
        shown = transformed(transform, self.dead.positions, "NestedRun.summary", dims=1)
        return Summary(shown, self.weights, quantiles)

    # Static, since no run comes before the others and the class has no subclasses.
    @staticmethod
    def merge(runs: "Sequence[NestedRun]") -> "NestedRun":
        """Merge independent runs on one problem into one with a smaller error.

        The points of all are put together. At any contour as many points are alive as
        in all runs together, so the result is that of one run with all their live
        points (Higson, Handley, Hobson and Lasenby 2018, Statistics and Computing 29,
        arXiv:1704.03459). The runs may differ in live points, in points replaced at
        once, and in where they stopped, but not in the prior or the likelihood.

        ```python
        import jax
        import numpy as np
        import batchkit as bk
        from batchkit.nested import DeadPoints

        def run_of(seed):
            x = np.random.default_rng(seed).uniform(size=500)
            dead = DeadPoints({"x": x}, -x, np.full(500, -np.inf), np.zeros(500))
            return bk.NestedRun(dead, key=jax.random.key(seed))

        merged = bk.NestedRun.merge([run_of(0), run_of(1)])
        assert len(merged.dead) == 1000
        assert merged.log_evidence_err < run_of(0).log_evidence_err
        ```

        **Arguments:**

        - `runs`: the runs, each from a key of its own.

        **Returns:**

        The merged run. Steps, evaluations and seconds are added up; it has converged if
        all have; it has the warnings and the provenance of all, and the settings in
        which they agree.

        **Raises:**

        `ValueError` if there is no run, if positions differ in structure, shape or
        dtype, or if two runs are the same.
        """
        runs = list(runs)
        _check_mergeable(runs)
        first = runs[0]
        if len(runs) == 1:
            return first
        counts = [run.num_evaluations for run in runs]
        reasons = dict.fromkeys(run.stop_reason for run in runs)
        provenance = [x for run in runs for x in run.provenance]
        return NestedRun(
            concatenate([run.dead for run in runs]),
            num_steps=sum(run.num_steps for run in runs),
            num_evaluations=None if None in counts else sum(filter(None, counts)),
            converged=all(run.converged for run in runs),
            stop_reason=f"{len(runs)} runs: {'; '.join(reasons)}",
            key=jax.random.fold_in(first.key, len(runs)),
            warnings=tuple(dict.fromkeys(x for run in runs for x in run.warnings)),
            seconds=Seconds(
                *map(sum, zip(*(run.seconds for run in runs), strict=True))
            ),
            settings={
                name: value
                for name, value in first.settings.items()
                if all(_equal(value, run.settings.get(name)) for run in runs)
            },
            provenance=tuple(
                x for i, x in enumerate(provenance) if x not in provenance[:i]
            ),
        )

    def to_arviz(
        self,
        n: int | None = None,
        key: Key[Array, ""] | UInt32[Array, " words"] | None = None,
        *,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Any:
        """Return the run for ArviZ, with draws of equal weight.

        It needs `pip install 'batchkit-jax[arviz]'`. The groups are

        - `posterior`: one chain of draws, as `posterior` draws them, each array of a
            position under its name (`"lens.mass"`).
        - `sample_stats`: of each draw `loglikelihood`, `logprior`, their sum `lp`, and
            `point`, its place among the points of the run.
        - `dead_points`: all points of the run. `dead_stats`: of each its `weight`,
            `loglikelihood`, `loglikelihood_birth`, `logprior` and `num_live`.
        - `constant_data`: `log_evidence`, `log_evidence_err`, `information`, `ess`.

        ```python
        import jax
        import numpy as np
        import batchkit as bk
        from batchkit.nested import DeadPoints

        x = np.random.default_rng(0).uniform(size=(500, 2))
        dead = DeadPoints({"x": x}, -x[:, 0], np.full(500, -np.inf), np.zeros(500))
        run = bk.NestedRun(dead, key=jax.random.key(0))
        data = run.to_arviz()
        assert data.posterior["x"].dims == ("chain", "draw", "x_dim_0")
        assert data.dead_stats["weight"].sum() > 0.999
        ```

        **Arguments:**

        - `n`: the number of draws; by default `ess`, rounded.
        - `key`: a key of JAX; by default one that comes from the run's.
        - `transform`: a function from one position to what stands in its place, such
            as the parameters whose logarithms were sampled. It is mapped over points in
            chunks. By default positions are there as they are.

        **Returns:**

        An `xarray.DataTree`, or an `arviz.InferenceData` before ArviZ 1.0. ArviZ's
        R-hat and Monte Carlo errors mean nothing here, since there are no chains.

        **Raises:**

        `ImportError` if ArviZ is not installed; `ValueError` if `n` is below one, or if
        a parameter has the name of another or of an axis.
        """
        caller = "NestedRun.to_arviz"
        n = max(1, round(self.ess)) if n is None else n
        chosen = self._resample(n, key, caller)
        dead = self.dead
        positions = transformed(transform, dead.positions, caller, dims=1)
        logs = {"loglikelihood": dead.loglikelihood, "logprior": dead.logprior}
        of_draws = {
            **logs,
            "lp": dead.loglikelihood + dead.logprior,
            "point": np.arange(len(dead)),
        }
        of_points = {
            "weight": self.weights,
            **logs,
            "loglikelihood_birth": dead.loglikelihood_birth,
            "num_live": dead.num_live,
        }
        of_run = {name: getattr(self, name) for name in _OF_RUN}
        draws = jax.tree.map(lambda x: x[chosen][None], (positions, of_draws))
        groups = {
            "posterior": (("chain", "draw"), draws[0]),
            "sample_stats": (("chain", "draw"), draws[1]),
            "constant_data": ((), of_run),
            "dead_points": (("point",), positions),
            "dead_stats": (("point",), of_points),
        }
        return datatree(groups, self.seconds.sampling, caller)

    def to_anesthetic(self) -> Any:
        """Return all points for anesthetic, with their births and their deaths.

        It needs `pip install 'batchkit-jax[anesthetic]'`. A likelihood of zero becomes
        `exp(-1e30)`, because anesthetic leaves out points that lie at minus infinity.

        ```python
        import jax
        import numpy as np
        import batchkit as bk
        from batchkit.nested import DeadPoints

        x = np.random.default_rng(0).uniform(size=500)
        dead = DeadPoints({"x": x}, -x, np.full(500, -np.inf), np.zeros(500))
        run = bk.NestedRun(dead, key=jax.random.key(0))
        samples = run.to_anesthetic()
        assert abs(samples.logZ() - run.log_evidence) < run.log_evidence_err
        ```

        **Returns:**

        An `anesthetic.NestedSamples`, each number of a position under its name
        (`"lens.shear[0]"`).

        **Raises:**

        `ImportError` if anesthetic is not installed; `ValueError` if a parameter has
        the name of another, or one that anesthetic gives.
        """
        caller = "NestedRun.to_anesthetic"
        anesthetic = extra("anesthetic", "anesthetic", caller)
        named = list(columns(self.dead.positions))
        names = [name for name, _ in named]
        taken = {x for x in names if x in _TAKEN_BY_ANESTHETIC or names.count(x) > 1}
        if taken:
            raise ValueError(
                f"{caller}: {', '.join(sorted(taken))} cannot name a parameter: it "
                "names two, or is a name that anesthetic gives. Make a result whose "
                "positions have other names."
            )
        logl = self.dead.loglikelihood.astype(np.float64)
        birth = self.dead.loglikelihood_birth.astype(np.float64)
        lowest = np.min(logl, where=np.isfinite(logl), initial=0.0)
        zero = min(_ZERO, 2 * lowest)
        # A finite birth below all likelihoods says that the point was drawn from where
        # the likelihood is above zero; every other birth is the likelihood of a point.
        above_zero = (birth < lowest) & ~np.isneginf(birth)
        return anesthetic.NestedSamples(
            data=np.stack([x.astype(np.float64) for _, x in named], axis=1),
            columns=names,
            logL=np.where(np.isneginf(logl), zero, logl),
            logL_birth=np.where(above_zero, zero, birth),
            logzero=-np.inf,
        )

    def _rows(self) -> list[tuple[str, str]]:
        count, ended = self.num_evaluations, "yes" if self.converged else "no"
        return [
            (
                "log-evidence",
                f"{self.log_evidence:.2f} +/- {self.log_evidence_err:.2f}",
            ),
            ("information", f"{self.information:.2f} nats"),
            ("effective size", f"{self.ess:,.0f} of {len(self.dead):,} points"),
            ("steps", f"{self.num_steps:,}"),
            ("likelihoods", "unknown" if count is None else f"{count:,}"),
            ("converged", ": ".join(filter(None, (ended, self.stop_reason)))),
            (
                "seconds",
                f"{self.seconds.compile:.1f} to compile, "
                f"{self.seconds.sampling:.1f} to run",
            ),
        ]

    def _values(self) -> dict[str, Any]:
        count = self.num_evaluations
        return {
            **{name: getattr(self.dead, name) for name in _OF_POINTS},
            "key": self.key,
            "num_steps": int(self.num_steps),
            "num_evaluations": None if count is None else int(count),
            "converged": bool(self.converged),
            "stop_reason": str(self.stop_reason),
            "warnings": diagnostics_as_saved(self.warnings),
            "seconds": [float(x) for x in self.seconds],
            "settings": describable(self.settings),
            # For other readers: batchkit computes them from the points and the key.
            "weights": self.weights,
            "log_evidence": self.log_evidence,
            "log_evidence_err": self.log_evidence_err,
        }

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "NestedRun":
        dead = DeadPoints(*(values[name] for name in _OF_POINTS))
        logs = dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
        if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in logs):
            raise ValueError("its log-likelihoods or log-priors are no real numbers")
        check_key(key := jnp.asarray(values["key"]), "NestedRun.load")
        return cls(
            dead,
            num_steps=typed(values, "num_steps", int),
            num_evaluations=typed(values, "num_evaluations", int, type(None)),
            converged=typed(values, "converged", bool),
            stop_reason=typed(values, "stop_reason", str),
            key=key,
            warnings=tuple(record_from(values, "warnings", list[Diagnostic])),
            seconds=Seconds(*numbers(values, "seconds", 4)),
            settings=typed(values, "settings", dict),
            provenance=values["provenance"],
        )

    @staticmethod
    def _read_checkpoint(header: Header, arrays: Arrays) -> dict[str, Any]:
        names = saved_names(header, "run_nested", "live", "dead")
        parts = []
        for part in ("dead", "live"):
            places = tree_from_json(names[part], {})
            parts.append(Points(**jax.tree.map(lambda x: arrays[x], places)))
        dead = dead_points(parts)
        step = typed(header, "step", int)
        ended = names["ended"] or {
            "stop_reason": f"it was saved after step {step}, and had not ended",
            "converged": False,
            "warnings": [],
        }
        return {
            **{name: getattr(dead, name) for name in _OF_POINTS},
            "key": arrays["key"],
            "num_steps": step,
            "num_evaluations": header["evaluations"],
            "seconds": header["seconds"],
            "settings": header["settings"],
            "provenance": header.get("provenance", []),
            **{name: ended[name] for name in ("stop_reason", "converged", "warnings")},
        }


def names_for_load(state: Any, dead: Any, run: NestedRun | None) -> dict[str, Any]:
    """Return header entries with which `NestedRun.load` reads a checkpoint."""
    live = points_of(array_names("state", state).sampler)
    ended = None
    if run is not None:
        ended = {
            "stop_reason": run.stop_reason,
            "converged": run.converged,
            "warnings": diagnostics_as_saved(run.warnings),
        }
    return {
        "live": names_to_save(live),
        "dead": names_to_save(array_names("dead", dead)),
        "ended": ended,
    }


def _check_mergeable(runs: Sequence[NestedRun]) -> None:
    if not runs:
        raise ValueError(
            "NestedRun.merge(runs=[]): runs must hold at least one run; got none."
        )
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), run.dead.positions)
        for run in runs
    ]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                "NestedRun.merge: the runs must be on one problem, with positions of "
                f"the same structure, shapes and dtypes; those of run {i} are {shape}, "
                f"those of run 0 are {shapes[0]}."
            )
    for (i, a), (j, b) in itertools.combinations(enumerate(runs), 2):
        if np.array_equal(a.dead.loglikelihood, b.dead.loglikelihood):
            raise ValueError(
                f"NestedRun.merge: the runs must be independent, but runs {i} and {j} "
                "have the same points, and the error would come out too small. Give "
                "each run a key of its own, and its live points too."
            )


def _equal(a: object, b: object) -> bool:
    """Compare two settings; arrays, which have no one truth value, by identity."""
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError):
        return False
