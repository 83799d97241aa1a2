"""What a nested sampling run has found."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt32

from .._util._table import html_table, table
from ..batchers import AbstractBatcher, Vmap
from ..run._diagnostic import Diagnostic
from ..run._environment import Provenance
from ..run._file import understood
from ..run._keys import check_key
from ..run._over_draws import over_draws, with_derived
from ..run._result_file import AGAIN
from ..run._summary import QUANTILES, Summary
from ._dead import DeadPoints
from ._exports import to_anesthetic, to_arviz
from ._merge import merged
from ._rows import HEAD, rows_of
from ._saved import load_nested, save_nested
from ._seconds import Seconds
from ._volumes import Volumes, generator, resample, simulate


_VMAP: Final = Vmap()


@final
class NestedRun:
    """The result of nested sampling: evidence, posterior, and whether to trust them.

    The evidence and its error come from simulated histories of the prior volume over
    all points, those alive at the end among them (Skilling 2006, Bayesian Analysis
    1(4), 833-859). Likelihoods that tie, a likelihood of zero over part of the prior,
    and any number of points replaced at once are allowed for (Fowlie, Handley and Su
    2020, arXiv:2010.13884). The error is that of the volumes: it does not know whether
    the points were drawn as they should be. `warnings` tells what can be seen of that.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    # 1,000 points of the prior, uniform between 0 and 1, none of them replaced.
    x = np.random.default_rng(0).uniform(size=1000)
    dead = bk.DeadPoints({"x": x}, -x, np.full(1000, -np.inf), np.zeros(1000))
    run = bk.NestedRun(
        dead,
        num_steps=0,
        num_evaluations=1000,
        converged=True,
        stop_reason="nothing to do",
        key=jax.random.key(0),
    )
    exact = np.log(1 - np.exp(-1))
    assert abs(run.log_evidence - exact) < 4 * run.log_evidence_err
    draws = run.posterior(jax.random.key(1), 100, lambda p: {"square": p["x"] ** 2})
    assert draws["square"].shape == (100,)
    print(run)
    print(run.summary())
    ```
    """

    def __init__(
        self,
        dead: DeadPoints,
        *,
        num_steps: int,
        num_evaluations: int | None,
        converged: bool,
        stop_reason: str,
        key: Key[Array, ""] | UInt32[Array, " words"],
        warnings: Sequence[Diagnostic] = (),
        seconds: tuple[float, float] = (0.0, 0.0),
        settings: Mapping[str, Any] | None = None,
        provenance: Sequence[Provenance] = (),
    ) -> None:
        """**Arguments:**

        - `dead`: all points of the run.
        - `num_steps`: how many steps were made.
        - `num_evaluations`: how many likelihoods were evaluated; None if that is not
            known.
        - `converged`: whether the run ended because its rule to stop was met.
        - `stop_reason`: why it ended, in words.
        - `key`: a key of JAX, from which the volumes are simulated.
        - `warnings`: what makes the result doubtful, see `batchkit.nested.diagnose`; by
            default nothing.
        - `seconds`: how long it took to compile and to run; 0 and 0 by default.
        - `settings`: what the run was asked for, by name; empty by default.
        - `provenance`: which versions computed it from which step on, a
            `batchkit.run.Provenance` for each; empty by default.

        **Raises:**

        `ValueError` if the likelihood of every point is zero.
        """
        if not np.isfinite(dead.loglikelihood[-1]):
            raise ValueError(
                f"NestedRun(dead={dead}): the log-likelihood of every point is minus "
                "infinity, so that the evidence is zero and there is no posterior. "
                "Begin with more points, or narrow the prior to where the likelihood "
                "is above zero."
            )
        self.dead = dead
        self.num_steps = num_steps
        self.num_evaluations = num_evaluations
        self.converged = converged
        self.stop_reason = stop_reason
        self.key = key
        self.warnings = tuple(warnings)
        self.seconds = Seconds(*seconds)
        self.settings = dict(settings or {})
        self.provenance = tuple(provenance)

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
        """By how much the data narrow the prior, in nats; the mean over the volumes.

        The Kullback-Leibler divergence of the posterior from the prior (Skilling 2006).
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

        This is Kish's (1965, Survey Sampling): so many equally weighted points would
        tell a mean as well, if the volumes were known. What goes with the likelihood is
        known less well than that.
        """
        return float(1 / np.sum(self.weights**2))

    def posterior(
        self,
        key: Key[Array, ""] | UInt32[Array, " words"],
        n: int,
        derived_fn: Callable[[PyTree], PyTree] | None = None,
        *,
        batcher: AbstractBatcher = _VMAP,
    ) -> PyTree:
        """Draws positions from the posterior, all of equal weight.

        Each point is drawn as often as its weight says, rounded up or down (systematic
        resampling), so more draws than `ess` are drawn repeatedly.

        ```python
        import jax
        import jax.numpy as jnp
        import batchkit as bk

        x = jnp.linspace(0.0, 1.0, 100)
        dead = bk.DeadPoints(x, -x, jnp.full(100, -jnp.inf), jnp.zeros(100))
        run = bk.NestedRun(
            dead,
            num_steps=0,
            num_evaluations=100,
            converged=True,
            stop_reason="nothing to do",
            key=jax.random.key(0),
        )
        x, square = run.posterior(jax.random.key(1), 50, jnp.square)
        assert jnp.all(square == x**2)
        ```

        **Arguments:**

        - `key`: a key of JAX.
        - `n`: how many to draw.
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
        if n < 1:
            raise ValueError(
                f"posterior(n={n}): n must be at least 1, a number of draws."
            )
        chosen = resample(self.weights, n, generator(key))
        draws = jax.tree.map(
            lambda leaf: jnp.asarray(leaf[chosen]), self.dead.positions
        )
        return draws if derived_fn is None else with_derived(draws, derived_fn, batcher)

    def summary(
        self,
        *,
        quantiles: Sequence[float] = QUANTILES,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Summary:
        """Return a table of the parameters: mean, deviation and quantiles.

        **Arguments:**

        - `quantiles`: the ones to show, between 0 and 1; 0.05, 0.5 and 0.95 by default.
        - `transform`: a function from one position to what is shown in its place, such
            as the parameters whose logarithms were sampled. It is mapped over points in
            chunks. By default positions are shown as they are.

        **Returns:**

        A `Summary`, which prints as a table and has `to_dataframe` and `to_latex`.

        **Raises:**

        `TypeError` or `ValueError` if `quantiles` are no numbers between 0 and 1;
        `TypeError` if `transform` does not return real numbers.
        """
        shown = self.dead.positions
        if transform is not None:
            shown = over_draws(transform, shown, "NestedRun.summary", dims=1)
        return Summary(shown, self.weights, quantiles)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the run to a file, from which `load` makes it again, bit for bit.

        It is an HDF5 file without pickles, which any reader of HDF5 can read: the
        arrays are in `arrays`, such as `arrays/positions/mass`, `arrays/loglikelihood`
        and `arrays/weights`; the rest is JSON in `header`. Another result at that path
        is replaced whole or not at all; any other file stays.

        ```python
        import os
        import tempfile
        import jax
        import numpy as np
        import batchkit as bk

        x = np.random.default_rng(0).uniform(size=100)
        run = bk.NestedRun(
            bk.DeadPoints({"x": x}, -x, np.full(100, -np.inf), np.zeros(100)),
            num_steps=0,
            num_evaluations=100,
            converged=True,
            stop_reason="nothing to do",
            key=jax.random.key(0),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.h5")
            run.save(path)
            again = bk.NestedRun.load(path)
        assert again.log_evidence == run.log_evidence
        ```

        **Arguments:**

        - `path`: the file, in a folder that exists.

        **Raises:**

        `CheckpointError` if it cannot be written, or if there is a file that is no
        result of batchkit; `TypeError` if positions hold anything but numbers. Of
        settings that are neither numbers, text nor arrays, the text is saved.
        """
        save_nested(path, self)

    @staticmethod
    def load(
        path: str | os.PathLike[str], *, like: PyTree | None = None
    ) -> "NestedRun":
        """Read a run that `save` wrote, or the checkpoint of one.

        A checkpoint of a run that has not ended gives the result so far, from the
        points that had died and those that were alive; its `converged` is False and
        `warnings` is empty.

        **Arguments:**

        - `path`: the file.
        - `like`: a position with the structure to have; only the structure counts. By
            default dicts, lists and tuples are what they were, and in place of a class,
            such as a NamedTuple, there is a dict of its fields: a file holds no code.

        **Returns:**

        The run, with the bits and dtypes that it had.

        **Raises:**

        `CheckpointError` if there is no file, if it is damaged, from elsewhere, of
        another kind, or in a newer format; `ValueError` if `like` has other names.
        """
        dead, told = load_nested(path, like)
        with understood(os.fspath(path), AGAIN):
            return NestedRun(dead, **told)

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

        def run_of(seed):
            x = np.random.default_rng(seed).uniform(size=500)
            return bk.NestedRun(
                bk.DeadPoints({"x": x}, -x, np.full(500, -np.inf), np.zeros(500)),
                num_steps=0,
                num_evaluations=500,
                converged=True,
                stop_reason="nothing to do",
                key=jax.random.key(seed),
            )

        merged = bk.NestedRun.merge([run_of(0), run_of(1)])
        assert len(merged.dead) == merged.num_evaluations == 1000
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
        dead, arguments = merged(runs)
        return runs[0] if len(runs) == 1 else NestedRun(dead, **arguments)

    def to_arviz(
        self,
        n: int | None = None,
        key: Key[Array, ""] | UInt32[Array, " words"] | None = None,
        *,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Any:
        """The run for ArviZ, whose draws are all of equal weight.

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

        x = np.random.default_rng(0).uniform(size=(500, 2))
        run = bk.NestedRun(
            bk.DeadPoints({"x": x}, -x[:, 0], np.full(500, -np.inf), np.zeros(500)),
            num_steps=0,
            num_evaluations=500,
            converged=True,
            stop_reason="nothing to do",
            key=jax.random.key(0),
        )
        data = run.to_arviz()
        assert data.posterior["x"].dims == ("chain", "draw", "x_dim_0")
        assert data.dead_stats["weight"].sum() > 0.999
        ```

        **Arguments:**

        - `n`: how many to draw; by default as many as `ess`.
        - `key`: a key of JAX; by default one that comes from the run's.
        - `transform`: a function from one position to what stands in its place, such
            as the parameters whose logarithms were sampled. It is mapped over points in
            chunks. By default positions are there as they are.

        **Returns:**

        What the installed ArviZ works on: an `xarray.DataTree`, or an
        `arviz.InferenceData` before ArviZ 1.0. ArviZ knows no chains here, so R-hat and
        Monte Carlo errors of it mean nothing.

        **Raises:**

        `ImportError` if ArviZ is not installed; `ValueError` if `n` is below one, or if
        a parameter has the name of another or of an axis.
        """
        return to_arviz(self, n, key, transform)

    def to_anesthetic(self) -> Any:
        """The run for anesthetic, with all points, their births and their deaths.

        It needs `pip install 'batchkit-jax[anesthetic]'`. A likelihood of zero becomes
        `exp(-1e30)`, for anesthetic leaves points out that lie at minus infinity.

        ```python
        import jax
        import numpy as np
        import batchkit as bk

        x = np.random.default_rng(0).uniform(size=500)
        run = bk.NestedRun(
            bk.DeadPoints({"x": x}, -x, np.full(500, -np.inf), np.zeros(500)),
            num_steps=0,
            num_evaluations=500,
            converged=True,
            stop_reason="nothing to do",
            key=jax.random.key(0),
        )
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
        return to_anesthetic(self)

    def __repr__(self) -> str:
        return table(HEAD, rows_of(self))

    def _repr_html_(self) -> str:
        return html_table(HEAD, rows_of(self))
