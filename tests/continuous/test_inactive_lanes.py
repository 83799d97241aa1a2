"""Loops do not run for inactive lanes, whose stale values might keep them going."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .inactive_lanes import TASKS


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished() -> tuple[list[str], str]:
    """The names of the tasks that came to an end, one after the other, and the error.

    In a process of its own, because a loop that hangs can only be stopped from outside.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.continuous.inactive_lanes"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # Many times what it takes.
        out, error = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
    return out.splitlines(), error


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_loops_end(name: str, finished: tuple[list[str], str]) -> None:
    names, error = finished
    assert name in names, f"{name}, or a task before it, fails or hangs: {error}"
