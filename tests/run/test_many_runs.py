"""Resources of a process with many runs: maps, memory, executables."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_many_runs_leak_no_resources() -> None:
    command = [sys.executable, "-m", "tests.run.many_runs", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    at = {line.pop("runs"): line for line in lines}
    for name, most in {
        "executables": 0,
        "functions": 0,
        "files": 2,
        "threads": 2,
        # Where every executable stays it is 600 maps and 2 MB for each run.
        "maps": 200,
        "megabytes": 100,
    }.items():
        assert at[300][name] - at[100][name] <= most, (name, at)
