"""A nested run as a file: what is written is read, and what is not ours is refused."""

import errno
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run import _file, _result_file

from ..helpers import assert_refuses, assert_same
from .perfect import peak, result, sample
from .problems import gaussian


class Lens(NamedTuple):
    shear: Any
    mass: Any


def run_of(positions: Any = None, **changes: Any) -> bk.NestedRun:
    dead = sample(peak(), 0, 40, num_delete=4)
    if positions is not None:
        dead = bk.DeadPoints(
            positions(dead.positions["u"]),
            dead.loglikelihood,
            dead.loglikelihood_birth,
            dead.logprior,
        )
    return result(dead, **changes)


def there_and_back(run: bk.NestedRun, folder: Path, **how: Any) -> bk.NestedRun:
    run.save(folder / "result.h5")
    return bk.NestedRun.load(folder / "result.h5", **how)


WARNING = bk.Diagnostic("inner steps", 4.0, 10.0, "use more")


def test_everything_comes_back(tmp_path: Path) -> None:
    run = run_of(
        warnings=(WARNING, bk.Diagnostic("p", np.inf, 0.0, "")),
        seconds=(1.25, 20.0),
        converged=False,
        num_evaluations=None,
        settings={"num_delete": 4, "x": (np.arange(2), None), "batcher": bk.Vmap()},
    )
    again = there_and_back(run, tmp_path)
    names = ("positions", "loglikelihood", "loglikelihood_birth", "logprior")
    for name in names:
        assert_same(getattr(again.dead, name), getattr(run.dead, name), ulps=0)
    for name in ("num_steps", "num_evaluations", "converged", "stop_reason"):
        assert getattr(again, name) == getattr(run, name)
    assert again.warnings == run.warnings
    assert again.seconds == run.seconds
    assert again.settings["num_delete"] == 4
    assert again.settings["batcher"] == repr(bk.Vmap())
    assert_same(again.settings["x"], run.settings["x"])
    # All that is computed from them, and drawn.
    assert again.log_evidence == run.log_evidence
    assert again.log_evidence_err == run.log_evidence_err
    assert again.information == run.information
    np.testing.assert_array_equal(again.weights, run.weights)
    assert repr(again) == repr(run)
    key = jax.random.key(7)
    assert_same(again.posterior(key, 20), run.posterior(key, 20), ulps=0)


