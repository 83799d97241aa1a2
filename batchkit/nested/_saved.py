"""A nested run as a file."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..run._diagnostic import Diagnostic
from ..run._environment import provenance_as_saved, provenance_from
from ..run._result_file import read_result, write_result
from ..run._structure import describable, shaped_like
from ._dead import DeadPoints


def save_nested(path: str | os.PathLike[str], run: Any) -> None:
    """Writes a `NestedRun`; see `NestedRun.save`."""
    evaluations = run.num_evaluations
    values = {
        "positions": run.dead.positions,
        "loglikelihood": run.dead.loglikelihood,
        "loglikelihood_birth": run.dead.loglikelihood_birth,
        "logprior": run.dead.logprior,
        "key": run.key,
        "num_steps": int(run.num_steps),
        "num_evaluations": None if evaluations is None else int(evaluations),
        "converged": bool(run.converged),
        "stop_reason": str(run.stop_reason),
        "warnings": [
            [x.name, float(x.value), float(x.threshold), x.message]
            for x in run.warnings
        ],
        "seconds": [float(x) for x in run.seconds],
        "settings": describable(run.settings),
        "provenance": provenance_as_saved(run.provenance),
        # They follow from the rest, but only batchkit knows how.
        "weights": run.weights,
        "log_evidence": run.log_evidence,
        "log_evidence_err": run.log_evidence_err,
    }
    write_result(path, "NestedRun", values)


def load_nested(
    path: str | os.PathLike[str], like: PyTree
) -> tuple[DeadPoints, dict[str, Any]]:
    """The arguments of a `NestedRun`; see `NestedRun.load`."""
    values = read_result(path, "NestedRun")
    positions = values["positions"]
    if like is not None:
        positions = shaped_like("NestedRun.load", like, positions)
    dead = DeadPoints(
        positions,
        values["loglikelihood"],
        values["loglikelihood_birth"],
        values["logprior"],
    )
    key = values["key"]
    told = {
        "key": key if isinstance(key, jax.Array) else jnp.asarray(key),
        "warnings": [Diagnostic(*x) for x in values["warnings"]],
        "seconds": tuple(values["seconds"]),
        "provenance": provenance_from(values),
    }
    rest = ("num_steps", "num_evaluations", "converged", "stop_reason", "settings")
    return dead, {**told, **{name: values[name] for name in rest}}
