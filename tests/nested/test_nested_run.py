"""`NestedRun`: what it holds, draws, prints, reads from checkpoints and exports."""

import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import Any, cast

import anesthetic
import jax
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import DeadPoints
from batchkit.run import Diagnostic, Seconds, _file

from ..helpers import assert_refuses, assert_same, unchecked
from .perfect import Problem, peak, plateau, result, sample
from .problems import gaussian


def with_positions(make: Any) -> bk.NestedRun:
    """A run whose positions are `make(radius)`."""
    dead = sample(peak(), 0, 40, num_delete=4)
    radius = dead.positions["u"] ** (1 / 5)
    return result(
        DeadPoints(
            make(radius), dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
        )
    )


LENS = with_positions(
    lambda r: {"lens": {"mass": r, "shear": np.stack([r, -r], 1)}, "ring": [r > 0.3]}
)


def test_table_has_evidence_reasons_and_warnings() -> None:
    warning = Diagnostic("inner steps", 4.0, 10.0, "use more <steps>")
    run = result(
        sample(peak(), 0),
        warnings=(warning,),
        seconds=Seconds(compile=1.25, sampling=20.0),
        converged=False,
    )
    lines = repr(run).splitlines()
    assert len(lines) == 9
    heads = ["log-evidence", "information", "effective size", "steps", "likelihoods"]
    assert [line.split("  ")[0] for line in lines[1:6]] == heads
    assert f"{run.log_evidence:.2f} +/- {run.log_evidence_err:.2f}" in lines[1]
    assert "no: the live points hold little of the evidence" in lines[6]
    assert "1.2 to compile, 20.0 to run" in lines[7]
    assert "inner steps: use more <steps>" in lines[8]
    assert "&lt;steps&gt;" in run._repr_html_()
    assert "unknown" in repr(result(sample(peak(), 0), num_evaluations=None))


def test_the_same_key_gives_the_same_evidence() -> None:
    dead = sample(peak(), 0)
    first, second, other = result(dead, 1), result(dead, 1), result(dead, 2)
    assert first.log_evidence == second.log_evidence
    assert first.log_evidence != other.log_evidence
    old_style = result(dead, key=jax.random.PRNGKey(1))
    assert old_style.log_evidence == first.log_evidence


def test_a_result_has_its_own_settings_and_records() -> None:
    settings, warnings = {"num_delete": 5}, [Diagnostic("a", 1.0, 0.0, "b")]
    with unchecked():
        run = result(
            sample(peak(), 0), settings=settings, warnings=warnings, seconds=(1.0, 2.0)
        )
    settings["num_delete"] = 6
    assert run.settings == {"num_delete": 5}
    assert run.warnings == tuple(warnings)
    assert run.seconds == Seconds(1.0, 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Any, run).converged = False


def test_points_and_a_key_make_a_result() -> None:
    run = bk.NestedRun(sample(peak(), 0), key=jax.random.key(0))
    assert run.log_evidence == result(run.dead).log_evidence
    lines = repr(run).splitlines()
    assert [line.split()[-1] for line in lines[4:7]] == ["0", "unknown", "yes"]


def test_points_without_likelihood_are_refused() -> None:
    nothing = np.full(5, -np.inf)
    dead = DeadPoints(np.zeros(5), nothing, nothing, np.zeros(5))
    with pytest.raises(ValueError, match=r"the evidence is zero.*Begin with more"):
        result(dead)


def test_posterior_has_the_weighted_mean() -> None:
    draws = LENS.posterior(jax.random.key(0), 5000)["lens"]
    assert draws["shear"].shape == (5000, 2)
    assert isinstance(draws["mass"], jax.Array)
    np.testing.assert_array_equal(draws["mass"], draws["shear"][:, 0])
    mean = LENS.weights @ LENS.dead.positions["lens"]["mass"]
    assert np.mean(draws["mass"]) == pytest.approx(mean, abs=1e-3)
    again = LENS.posterior(jax.random.key(0), 5000)["lens"]
    np.testing.assert_array_equal(draws["mass"], again["mass"])
    other = LENS.posterior(jax.random.key(1), 5000)["lens"]
    assert np.any(draws["mass"] != other["mass"])


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Chunked(64)])
def test_derived_quantities_are_those_of_the_draws(batcher: bk.AbstractBatcher) -> None:
    run = with_positions(lambda r: {"r": r})
    draws = run.posterior(
        jax.random.key(0), 100, lambda p: {"squared": p["r"] ** 2}, batcher=batcher
    )
    assert set(draws) == {"r", "squared"}
    np.testing.assert_allclose(draws["squared"], draws["r"] ** 2, rtol=1e-6)
    _, array = run.posterior(
        jax.random.key(0), 100, lambda p: p["r"] ** 2, batcher=batcher
    )
    np.testing.assert_array_equal(array, draws["squared"])


def test_posterior_refuses_wrong_arguments() -> None:
    run = with_positions(lambda r: {"r": r, "s": r})
    with pytest.raises(ValueError, match="r would replace the parameters"):
        run.posterior(jax.random.key(0), 3, lambda p: {"r": p["s"]})
    with pytest.raises(ValueError, match="n must be at least 1"):
        run.posterior(jax.random.key(0), 0)
    with unchecked(), pytest.raises(TypeError, match=r"posterior\(key=0\): key"):
        run.posterior(cast(Any, 0), 10)


