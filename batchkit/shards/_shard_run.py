"""What the shards have found together, and whether to believe it."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from .._util._table import html_table, table
from ..chains import ChainSeconds, ChainSummary, Convergence
from ..chains._exports import to_arviz
from ..chains._summary import named_numbers, summary_of_draws
from ..run._diagnostic import Diagnostic
from ..run._environment import Provenance, provenance_rows
from ..run._file import understood
from ..run._names import parameter_names
from ..run._result_file import AGAIN
from ..run._summary import QUANTILES
from ._checks import FATAL, diagnose_shards
from ._combine import combine_shards
from ._gradients import GRADIENT_WARNINGS, GradientCheck, check_gradients
from ._refine import refined
from ._shard_file import load_shards, save_shards
from ._stats import SamplingStats


_HEAD: Final = ("shards", "")
_OF_SHARD: Final = (
    "shard",
    "rows",
    "tries",
    "divergences",
    "R-hat",
    "ESS",
    "step size",
    "target",
)


# From positions, arrays of shape `(positions, ...)`, to the gradients at them.
_Gradients = Callable[[PyTree], PyTree]
# What no check can see, so that the report ends with it.
_BLIND: Final = (
    "No check sees what no chain has visited, such as another mode of the posterior: "
    "gradients are local. Start from points as far apart as the posterior may be wide; "
    "draws of the prior (`prior_sample_fn`) are."
)


@final
class ShardRun:
    """The result of chains on shards: the combined draws, and whether to believe them.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(3, 4, 500, 2))
    plan = bk.SamplingPlan(100, 500)
    run = bk.ShardRun(
        {"x": draws},
        [bk.SamplingStats(s, 10, plan, (), rhat=1.0, ess=2000.0) for s in range(3)],
        jax.random.key(0),
    )
    assert run.samples["x"].shape == (4, 500, 2)
    assert abs(np.std(run.samples["x"]) - 3**-0.5) < 0.05
    print(run.report())
    print(run.summary())
    ```
    """

    def __init__(
        self,
        shard_samples: PyTree,
        stats: Sequence[SamplingStats],
        rng_key: Any = None,
        combine: str = "consensus",
        failed: dict[int, str] | None = None,
        gradients_fn: Callable[[tuple[int, ...]], _Gradients] | None = None,
        refine: bool = True,
        provenance: Sequence[Provenance] = (),
    ) -> None:
        """**Arguments:**

        - `shard_samples`: the draws of each shard, a pytree of arrays of shape
            `(shards, chains, draws, ...)`.
        - `stats`: how the chains of each shard went.
        - `rng_key`: a key of JAX, for combinations that draw; None by default.
        - `combine`: how draws are combined, as in
            [`combine_shards`][batchkit.combine_shards]; `"consensus"` by default.
        - `failed`: of shards that are not to be used, by their index, the reason; none
            by default.
        - `gradients_fn`: a function from the indices of the shards that are combined to
            a function from positions, arrays of shape `(positions, ...)`, to the
            gradients at them of the log-density of all rows of those shards, of the
            same shapes. By default there is none, and means and widths are not checked.
        - `refine`: whether draws are moved to where the mean gradient is zero; True by
            default, which does nothing without `gradients_fn`.
        - `provenance`: which versions computed it from which draw on, counted through
            all tries, a `batchkit.run.Provenance` for each; empty by default.

        **Raises:**

        `ValueError` or `TypeError` as `combine_shards` does, `ValueError` also if there
        are not as many `stats` as shards, or `failed` has all shards or one that there
        is not.
        """
        failed = failed or {}
        self.shard_samples = jax.tree.map(np.asarray, shard_samples)
        self.stats = tuple(stats)
        _check_shards(self.shard_samples, len(self.stats), failed)
        self.combine = combine
        self.provenance = tuple(provenance)
        kept = [s for s in range(len(self.stats)) if s not in failed]
        good = jax.tree.map(lambda x: x[kept], self.shard_samples)
        combined = combine_shards(good, combine, rng_key)
        out = {kept[place]: reason for place, reason in combined.left_out.items()}
        self.used = tuple(kept[place] for place in combined.used)
        self.samples, self.shift = combined.samples, None
        self.gradient_check: GradientCheck | None = None
        names = parameter_names(jax.tree.map(lambda x: x[0], self.samples))
        of_gradients: tuple[Diagnostic, ...] = ()
        if gradients_fn is not None:
            found = refined(self.samples, gradients_fn(self.used), refine)
            self.samples, self.shift = found.samples, found.shift
            self.gradient_check, of_gradients = check_gradients(
                found.draws, found.places, found.some, found.gradients, names
            )
        self.left_out = dict(sorted({**failed, **out}.items()))
        self._convergence = Convergence(self.samples)
        self.warnings = diagnose_shards(
            self.samples,
            self._convergence,
            _flat(jax.tree.map(lambda x: x[list(self.used)], self.shard_samples)),
            names,
            self.stats,
            self.used,
            self.left_out,
            combine,
            of_gradients,
            self.shift,
            refine and gradients_fn is not None,
        )

    @property
    def num_chains(self) -> int:
        """The number of chains of the combined draws, which is that of each shard."""
        return jax.tree.leaves(self.samples)[0].shape[0]

    @property
    def num_samples(self) -> int:
        """The number of combined draws in each chain."""
        return jax.tree.leaves(self.samples)[0].shape[1]

    @property
    def seconds(self) -> ChainSeconds:
        """The wall time of all tries: to compile, to warm up and to sample."""
        rounds = {x.number: x.seconds for stats in self.stats for x in stats.tries}
        return ChainSeconds(
            *(sum((x[i] for x in rounds.values()), 0.0) for i in range(4))
        )

    @property
    def rhat(self) -> PyTree:
        """Split R-hat of the combined draws, of each number of a position."""
        return self._convergence.rhat

    @property
    def ess_bulk(self) -> PyTree:
        """The bulk effective sample size of the combined draws.

        It counts the noise of the draws, not the bias of combining them.
        """
        return self._convergence.ess_bulk

    @property
    def ess_tail(self) -> PyTree:
        """The tail effective sample size of the combined draws."""
        return self._convergence.ess_tail

    @property
    def success_rate(self) -> float:
        """The part of all shards that are in the result."""
        return len(self.used) / len(self.stats)

    @property
    def verdict(self) -> str:
        """`"reliable"`, `"doubtful"` if something was found, or `"unreliable"`."""
        names = {warning.name for warning in self.warnings}
        return "unreliable" if names & FATAL else "doubtful" if names else "reliable"

    def summary(
        self,
        *,
        quantiles: Sequence[float] = QUANTILES,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> ChainSummary:
        """Return a table of the parameters: mean, deviation, quantiles, R-hat, ESS.

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
            "ShardRun.summary",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file, from which `load` makes it again, bit for bit.

        It is an HDF5 file without pickles, which any reader of HDF5 can read: the
        arrays are in `arrays`, such as `arrays/samples/mass` and
        `arrays/shard_samples/mass`; the rest is JSON in `header`. Another result at
        that path is replaced whole or not at all; any other file stays.

        ```python
        import os
        import tempfile
        import jax
        import numpy as np
        import batchkit as bk

        plan = bk.SamplingPlan(100, 500)
        run = bk.ShardRun(
            {"x": np.random.default_rng(0).normal(size=(3, 4, 500))},
            [bk.SamplingStats(s, 10, plan, ()) for s in range(3)],
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.h5")
            run.save(path)
            again = bk.ShardRun.load(path)
        assert np.all(again.samples["x"] == run.samples["x"])
        ```

        **Arguments:**

        - `path`: the file, in a folder that exists.

        **Raises:**

        `CheckpointError` if it cannot be written, or if there is a file that is no
        result of batchkit.
        """
        save_shards(path, self)

    @staticmethod
    def load(path: str | os.PathLike[str], *, like: PyTree | None = None) -> "ShardRun":
        """Read a run that `save` wrote.

        The checkpoint of a run is not read: to combine the draws of shards takes the
        user's functions. Call `run_shards` again, which returns the result of a
        finished run without sampling.

        **Arguments:**

        - `path`: the file.
        - `like`: a position with the structure to have; only the structure counts. By
            default dicts, lists and tuples are what they were, and in place of a class,
            such as a NamedTuple, there is a dict of its fields: a file holds no code.

        **Returns:**

        The run, with the bits and dtypes, the warnings and the check by gradients that
        it had.

        **Raises:**

        `CheckpointError` if there is no file, if it is damaged, from elsewhere, of
        another kind, or in a newer format; `ValueError` if `like` has other names.
        """
        # Not by `__init__`, which combines draws anew, with functions of the user.
        run = object.__new__(ShardRun)
        vars(run).update(load_shards(path, like))
        with understood(os.fspath(path), AGAIN):
            run._convergence = Convergence(run.samples)
        return run

    def to_arviz(
        self,
        *,
        log_likelihood: Callable[[PyTree], PyTree] | None = None,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Any:
        """Return the combined draws for ArviZ.

        It needs `pip install 'batchkit-jax[arviz]'`. The groups are

        - `posterior`: each array of a position under its name (`"lens.mass"`).
        - `log_likelihood`, if the argument is given: what `arviz.loo` and
            `arviz.compare` work on.

        There are no `sample_stats`: a combined draw is made of draws of all shards, and
        no sampler has told of it.

        **Arguments:**

        - `log_likelihood`: a function from one position to the log-likelihoods of the
            observations of all shards, as for
            [`ChainRun.to_arviz`][batchkit.ChainRun.to_arviz]. By default the group is
            left out.
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
            {},
            log_likelihood,
            transform,
            self.seconds.sampling,
            "ShardRun.to_arviz",
        )

    def report(self) -> str:
        """Whether to believe the result, why, and what to do, in words."""
        total, used = len(self.stats), len(self.used)
        first = {
            "reliable": "Reliable: nothing was found that speaks against it.",
            "doubtful": "Doubtful: look at what was found before you use it.",
            "unreliable": "Unreliable: do not use this result.",
        }[self.verdict]
        again = sum(len(x.tries) > 1 for x in self.stats)
        rhat = np.max([value for _, value in named_numbers(self.rhat)])
        ess = np.min([value for _, value in named_numbers(self.ess_bulk)])
        lines = [
            first,
            f"{used} of {total} shards are combined by {self.combine!r}; {again} ran "
            f"more than once. R-hat of the combined draws is at most {rhat:.3f}, "
            f"their bulk ESS at least {ess:,.0f}.{self._moved()}",
            *(f"- {warning}" for warning in self.warnings),
            *(f"- {name} {told}" for name, told in provenance_rows(self.provenance)),
            *self._of_gradients(),
            table(_OF_SHARD, [_row(x) for x in self.stats]),
            "",
            _BLIND,
        ]
        return "\n".join(lines)

    def _moved(self) -> str:
        if self.shift is None:
            return ""
        far = np.max(np.abs(self.shift))
        return (
            f" The gradient of all data has moved them by up to {far:.2f} deviations."
        )

    def _of_gradients(self) -> list[str]:
        check = self.gradient_check
        if check is None:
            return ["There are no gradients of all data to check means by.", ""]
        passed = []
        if not any(warning.name in GRADIENT_WARNINGS for warning in self.warnings):
            shift, variance = check.bounds
            passed = [
                "Over the draws the mean gradient of all data is zero and integration "
                f"by parts holds: means are within {shift:.2f} standard deviations of "
                f"those of the posterior, and variances within {variance:.0%}, "
                "allowing for two standard errors."
            ]
        return [*passed, "", str(check), ""]

    def __repr__(self) -> str:
        return table(_HEAD, self._rows())

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("verdict", self.verdict),
            ("shards", f"{len(self.used)} of {len(self.stats)}, {self.combine}"),
            ("draws", f"{self.num_chains:,} chains of {self.num_samples:,}"),
            *provenance_rows(self.provenance),
            *(("warning", str(warning)) for warning in self.warnings),
        ]


def _check_shards(samples: PyTree, count: int, failed: dict[int, str]) -> None:
    sizes = {x.shape[:1] for x in jax.tree.leaves(samples)}
    if sizes != {(count,)}:
        raise ValueError(
            f"ShardRun(stats=...): there must be one SamplingStats for each shard, but "
            f"there are {count}, and the first axes of shard_samples are "
            f"{sorted(sizes)}."
        )
    if not set(failed) < set(range(count)):
        raise ValueError(
            f"ShardRun(failed={failed!r}): failed must have indices of some of the "
            f"{count} shards, below {count}, and leave one."
        )


def _flat(samples: PyTree) -> np.ndarray:
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(samples)]
    return np.concatenate([x.reshape(*x.shape[:3], -1) for x in leaves], axis=3)


def _row(stats: SamplingStats) -> tuple[str, ...]:
    last = stats.tries[-1] if stats.tries else None
    diverged = stats.divergences
    return (
        str(stats.shard),
        f"{stats.num_rows:,}",
        f"{len(stats.tries)}{'' if last is None or last.accepted else ', failed'}",
        "not told" if diverged is None else f"{stats.divergence_rate:.1%}",
        f"{stats.rhat:.3f}",
        f"{stats.ess:,.0f}",
        "" if stats.step_size is None else f"{stats.step_size.median:.3g}",
        "" if last is None else f"{last.target_acceptance:.2f}",
    )