POSITIONS = {
    "array": lambda u: u.astype(np.float32),
    "matrices": lambda u: np.stack([u, -u], 1)[:, None],
    "list": lambda u: [u, (u, {"a": u})],
    "none": lambda u: {"a": None, "b": u, "c": ()},
    "numbers as names": lambda u: {7: u, -1: u},
    "types": lambda u: {
        "bfloat16": u.astype(jnp.bfloat16),
        "bool": u > 0.5,
        "int8": (100 * u).astype(np.int8),
        "half": u.astype(np.float16),
        "empty": np.zeros((len(u), 0, 2), np.float32),
        "complex": u + 1j,
    },
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(name: str, tmp_path: Path) -> None:
    run = run_of(POSITIONS[name])
    assert_same(
        there_and_back(run, tmp_path).dead.positions, run.dead.positions, ulps=0
    )


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", None])
def test_keys(impl: str | None, tmp_path: Path) -> None:
    key = jax.random.PRNGKey(5) if impl is None else jax.random.key(5, impl=impl)
    again = there_and_back(run_of(key=key), tmp_path)
    assert isinstance(again.key, jax.Array)
    assert_same(again.key, key, ulps=0)


def test_classes(tmp_path: Path) -> None:
    run = run_of(lambda u: Lens(u, {"a": 2 * u}))
    again = there_and_back(run, tmp_path)
    assert set(again.dead.positions) == {"shear", "mass"}
    assert again.summary().values.keys() == run.summary().values.keys()
    like = there_and_back(run, tmp_path, like=Lens(0.0, {"a": 0.0}))
    assert_same(like.dead.positions, run.dead.positions, ulps=0)
    with pytest.raises(ValueError, match=r"NestedRun.load\(like=.*it has shear\."):
        there_and_back(run, tmp_path, like={"shear": 0.0})


def test_others_can_read_it(tmp_path: Path) -> None:
    run = run_of(lambda u: {"lens": {"mass": u}})
    run.save(tmp_path / "result.h5")
    with h5py.File(tmp_path / "result.h5") as file:
        arrays: Any = file["arrays"]
        np.testing.assert_array_equal(
            arrays["positions/lens.mass"][()], run.dead.positions["lens"]["mass"]
        )
        np.testing.assert_array_equal(arrays["weights"][()], run.weights)
        text: Any = file["header"]
        header = json.loads(text.asstr()[()])
    assert header["kind"] == "result of a nested run"
    assert header["values"]["log_evidence"] == run.log_evidence
    assert header["versions"]["jax"] == jax.__version__


def test_a_result_replaces_a_result_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    chains = bk.ChainRun(np.random.default_rng(0).normal(size=(4, 50)))
    chains.save(path)
    run_of().save(str(path))
    assert bk.NestedRun.load(str(path)).num_steps > 0
    (tmp_path / "mine.csv").write_text("a,b\n")
    with pytest.raises(bk.CheckpointError, match=r"Cannot replace.*Choose another"):
        run_of().save(tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "a,b\n"
    checkpoint = tmp_path / "run.h5"
    _file.write_file(checkpoint, {"kind": "nested run"}, {})
    with pytest.raises(bk.CheckpointError, match="it is a checkpoint"):
        run_of().save(checkpoint)
    with pytest.raises(bk.CheckpointError, match=r"without the names.*run_nested"):
        bk.NestedRun.load(checkpoint)
    _file.write_file(checkpoint, {"kind": "run of shards"}, {})
    with pytest.raises(bk.CheckpointError, match=r"and no result\. Go on"):
        bk.NestedRun.load(checkpoint)


def test_files_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.h5"

    def refused(*words: str) -> None:
        assert_refuses(lambda: bk.NestedRun.load(path), bk.CheckpointError, words)

    refused("No such file")
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    refused("an HDF5 file from elsewhere")
    path.unlink()
    bk.ChainRun(np.zeros((2, 3))).save(path)
    refused("holds a result of chains, and not a NestedRun", "`ChainRun.load`")
    run_of().save(path)
    path.write_bytes(path.read_bytes()[:-3])
    refused("is damaged", "Make the run again, or put a sound copy")
    path.unlink()
    monkeypatch.setattr(_result_file, "FORMAT", 2)
    run_of().save(path)
    monkeypatch.undo()
    refused("a result in format 2", "formats up to 1", "or a newer one")
    monkeypatch.setattr(_file, "FORMAT", 2)
    path.unlink()
    run_of().save(path)
    monkeypatch.undo()
    refused("has format 2", "or make the run again")


def test_a_file_that_is_not_there_is_told_apart_from_a_folder(tmp_path: Path) -> None:
    words = ("No such file", "Check the path")
    for path in (tmp_path / "none.h5", tmp_path / "none" / "result.h5"):
        with pytest.raises(bk.CheckpointError) as info:
            bk.NestedRun.load(path)
        assert all(word in str(info.value) for word in words)
        assert "folder" not in str(info.value)


NONSENSE = {
    "num_steps": ["x", -0.5, None, True],
    "num_evaluations": ["x", 1.5],
    "converged": [1, None],
    "stop_reason": [None, ["x"]],
    "seconds": [[1.0], 3, ["a", "b"]],
    "warnings": [3, [["a"]], [[1, 2.0, 3.0, "x"]], [["a", "b", 3.0, "x"]]],
    "settings": [None, [1]],
    "positions": [1, {"dict": [["u", 3]]}, {"fields": []}, {"array": "weights"}],
    "key": [3, {"array": "loglikelihood"}],
    "loglikelihood": [None, {"array": "positions/u"}, [{"array": "loglikelihood"}]],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_values_that_make_no_sense_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    run_of().save(path)
    header, arrays = _file.read_file(path)
    for value in NONSENSE[name]:
        values = {**header["values"], name: value}
        _file.write_file(path, {**header, "values": values}, arrays)
        with pytest.raises(bk.CheckpointError, match="cannot be understood"):
            bk.NestedRun.load(path)
    del header["values"][name]
    _file.write_file(path, header, arrays)
    with pytest.raises(bk.CheckpointError, match="cannot be understood"):
        bk.NestedRun.load(path)


def test_checkpoints_of_ended_and_stopped_runs_are_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, path = gaussian(2), tmp_path / "run.h5"
    how: dict[str, Any] = {"num_delete": 20, "checkpoint": path, "progress": False}
    stopped = problem.run(num_live=60, stop=bk.MaxSteps(4), **how)
    run = bk.NestedRun.load(path)
    assert_same(run.dead.positions, stopped.dead.positions, ulps=0)
    assert run.log_evidence == stopped.log_evidence
    assert (run.converged, run.stop_reason) == (False, stopped.stop_reason)
    assert run.warnings == stopped.warnings
    assert run.settings == stopped.settings
    assert repr(run) == repr(stopped)

    # Without its last words: as a run leaves it that was killed.
    header, arrays = _file.read_file(path)
    ended = header["result"].pop("ended")
    assert not ended["converged"]
    _file.write_file(
        path, {**header, "result": {**header["result"], "ended": None}}, arrays
    )
    killed = bk.NestedRun.load(path)
    assert killed.log_evidence == stopped.log_evidence
    assert not killed.converged
    assert killed.stop_reason == "it was saved after step 4, and had not ended"

    finished = problem.run(num_live=60, **how)
    assert bk.NestedRun.load(path).converged
    # Where nothing can be written the run returns, and one that must go on does not.
    call = os.open

    def fail(name: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return call(name, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        again = problem.run(num_live=60, **how)
        assert again.log_evidence == finished.log_evidence
        with pytest.raises(bk.CheckpointError, match=r"not ended.*Copy the file"):
            problem.run(num_live=60, stop=bk.MaxSteps(10**6), **how)

    # Shapes and numbers that a run cannot go on with.
    header, arrays = _file.read_file(path)
    for new_header, new_arrays in (
        ({"seconds": ["a", 1.0]}, {}),
        ({"rejected": "x"}, {}),
        ({"identity": []}, {}),
        ({}, {"dead/0": arrays["dead/0"][:-1]}),
    ):
        _file.write_file(path, {**header, **new_header}, {**arrays, **new_arrays})
        with pytest.raises(bk.CheckpointError, match="cannot be understood"):
            problem.run(num_live=60, **how)


def test_labels_are_no_numbers(tmp_path: Path) -> None:
    run = run_of(lambda u: {"u": u, "name": np.array(["a"] * len(u))})
    with pytest.raises(TypeError, match=r"positions/name.*only booleans and numbers"):
        run.save(tmp_path / "result.h5")
    assert not list(tmp_path.iterdir())