def test_summary_counts_points_by_weight() -> None:
    run = with_positions(lambda r: {"b": {"c": np.stack([r, 2 * r], 1)}, "a": -r})
    summary = run.summary()
    assert list(summary.values) == ["a", "b.c[0]", "b.c[1]"]
    times = np.rint(run.weights * 1e6).astype(int)
    rows = np.repeat(run.dead.positions["a"], times)
    row = summary["a"]
    assert row["mean"] == pytest.approx(rows.mean(), rel=1e-3)
    assert row["std"] == pytest.approx(rows.std(), rel=1e-3)
    for name, q in (("5 %", 5), ("50 %", 50), ("95 %", 95)):
        assert row[name] == pytest.approx(np.percentile(rows, q), rel=1e-2)
        assert summary["b.c[1]"][name] == pytest.approx(2 * summary["b.c[0]"][name])
    lines = repr(summary).splitlines()
    head = ["parameter", "mean", "std", "5", "%", "50", "%", "95", "%"]
    assert lines[0].split() == head
    assert [line.split()[0] for line in lines[1:]] == ["a", "b.c[0]", "b.c[1]"]
    assert summary._repr_html_().count("<tr>") == 4


def test_checkpoints_of_ended_and_killed_runs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, path = gaussian(2), tmp_path / "run.h5"

    def run_to(steps: int) -> bk.NestedRun:
        # One kind of rule, whose number is an operand: all runs share a program.
        stop = bk.MaxSteps(steps) | bk.RemainingEvidence(0.1)
        return problem.run(60, stop=stop, checkpoint=path)

    stopped = run_to(4)
    run = bk.NestedRun.load(path)
    assert_same(run.dead.positions, stopped.dead.positions, ulps=0)
    assert run.log_evidence == stopped.log_evidence
    assert (run.converged, run.stop_reason) == (False, stopped.stop_reason)
    assert run.warnings == stopped.warnings
    assert run.settings == stopped.settings
    assert repr(run) == repr(stopped)

    # A run that is killed leaves no reason to stop.
    header, arrays = _file.read_file(path)
    assert not header["result"]["ended"]["converged"]
    killed_result = {**header["result"], "ended": None}
    _file.write_file(path, {**header, "result": killed_result}, arrays)
    killed = bk.NestedRun.load(path)
    assert killed.log_evidence == stopped.log_evidence
    assert not killed.converged
    assert killed.stop_reason == "it was saved after step 4, and had not ended"

    finished = run_to(1000)
    assert bk.NestedRun.load(path).converged
    # On a read-only disk a finished run returns, and one that must go on does not.
    call = os.open

    def fail(name: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return call(name, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert run_to(1000).log_evidence == finished.log_evidence
        with pytest.raises(bk.CheckpointError, match=r"not ended.*Copy the file"):
            problem.run(60, stop=bk.MaxSteps(10**6), checkpoint=path)

    # Shapes and numbers that a run cannot go on with.
    header, arrays = _file.read_file(path)
    for new_header, new_arrays in (
        ({"seconds": ["a", 1.0]}, {}),
        ({"identity": []}, {}),
        ({}, {"dead/0": arrays["dead/0"][:-1]}),
    ):
        _file.write_file(path, {**header, **new_header}, {**arrays, **new_arrays})
        with pytest.raises(bk.CheckpointError, match="cannot be understood"):
            run_to(1000)


@pytest.mark.parametrize(
    "problem", [peak(), peak(3, 0.5), plateau(-np.inf), plateau(1.0)]
)
@pytest.mark.parametrize("num_delete", [1, 20])
def test_anesthetic_agrees_on_the_evidence(problem: Problem, num_delete: int) -> None:
    run = result(sample(problem, 3, 100, num_delete=num_delete))
    samples: Any = run.to_anesthetic()
    assert issubclass(type(samples), anesthetic.NestedSamples)
    assert len(samples) == len(run.dead)
    np.testing.assert_array_equal(samples["nlive"], run.dead.num_live)
    np.random.seed(0)
    logz, information = samples.logZ(1000), samples.D_KL(1000)
    # Both simulate the same volumes, but anesthetic leaves the last of them out.
    error = run.log_evidence_err
    assert abs(logz.mean() - run.log_evidence) < 0.2 * error + 0.01
    assert logz.std() == pytest.approx(error, rel=0.15)
    assert abs(information.mean() - run.information) < 0.2 * information.std() + 0.01
    assert abs(run.log_evidence - problem.log_evidence) < 4 * error


def test_anesthetic_has_every_number_under_its_name() -> None:
    samples: Any = LENS.to_anesthetic()
    names = ["lens.mass", "lens.shear[0]", "lens.shear[1]", "ring[0]"]
    assert list(samples.columns[:4]) == names
    for name in names:
        row = LENS.summary()[name]
        assert samples[name].mean() == pytest.approx(row["mean"], rel=0.02)


def test_names_of_anesthetic_and_equal_names_are_refused() -> None:
    run = with_positions(lambda r: {"logL": r, "a.b": r, "a": {"b": r}})
    assert_refuses(run.to_anesthetic, ValueError, ("a.b, logL cannot name",))


def test_missing_anesthetic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anesthetic", None)
    words = ("NestedRun.to_anesthetic needs anesthetic", "'batchkit-jax[anesthetic]'")
    assert_refuses(LENS.to_anesthetic, ImportError, words)
