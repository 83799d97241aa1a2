"""Several runs on one problem as one."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np

from ..run._environment import Provenance
from ._dead import concatenate
from ._nested_run import NestedRun


def merge(runs: Sequence[NestedRun]) -> NestedRun:
    """Merges independent runs on one problem into one result with a smaller error.

    The points of all are put together. At any contour as many points are alive as in
    all runs together, so the result is that of one run with all their live points
    (Higson, Handley, Hobson and Lasenby 2018, Statistics and Computing 29,
    arXiv:1704.03459). The runs may differ in live points, in points replaced at once,
    and in where they stopped, but not in the prior or the likelihood.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    def run(seed):
        x = np.random.default_rng(seed).uniform(size=500)
        return bk.NestedRun(
            bk.DeadPoints({"x": x}, -x, np.full(500, -np.inf), np.zeros(500)),
            num_steps=0,
            num_evaluations=500,
            converged=True,
            stop_reason="nothing to do",
            key=jax.random.key(seed),
        )

    merged = bk.merge([run(0), run(1)])
    assert len(merged.dead) == merged.num_evaluations == 1000
    assert merged.log_evidence_err < run(0).log_evidence_err
    ```

    **Arguments:**

    - `runs`: the runs, each from a key of its own.

    **Returns:**

    The merged run. Steps, evaluations and seconds are added up; it has converged if all
    have; it has the warnings and the provenance of all, and the settings in which they
    agree.

    **Raises:**

    `ValueError` if there is no run, if positions differ in structure, shape or dtype,
    or if two runs are the same.
    """
    runs = list(runs)
    _check(runs)
    first = runs[0]
    if len(runs) == 1:
        return first
    counts = [run.num_evaluations for run in runs]
    reasons = dict.fromkeys(run.stop_reason for run in runs)
    warnings = dict.fromkeys(warning for run in runs for warning in run.warnings)
    settings = {
        name: value
        for name, value in first.settings.items()
        if all(_same(value, run.settings.get(name)) for run in runs)
    }
    return NestedRun(
        concatenate([run.dead for run in runs]),
        num_steps=sum(run.num_steps for run in runs),
        num_evaluations=None if None in counts else sum(filter(None, counts)),
        converged=all(run.converged for run in runs),
        stop_reason=f"{len(runs)} runs: {'; '.join(reasons)}",
        key=jax.random.fold_in(first.key, len(runs)),
        warnings=tuple(warnings),
        seconds=(
            sum(run.seconds.compile for run in runs),
            sum(run.seconds.run for run in runs),
        ),
        settings=settings,
        provenance=_all_provenance(runs),
    )


def _all_provenance(runs: list[NestedRun]) -> list[Provenance]:
    """Of all runs, without repetitions; steps are those of each run."""
    found: list[Provenance] = []
    for each in itertools.chain.from_iterable(run.provenance for run in runs):
        if each not in found:
            found.append(each)
    return found


def _check(runs: list[NestedRun]) -> None:
    if not runs:
        raise ValueError("merge(runs=[]): runs must hold at least one run; got none.")
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), run.dead.positions)
        for run in runs
    ]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                "merge: the runs must be on one problem, with positions of the same "
                f"structure, shapes and dtypes; those of run {i} are {shape}, those of "
                f"run 0 are {shapes[0]}."
            )
    for (i, a), (j, b) in itertools.combinations(enumerate(runs), 2):
        if np.array_equal(a.dead.loglikelihood, b.dead.loglikelihood):
            raise ValueError(
                f"merge: the runs must be independent, but runs {i} and {j} have the "
                "same points, and the error would come out too small. Give each run a "
                "key of its own, and its live points too."
            )


def _same(a: object, b: object) -> bool:
    """Whether two settings are equal; an array in them is one if it is the same."""
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError):
        return False
