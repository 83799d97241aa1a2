"""A nested run as a file: a result, or a checkpoint read as one."""

import os
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..run._diagnostic import diagnostics_as_saved, diagnostics_from
from ..run._environment import provenance_as_saved, provenance_from
from ..run._file import understood
from ..run._keys import check_key
from ..run._result_file import AGAIN, numbers, read_result, typed, write_result
from ..run._structure import describable, put_together, shaped_like
from ..run._trees import array_names, names_to_save
from ._dead import DeadPoints, dead_points
from ._programs import Dying


_NUMBERS: Final = ("loglikelihood", "loglikelihood_birth", "logprior")


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
        "warnings": diagnostics_as_saved(run.warnings),
        "seconds": [float(x) for x in run.seconds],
        "settings": describable(run.settings),
        "provenance": provenance_as_saved(run.provenance),
        # They follow from the rest, but only batchkit knows how.
        "weights": run.weights,
        "log_evidence": run.log_evidence,
        "log_evidence_err": run.log_evidence_err,
    }
    write_result(path, "NestedRun", values)


def for_readers(state: Any, dead: Any, run: Any | None) -> dict[str, Any]:
    """Header entries with which `load_nested` reads a checkpoint.

    **Arguments:**

    - `state`, `dead`: pytrees that are saved under these names.
    - `run`: the `NestedRun` if the run has ended, or None.
    """
    particles = array_names("state", state).sampler.particles
    told = {
        "live": names_to_save(Dying.of(particles)),
        "dead": names_to_save(array_names("dead", dead)),
        "ended": None,
    }
    if run is not None:
        told["ended"] = {
            "stop_reason": run.stop_reason,
            "converged": run.converged,
            "warnings": diagnostics_as_saved(run.warnings),
        }
    return told


def load_nested(
    path: str | os.PathLike[str], like: PyTree
) -> tuple[DeadPoints, dict[str, Any]]:
    """The arguments of a `NestedRun`; see `NestedRun.load`."""
    values = read_result(path, "NestedRun", _values_of_checkpoint)
    with understood(os.fspath(path), AGAIN):
        points = [values[name] for name in ("positions", *_NUMBERS)]
        dead = DeadPoints(*points)
        if not all(
            jnp.issubdtype(getattr(dead, x).dtype, jnp.floating) for x in _NUMBERS
        ):
            raise ValueError("its log-likelihoods or log-priors are no real numbers")
        check_key(key := jnp.asarray(values["key"]), "NestedRun.load")
        told = {
            "key": key,
            "num_steps": typed(values, "num_steps", int),
            "num_evaluations": typed(values, "num_evaluations", int, type(None)),
            "converged": typed(values, "converged", bool),
            "stop_reason": typed(values, "stop_reason", str),
            "warnings": diagnostics_from(typed(values, "warnings", list)),
            "seconds": numbers(values, "seconds", 2),
            "settings": typed(values, "settings", dict),
            "provenance": provenance_from(values),
        }
    if like is not None:
        positions = shaped_like("NestedRun.load", like, values["positions"])
        dead = DeadPoints(positions, *points[1:])
    return dead, told


def _values_of_checkpoint(
    header: dict[str, Any], arrays: dict[str, Any]
) -> dict[str, Any]:
    told = header.get("result")
    if told is None or None in (told["live"], told["dead"]):
        raise ValueError(
            "it is a checkpoint without the names of parameters; call run_nested with "
            "checkpoint= to have its result"
        )
    parts = []
    for name in ("dead", "live"):
        names = put_together(told[name], {})
        points = jax.tree.map(lambda x: arrays[x], names)
        parts.append(
            (
                points["positions"],
                points["logprior"],
                points["loglikelihood"],
                points["loglikelihood_birth"],
            )
        )
    dead = dead_points(parts)
    step = typed(header, "step", int)
    ended = told["ended"] or {
        "stop_reason": f"it was saved after step {step}, and had not ended",
        "converged": False,
        "warnings": [],
    }
    return {
        "positions": dead.positions,
        **{name: getattr(dead, name) for name in _NUMBERS},
        "key": arrays["key"],
        "num_steps": step,
        "num_evaluations": header["evaluations"],
        "seconds": header["seconds"],
        "settings": header["settings"],
        "provenance": header.get("provenance", []),
        **{name: ended[name] for name in ("stop_reason", "converged", "warnings")},
    }
