"""The result file of a run of shards.

It holds the combined draws and the check by gradients as they are: both need the user's
functions, which no file has. So a checkpoint is not read as a result either; calling
`run_shards` with it again returns the result without sampling.
"""

import dataclasses
import os
from collections.abc import Mapping
from types import NoneType
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..chains import ChainSeconds
from ..run._diagnostic import diagnostics_as_saved, diagnostics_from
from ..run._environment import provenance_as_saved, provenance_from
from ..run._file import understood
from ..run._result_file import AGAIN, read_result, typed, write_result
from ..run._structure import shaped_like
from ._combine import way_to_combine
from ._gradients import GradientCheck
from ._plan import SamplingPlan
from ._stats import SamplingStats, ShardTry, Spread


_KIND: Final = "ShardRun"
_VECTORS: Final = ("mean_gradient", "mean_gradient_err", "shift", "shift_err")
_MATRICES: Final = ("matrix", "matrix_err", "excess", "excess_err")


def save_shards(path: str | os.PathLike[str], run: Any) -> None:
    """Write a `ShardRun`; see `ShardRun.save`."""
    check = run.gradient_check
    values = {
        "samples": run.samples,
        "shard_samples": run.shard_samples,
        "combine": run.combine,
        "used": list(run.used),
        "left_out": run.left_out,
        "shift": run.shift,
        "gradient_check": None if check is None else dataclasses.asdict(check),
        "stats": [_as_saved(stats) for stats in run.stats],
        "warnings": diagnostics_as_saved(run.warnings),
        "provenance": provenance_as_saved(run.provenance),
    }
    write_result(path, _KIND, values)


def load_shards(path: str | os.PathLike[str], like: PyTree) -> dict[str, Any]:
    """Return the attributes of a `ShardRun`; see `ShardRun.load`."""
    values = read_result(path, _KIND)
    with understood(os.fspath(path), AGAIN):
        stats = tuple(map(_stats_from, typed(values, "stats", list)))
        samples, of_shards = _draws_from(values, len(stats))
        used = tuple(typed(values, "used", list))
        left_out = typed(values, "left_out", dict)
        if sorted((*used, *left_out)) != list(range(len(stats))):
            raise ValueError(f"it has {len(stats)} shards, but uses {used!r}")
        if not all(type(reason) is str for reason in left_out.values()):
            raise ValueError(f"it leaves out shards for {left_out!r}")
        way_to_combine(combine := typed(values, "combine", str))
        attributes = {
            "combine": combine,
            "used": used,
            "left_out": left_out,
            "shift": typed(values, "shift", np.ndarray, NoneType),
            "gradient_check": _check_from(values),
            "stats": stats,
            "warnings": diagnostics_from(typed(values, "warnings", list)),
            "provenance": provenance_from(values),
        }
    if like is not None:
        samples, of_shards = (
            shaped_like("ShardRun.load", like, x) for x in (samples, of_shards)
        )
    return {**attributes, "samples": samples, "shard_samples": of_shards}


def _draws_from(values: Mapping[str, Any], count: int) -> tuple[PyTree, PyTree]:
    """Return the combined draws and those of shards, whose shapes must agree."""
    samples, of_shards = values["samples"], values["shard_samples"]
    leaves, treedef = jax.tree.flatten(samples)
    others, structure = jax.tree.flatten(of_shards)
    is_array = all(type(x) is np.ndarray for x in (*leaves, *others))
    if not leaves or not is_array or treedef != structure:
        raise ValueError("its draws are not those of its shards")
    chains = leaves[0].shape[:2]
    for leaf, other in zip(leaves, others, strict=True):
        if (
            not jnp.issubdtype(leaf.dtype, jnp.floating)
            or (leaf.shape[:2], len(chains)) != (chains, 2)
            or other.shape != (count, *leaf.shape)
        ):
            raise ValueError(
                f"it has draws of shape {leaf.shape}, of shards of {other.shape}"
            )
    return samples, of_shards


def _check_from(values: Mapping[str, Any]) -> GradientCheck | None:
    saved = typed(values, "gradient_check", dict, NoneType)
    if saved is None:
        return None
    names = typed(saved, "names", tuple)
    count = len(names)
    for group, shape in ((_VECTORS, (count,)), (_MATRICES, (count, count))):
        for name in group:
            if typed(saved, name, np.ndarray).shape != shape:
                raise ValueError(f"its {name} is of shape {saved[name].shape}")
    if not all(type(name) is str for name in names):
        raise ValueError(f"its parameters are {names!r}")
    typed(saved, "num_draws", int)
    return GradientCheck(**saved)


def _as_saved(stats: SamplingStats) -> dict[str, Any]:
    """Return statistics as numbers of Python, in dicts and tuples."""
    return jax.tree.map(
        lambda x: x.item() if isinstance(x, np.generic) else x,
        dataclasses.asdict(stats),
    )


def _stats_from(saved: Any) -> SamplingStats:
    spreads = {
        name: _spread_from(typed(saved, name, dict, NoneType))
        for name in ("step_size", "tree_depth", "inverse_mass_matrix")
    }
    return SamplingStats(
        shard=typed(saved, "shard", int),
        num_rows=typed(saved, "num_rows", int),
        plan=SamplingPlan(**typed(saved, "plan", dict)),
        tries=tuple(map(_try_from, typed(saved, "tries", tuple))),
        divergences=typed(saved, "divergences", int, NoneType),
        acceptance=typed(saved, "acceptance", float, NoneType),
        rhat=typed(saved, "rhat", float),
        ess=typed(saved, "ess", float),
        **spreads,
    )


def _spread_from(saved: dict[str, Any] | None) -> Spread | None:
    if saved is None:
        return None
    return Spread(*(typed(saved, name, int, float) for name in Spread._fields))


def _try_from(saved: Any) -> ShardTry:
    seconds = typed(saved, "seconds", dict)
    return ShardTry(
        number=typed(saved, "number", int),
        target_acceptance=typed(saved, "target_acceptance", float),
        divergence_rate=typed(saved, "divergence_rate", float),
        is_finite=typed(saved, "is_finite", bool),
        accepted=typed(saved, "accepted", bool),
        reason=typed(saved, "reason", str),
        seconds=ChainSeconds(
            *(typed(seconds, name, int, float) for name in ChainSeconds._fields)
        ),
    )
