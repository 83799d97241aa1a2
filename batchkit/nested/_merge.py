"""The parts of one nested run made of several on one problem."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..run._environment import Provenance
from ._dead import DeadPoints, concatenate


def merged(runs: Sequence[Any]) -> tuple[DeadPoints, dict[str, Any]]:
    """Return the arguments of a `NestedRun` of all runs; see `NestedRun.merge`."""
    _check(runs)
    first = runs[0]
    counts = [run.num_evaluations for run in runs]
    reasons = dict.fromkeys(run.stop_reason for run in runs)
    warnings = dict.fromkeys(warning for run in runs for warning in run.warnings)
    settings = {
        name: value
        for name, value in first.settings.items()
        if all(_same(value, run.settings.get(name)) for run in runs)
    }
    return concatenate([run.dead for run in runs]), {
        "num_steps": sum(run.num_steps for run in runs),
        "num_evaluations": None if None in counts else sum(filter(None, counts)),
        "converged": all(run.converged for run in runs),
        "stop_reason": f"{len(runs)} runs: {'; '.join(reasons)}",
        "key": jax.random.fold_in(first.key, len(runs)),
        "warnings": tuple(warnings),
        "seconds": (
            sum(run.seconds.compile for run in runs),
            sum(run.seconds.run for run in runs),
        ),
        "settings": settings,
        "provenance": _all_provenance(runs),
    }


def _all_provenance(runs: Sequence[Any]) -> list[Provenance]:
    """Of all runs, without repetitions; steps are those of each run."""
    found: list[Provenance] = []
    for each in itertools.chain.from_iterable(run.provenance for run in runs):
        if each not in found:
            found.append(each)
    return found


def _check(runs: Sequence[Any]) -> None:
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


def _same(a: object, b: object) -> bool:
    """Whether two settings are equal; an array in them is one if it is the same."""
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError):
        return False
