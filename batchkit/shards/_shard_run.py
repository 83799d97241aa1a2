"""The result of chains on shards, and its file.

The file holds the combined draws and the check by gradients as they are: to make them
again takes the user's functions, which no file holds. So a checkpoint is not read as a
result; calling `run_shards` with it returns the result without sampling.
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from .._util._checks import check_type
from ..chains import ChainRun, Convergence
from ..chains._chain_run import AbstractDraws
from ..run._names import parameter_names
from ..run._packages import Provenance
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
from ._shard_tries import ShardTry, tries_as_json, tries_from_json


# From positions, arrays of shape `(positions, ...)`, to the gradients at them.
_Gradients = Callable[[PyTree], PyTree]
_VERDICTS: Final = {
    "reliable": "nothing was found that speaks against it",
    "doubtful": "look at the warnings before you use it",
    "unreliable": "do not use this result",
}


@final
class ShardRun(AbstractDraws):
    """The result of chains on shards: the combined draws, and whether to believe them.

    R-hat and the effective sample sizes are those of the combined draws. They count the
    noise of the draws, not the bias of combining them. No check sees what no chain has
    visited, such as another mode of the posterior. `shards[i]` has the chains of
    shard `i`, and `tries[i]` a `batchkit.shards.ShardTry` for each time that it ran;
    `used` are the indices of the shards that are combined, and `left_out` has the
    reasons for those that are not.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(3, 4, 500, 2))
    run = bk.ShardRun([bk.ChainRun({"x": x}) for x in draws])
    assert run.samples["x"].shape == (4, 500, 2)
    assert abs(np.std(run.samples["x"]) - 3**-0.5) < 0.05
    print(run)
    print(run.shards[2])
    print(run.summary())
    ```
    """

    _title = "shards"
    _positions = ("samples",)
    _inner = ("shards",)

    def __init__(
        self,
        shards: Sequence[ChainRun],
        *,
        tries: Sequence[Sequence[ShardTry]] = (),
        rng_key: Any = None,
        combine: str = "consensus",
        failed: dict[int, str] | None = None,
        gradients_fn: Callable[[tuple[int, ...]], _Gradients] | None = None,
        refine: bool = True,
        provenance: Sequence[Provenance] = (),
    ) -> None:
        """**Arguments:**

        - `shards`: a [`ChainRun`][batchkit.ChainRun] of each shard, all of the same
            parameters, with as many chains and draws.
        - `tries`: of each shard a `batchkit.shards.ShardTry` for each time that it ran;
            unknown by default.
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

        `ValueError` or `TypeError` as `combine_shards` does, and for shards that differ
        in parameters, chains or draws. `ValueError` if there are tries of more shards
        or of fewer, or if `failed` has all shards, or an index that is no shard.
        """
        failed = failed or {}
        self.shards = tuple(shards)
        count = len(self.shards)
        self.tries = tuple(map(tuple, tries or [()] * count))
        _check_shards(self.shards, self.tries, failed)
        self.combine = combine
        self.provenance = tuple(provenance)
        kept = [s for s in range(count) if s not in failed]
        good = [self.shards[s].samples for s in kept]
        stacked = jax.tree.map(lambda *x: np.stack(x), *good)
        combined = combine_shards(stacked, combine, rng_key)
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
            self.shards,
            self.tries,
            names,
            self.left_out,
            combine,
            of_gradients,
            self.shift,
            refine and gradients_fn is not None,
        )

    @property
    def seconds(self) -> Seconds:
        """The wall time of all tries: to compile, to warm up and to sample."""
        rounds = {x.number: x.seconds for tries in self.tries for x in tries}
        return Seconds(*(sum((x[i] for x in rounds.values()), 0.0) for i in range(4)))

    @property
    def success_rate(self) -> float:
        """The fraction of shards that are in the result."""
        return len(self.used) / len(self.shards)

    @property
    def verdict(self) -> str:
        """`"reliable"`, `"doubtful"` if there are warnings, or `"unreliable"`."""
        names = {warning.name for warning in self.warnings}
        return "unreliable" if names & FATAL else "doubtful" if names else "reliable"

    def _rows(self) -> list[tuple[str, str]]:
        count = f"{len(self.used)} of {len(self.shards)}"
        rows = [
            ("verdict", f"{self.verdict}: {_VERDICTS[self.verdict]}"),
            ("shards", f"{count}, combined by {self.combine!r}"),
            *self._rows_of_draws(),
        ]
        if self.shift is not None:
            moved = np.max(np.abs(self.shift))
            rows.append(("moved", f"by up to {moved:.2f} standard deviations"))
        if self.gradient_check is None:
            rows.append(("means", "not checked by gradients of all data"))
        elif not any(warning.name in GRADIENT_WARNINGS for warning in self.warnings):
            # Two standard errors are allowed for.
            shift, variance = self.gradient_check.bounds
            rows += [
                ("means", f"within {shift:.2f} standard deviations of the posterior's"),
                ("variances", f"within {variance:.0%} of the posterior's"),
            ]
        return rows

    def _sample_stats(self) -> dict[str, Any]:
        return {}

    def _values(self) -> dict[str, Any]:
        check = self.gradient_check
        return {
            "samples": self.samples,
            "shards": [x._all_values() for x in self.shards],
            "tries": list(map(tries_as_json, self.tries)),
            "combine": self.combine,
            "used": list(self.used),
            "left_out": self.left_out,
            "shift": self.shift,
            "gradient_check": None if check is None else dataclasses.asdict(check),
            "warnings": diagnostics_as_saved(self.warnings),
        }

    @staticmethod
    def _read_checkpoint(header: Header, arrays: Arrays) -> dict[str, Any]:
        raise NotImplementedError("to combine draws takes functions of the user")

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "ShardRun":
        shards = tuple(map(ChainRun._from_values, values["shards"]))
        tries = tuple(tuple(tries_from_json(x)) for x in typed(values, "tries", list))
        used = tuple(typed(values, "used", list))
        left_out = typed(values, "left_out", dict)
        _check_shards(shards, tries, left_out)
        combined = ChainRun(values["samples"])  # refuses what are no draws
        if _structure(combined) != _structure(shards[0]):
            raise ValueError("its combined draws are not like those of a shard")
        if sorted((*used, *left_out)) != list(range(len(shards))):
            raise ValueError(f"it has {len(shards)} shards, but uses {used!r}")
        if not all(type(reason) is str for reason in left_out.values()):
            raise ValueError(f"it leaves out shards for {left_out!r}")
        way_to_combine(typed(values, "combine", str))
        check = record_from(values, "gradient_check", GradientCheck | None)
        if check is not None and len(check.names) != len(check.shift):
            raise ValueError(f"its gradients are of {check.names!r}")
        # Not by `__init__`, which combines draws anew, with functions of the user.
        run = object.__new__(cls)
        vars(run).update(
            samples=combined.samples,
            shards=shards,
            tries=tries,
            combine=values["combine"],
            used=used,
            left_out=left_out,
            shift=typed(values, "shift", np.ndarray, NoneType),
            gradient_check=check,
            warnings=tuple(record_from(values, "warnings", list[Diagnostic])),
            provenance=values["provenance"],
            _convergence=combined._convergence,
        )
        return run


def _check_shards(
    shards: Sequence[ChainRun],
    tries: Sequence[Sequence[ShardTry]],
    failed: dict[int, str],
) -> None:
    for shard in shards:
        is_right = isinstance(shard, ChainRun)
        check_type(is_right, "ShardRun", "shards", shard, "ChainRuns, one for a shard")
    count = len(shards)
    structures = list(map(_structure, shards))
    for i, structure in enumerate(structures):
        if structure != structures[0]:
            raise ValueError(
                "ShardRun(shards=...): all shards must have the same parameters, and "
                f"as many chains and draws; shard 0 has {structures[0]}, and shard {i} "
                f"{structure}."
            )
    if len(tries) != count:
        raise ValueError(
            f"ShardRun(tries=...): there must be tries of each shard, but there are "
            f"{count} shards, and tries of {len(tries)}."
        )
    if not set(failed) < set(range(count)):
        raise ValueError(
            f"ShardRun(failed={failed!r}): failed must have indices of some of the "
            f"{count} shards, below {count}, and leave one."
        )


def _structure(run: ChainRun) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, treedef = jax.tree.flatten(run.samples)
    return treedef, [x.shape for x in leaves]
