"""Processes that are killed or interrupted, and started again."""

import functools
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run._file import read_file

from ..helpers import errors_of, run_module, start_module


WARMUP = 60


class Place(NamedTuple):
    position: Any


class Still:
    """An algorithm that never moves, and compiles fast."""

    def __init__(self, logdensity_fn: Any) -> None:
        pass

    def init(self, position: Any) -> Any:
        return Place(position)

    def step(self, key: Any, state: Any) -> Any:
        return state, None


start = functools.partial(start_module, "tests.chains.interrupted")
to_end = functools.partial(run_module, "tests.chains.interrupted")


def until(process: subprocess.Popen[str], transitions: int) -> int:
    """Read output until some transitions, those of the warm-up included, are made."""
    assert process.stdout is not None
    for line in process.stdout:
        phase, *rest = line.split()
        if phase == "made" and int(rest[-1]) >= transitions:
            return int(rest[-1])
    raise AssertionError("the process has ended too soon")


def kill(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[0]


def found(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "found.npz") as file:
        return dict(file)


def assert_same(one: Path, other: Path) -> None:
    a, b = found(one), found(other)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is never interrupted, in one block."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    to_end(folder, seconds=1e6)
    return folder


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bits(whole: Path) -> None:
    folder = whole.parent / "killed"
    resumed: list[int] = []
    for transitions in (20, WARMUP + 25):
        process = start(folder, slow=0.02)
        resumed.append(until(process, 0))
        until(process, transitions)
        kill(process)
    # The second process resumed in the middle of the warm-up.
    assert 0 < resumed[1] < WARMUP
    errors = to_end(folder)
    assert "resuming " in errors
    assert_same(whole, folder)


@pytest.mark.slow
def test_run_killed_at_random_times_resumes_to_the_same_bits(whole: Path) -> None:
    """At any time after its start, also while it saves."""
    folder = whole.parent / "random"
    rng = random.Random(0)
    last = -1
    for turn in range(24):
        # Slow, so that it does not end before it is killed; this changes no bit.
        process = start(folder, slow=1.0)
        assert process.stdout is not None
        process.stdout.readline()
        if turn % 2:
            until(process, last + 1)
        time.sleep(rng.uniform(0, 0.5 if turn % 2 else 6.0))
        assert "end" not in kill(process).split()
        if (folder / "run.h5").exists():
            header = read_file(folder / "run.h5")[0]
            made = header["warmed_up"] + header["draws"]
            assert made >= last
            last = made
    assert last > 0
    to_end(folder)
    assert_same(whole, folder)


@pytest.mark.parametrize(
    ("number", "status", "transitions"),
    [
        pytest.param(
            *(signal.SIGINT, (-signal.SIGINT, 1, 130), 5),
            marks=pytest.mark.slow,
            id="Ctrl-C in the warm-up",
        ),
        pytest.param(
            *(signal.SIGTERM, (-signal.SIGTERM,), WARMUP + 3),
            id="SIGTERM in the draws",
        ),
    ],
)
def test_signal_saves_the_run(
    whole: Path, number: int, status: tuple[int, ...], transitions: int
) -> None:
    folder = whole.parent / f"interrupted {number}"
    # Nothing but the end of the warm-up and the signal makes it save.
    process = start(folder, slow=0.05, every=1e6)
    made = until(process, transitions)
    process.send_signal(number)
    process.communicate(timeout=60)
    errors = errors_of(folder)
    assert process.returncode in status, errors
    assert "saved to" in errors
    header = read_file(folder / "run.h5")[0]
    assert made <= header["warmed_up"] + header["draws"]
    assert (header["warmed_up"] < WARMUP) == (transitions < WARMUP)
    to_end(folder)
    assert_same(whole, folder)


def test_two_runs_cannot_share_a_file(whole: Path) -> None:
    folder = whole.parent / "shared"
    process = start(folder, slow=0.1)
    until(process, 1)
    with pytest.raises(bk.CheckpointError, match=f"in use by process {process.pid}"):
        bk.run_chains(
            Still,
            lambda x: -jnp.sum(x**2),
            np.array([0, 0], np.uint32),
            np.zeros((4, 1)),
            num_warmup=0,
            checkpoint=folder / "run.h5",
            progress=False,
        )
    kill(process)
