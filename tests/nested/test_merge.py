"""`NestedRun.merge`: independent runs on one problem as one result."""

import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import DeadPoints, insertion_p_value
from batchkit.run import Diagnostic, Seconds

from .perfect import Problem, peak, plateau, result, sample


PROBLEMS = {"peak": peak(), "plateau": plateau(1.0), "zero": plateau(-np.inf)}
# The runs differ in everything that may differ.
SETTINGS = (
    {"num_live": 20},
    {"num_live": 30, "num_delete": 7, "remaining": 0.1},
    {"num_live": 50, "num_delete": 20, "remaining": 1e-4},
)


def runs_on(problem: Problem, seed: int) -> list[bk.NestedRun]:
    return [
        result(sample(problem, 100 * seed + i, **settings), 100 * seed + i)
        for i, settings in enumerate(SETTINGS)
    ]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_numbers_of_live_points_add_up(problem: Problem) -> None:
    runs = runs_on(problem, 0)
    merged = bk.NestedRun.merge(runs).dead
    assert len(merged) == sum(len(run.dead) for run in runs)
    assert merged.num_prior == merged.num_live[0] == 20 + 30 + 50
    # When a point dies, the live points of the merged run are those of all runs.
    values, first = np.unique(merged.loglikelihood, return_index=True)
    for value, i in zip(values, first, strict=True):
        alive = 0
        for run in runs:
            place = np.searchsorted(run.dead.loglikelihood, value)
            if place < len(run.dead):
                alive += run.dead.num_live[place]
                # Born at a contour that has not passed yet for the merged run.
                if run.dead.loglikelihood[place] > value:
                    born = run.dead.loglikelihood_birth
                    alive -= np.sum(born == value)
        assert merged.num_live[i] == alive


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_evidence_of_merged_runs_is_calibrated(problem: Problem) -> None:
    pulls, ratios = [], []
    for seed in range(1, 21):
        runs = runs_on(problem, seed)
        merged = bk.NestedRun.merge(runs)
        error = merged.log_evidence_err
        pulls.append((merged.log_evidence - problem.log_evidence) / error)
        ratios.append(error / runs[2].log_evidence_err)
    assert abs(np.mean(pulls)) < 3 / np.sqrt(20)
    assert abs(np.std(pulls) - 1) < 3 / np.sqrt(40)
    # The best of the runs has 50 of 100 live points.
    assert np.mean(ratios) == pytest.approx(np.sqrt(0.5), rel=0.15)


def test_evidence_of_equal_runs_is_their_mean() -> None:
    runs = [result(sample(peak(), seed, 100), seed) for seed in range(4)]
    merged = bk.NestedRun.merge(runs)
    each = np.array([run.log_evidence for run in runs])
    assert merged.log_evidence == pytest.approx(each.mean(), abs=0.05)
    error = np.mean([run.log_evidence_err for run in runs])
    assert merged.log_evidence_err == pytest.approx(error / 2, rel=0.1)
    assert merged.ess == pytest.approx(sum(run.ess for run in runs), rel=0.1)


def test_ranks_of_a_merged_run_are_uniform() -> None:
    runs = [result(sample(peak(), s, 50, num_delete=1 + s), s) for s in range(4)]
    assert insertion_p_value(bk.NestedRun.merge(runs).dead) > 0.01


def test_counts_warnings_and_settings_are_merged() -> None:
    warning, other = (Diagnostic(name, 0.0, 1.0, "oh") for name in "ab")
    dead = [sample(peak(), seed) for seed in range(2)]
    first = result(
        dead[0],
        warnings=(warning,),
        seconds=Seconds(compile=1.0, sampling=2.0),
        settings={"num_live": 50, "stop": "a", "array": np.ones(2)},
    )
    second = result(
        dead[1],
        warnings=(warning, other),
        seconds=Seconds(compile=3.0, sampling=4.0),
        settings={"num_live": 50, "stop": "b", "array": np.ones(2)},
        converged=False,
        stop_reason="time was up",
    )
    merged = bk.NestedRun.merge([first, second])
    assert merged.num_steps == first.num_steps + second.num_steps
    assert merged.num_evaluations == len(dead[0]) + len(dead[1])
    assert not merged.converged
    assert merged.stop_reason.startswith("2 runs: the live points hold")
    assert merged.stop_reason.endswith("; time was up")
    assert merged.warnings == (warning, other)
    assert merged.seconds == Seconds(compile=4.0, sampling=6.0)
    assert merged.settings == {"num_live": 50}
    unknown = result(sample(peak(), 2), num_evaluations=None)
    assert bk.NestedRun.merge([first, unknown]).num_evaluations is None
    assert bk.NestedRun.merge([first]) is first


def test_dependent_and_unlike_runs_are_refused() -> None:
    first, second = (result(sample(peak(), seed)) for seed in range(2))
    with pytest.raises(ValueError, match="at least one run"):
        bk.NestedRun.merge([])
    with pytest.raises(ValueError, match="runs 0 and 2 have the same points"):
        bk.NestedRun.merge([first, second, result(first.dead, 5)])
    dead = second.dead
    for positions in (
        {"v": dead.positions["u"]},
        {"u": dead.positions["u"][:, None]},
        {"u": dead.positions["u"].astype(np.float32)},
    ):
        other = DeadPoints(
            positions, dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
        )
        with pytest.raises(ValueError, match="same structure, shapes and dtypes"):
            bk.NestedRun.merge([first, result(other)])
