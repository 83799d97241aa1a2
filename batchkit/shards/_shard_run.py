"""The result of chains on shards, its report, and its file.

The file holds the combined draws and the check by gradients as they are: to make them
again takes the user's functions, which no file holds. So a checkpoint is not read as a
result; calling `run_shards` with it returns the result without sampling.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import table
from ..chains import Convergence
from ..chains._chain_run import AbstractDraws
from ..run._names import named_numbers, parameter_names
from ..run._packages import Provenance, provenance_rows
from ..run._result import (
    Arrays,
    Diagnostic,
    Header,
    Seconds,
    diagnostics_as_saved,
)
from ..run._trees import record_from, typed
from ._combine import combine_shards, refined, way_to_combine
from ._gradients import GRADIENT_WARNINGS, GradientCheck, check_gradients
from ._shard_diagnostics import FATAL, diagnose_shards
from ._shard_stats import SamplingStats


_VECTORS: Final = ("mean_gradient", "mean_gradient_err", "shift", "shift_err")
_MATRICES: Final = ("matrix", "matrix_err", "excess", "excess_err")
# From positions, arrays of shape `(positions, ...)`, to the gradients at them.
_Gradients = Callable[[PyTree], PyTree]
# The limit of all checks, with which the report ends.
_BLIND: Final = (
    "No check sees what no chain has visited, such as another mode of the posterior: "
    "gradients are local. Start from points as far apart as the posterior may be wide; "
    "draws of the prior (`prior_sample_fn`) are."
)


@final
class ShardRun(AbstractDraws):
    """The result of chains on shards: the combined draws, and whether to believe them.

    R-hat and the effective sample sizes are those of the combined draws. They count the
    noise of the draws, not the bias of combining them.

    ```python
    import jax
    import numpy as np
    import batchkit as bk
    from batchkit.shards import SamplingStats

    draws = np.random.default_rng(0).normal(size=(3, 4, 500, 2))
    plan = bk.SamplingPlan(100, 500)
    run = bk.ShardRun(
        {"x": draws},
        [SamplingStats(s, 10, plan, (), rhat=1.0, ess=2000.0) for s in range(3)],
        jax.random.key(0),
    )
    assert run.samples["x"].shape == (4, 500, 2)
    assert abs(np.std(run.samples["x"]) - 3**-0.5) < 0.05
    print(run.report())
    print(run.summary())
    ```
    """

    _title = "shards"
    _positions = ("samples", "shard_samples")

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
        are not as many `stats` as shards, or if `failed` has all shards, or an index
        that is no shard.
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
        of_used = [
            np.asarray(x[list(self.used)], np.float64)
            for x in jax.tree.leaves(self.shard_samples)
        ]
        self.warnings = diagnose_shards(
            self.samples,
            self._convergence,
            np.concatenate([x.reshape(*x.shape[:3], -1) for x in of_used], axis=3),
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
    def seconds(self) -> Seconds:
        """The wall time of all tries: to compile, to warm up and to sample."""
        rounds = {x.number: x.seconds for stats in self.stats for x in stats.tries}
        return Seconds(*(sum((x[i] for x in rounds.values()), 0.0) for i in range(4)))

    @property
    def success_rate(self) -> float:
        """The fraction of shards that are in the result."""
        return len(self.used) / len(self.stats)

    @property
    def verdict(self) -> str:
        """`"reliable"`, `"doubtful"` if there are warnings, or `"unreliable"`."""
        names = {warning.name for warning in self.warnings}
        return "unreliable" if names & FATAL else "doubtful" if names else "reliable"

    def report(self) -> str:
        """Return a report on whether to believe the result, why, and what to do."""
        first = {
            "reliable": "Reliable: nothing was found that speaks against it.",
            "doubtful": "Doubtful: look at what was found before you use it.",
            "unreliable": "Unreliable: do not use this result.",
        }[self.verdict]
        again = sum(len(x.tries) > 1 for x in self.stats)
        rhat = np.max([value for _, value in named_numbers(self.rhat)])
        ess = np.min([value for _, value in named_numbers(self.ess_bulk)])
        moved = ""
        if self.shift is not None:
            moved = (
                " The gradient of all data has moved them by up to "
                f"{np.max(np.abs(self.shift)):.2f} deviations."
            )
        shards = [_row(x) for x in self.stats]
        lines = [
            first,
            f"{len(self.used)} of {len(self.stats)} shards are combined by "
            f"{self.combine!r}; {again} ran more than once. R-hat of the combined "
            f"draws is at most {rhat:.3f}, their bulk ESS at least {ess:,.0f}.{moved}",
            *(f"- {warning}" for warning in self.warnings),
            *(f"- {name} {text}" for name, text in provenance_rows(self.provenance)),
            *self._report_gradients(),
            table(list(shards[0]), [list(row.values()) for row in shards]),
            "",
            _BLIND,
        ]
        return "\n".join(lines)

    def _report_gradients(self) -> list[str]:
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

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("verdict", self.verdict),
            ("shards", f"{len(self.used)} of {len(self.stats)}, {self.combine}"),
            ("draws", f"{self.num_chains:,} chains of {self.num_samples:,}"),
        ]

    def _sample_stats(self) -> dict[str, Any]:
        return {}

    def _values(self) -> dict[str, Any]:
        check = self.gradient_check
        stats = [dataclasses.asdict(x) for x in self.stats]
        return {
            "samples": self.samples,
            "shard_samples": self.shard_samples,
            "combine": self.combine,
            "used": list(self.used),
            "left_out": self.left_out,
            "shift": self.shift,
            "gradient_check": None if check is None else dataclasses.asdict(check),
            # Scalars of NumPy would be stored as arrays.
            "stats": jax.tree.map(
                lambda x: x.item() if isinstance(x, np.generic) else x, stats
            ),
            "warnings": diagnostics_as_saved(self.warnings),
        }

    @staticmethod
    def _read_checkpoint(header: Header, arrays: Arrays) -> dict[str, Any]:
        raise NotImplementedError("to combine draws takes functions of the user")

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "ShardRun":
        stats = tuple(record_from(values, "stats", list[SamplingStats]))
        _check_draws(values["samples"], values["shard_samples"], len(stats))
        used = tuple(typed(values, "used", list))
        left_out = typed(values, "left_out", dict)
        if sorted((*used, *left_out)) != list(range(len(stats))):
            raise ValueError(f"it has {len(stats)} shards, but uses {used!r}")
        if not all(type(reason) is str for reason in left_out.values()):
            raise ValueError(f"it leaves out shards for {left_out!r}")
        way_to_combine(typed(values, "combine", str))
        # Not by `__init__`, which combines draws anew, with functions of the user.
        run = object.__new__(cls)
        vars(run).update(
            samples=values["samples"],
            shard_samples=values["shard_samples"],
            combine=values["combine"],
            used=used,
            left_out=left_out,
            shift=typed(values, "shift", np.ndarray, NoneType),
            gradient_check=_check_from(values),
            stats=stats,
            warnings=tuple(record_from(values, "warnings", list[Diagnostic])),
            provenance=values["provenance"],
            _convergence=Convergence(values["samples"]),
        )
        return run


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


def _row(stats: SamplingStats) -> dict[str, str]:
    last = stats.tries[-1] if stats.tries else None
    failed = ", failed" if last is not None and not last.accepted else ""
    rate, step = stats.divergence_rate, stats.step_size
    return {
        "shard": str(stats.shard),
        "rows": f"{stats.num_rows:,}",
        "tries": f"{len(stats.tries)}{failed}",
        "divergences": "unknown" if stats.divergences is None else f"{rate:.1%}",
        "R-hat": f"{stats.rhat:.3f}",
        "ESS": f"{stats.ess:,.0f}",
        "step size": "" if step is None else f"{step.median:.3g}",
        "target": "" if last is None else f"{last.target_acceptance:.2f}",
    }


def _check_draws(samples: PyTree, shard_samples: PyTree, count: int) -> None:
    """Refuse draws of a file that do not agree with those of its shards."""
    leaves, treedef = jax.tree.flatten(samples)
    others, structure = jax.tree.flatten(shard_samples)
    shapes, found = [x.shape for x in leaves], [x.shape for x in others]
    if (
        treedef != structure
        or found != [(count, *shape) for shape in shapes]
        or len({shape[:2] for shape in shapes}) > 1
        or len(shapes[0]) < 2
        or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves)
    ):
        raise ValueError(f"it has draws of shapes {shapes}, of shards of {found}")


def _check_from(values: Mapping[str, Any]) -> GradientCheck | None:
    saved = typed(values, "gradient_check", dict, NoneType)
    if saved is None:
        return None
    names = record_from(saved, "names", tuple[str, ...])
    typed(saved, "num_draws", int)
    shapes = {
        **dict.fromkeys(_VECTORS, (len(names),)),
        **dict.fromkeys(_MATRICES, (len(names), len(names))),
    }
    for name, shape in shapes.items():
        if typed(saved, name, np.ndarray).shape != shape:
            raise ValueError(f"its {name} is of shape {saved[name].shape}")
    return GradientCheck(**saved)
