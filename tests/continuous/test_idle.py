"""A lane without business keeps nobody waiting, whatever its old values would do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .idle import TASKS


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TASKS)
def test_loops_end(name: str) -> None:
    # A loop that hangs can only be stopped from outside. Two minutes are many times
    # what it takes.
    run = subprocess.run(
        [sys.executable, "-m", "tests.continuous.idle", name],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "done"
