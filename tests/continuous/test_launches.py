"""Kernels launched in a turn of lanes, on a GPU that is described, not present."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "launches.py"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the compiler of CUDA: pip install 'batchkit-jax[cuda-plans]'",
)
@pytest.mark.parametrize("program", ["nss 8-D", "NUTS 10-D"])
def test_turn_on_a_gpu_has_few_kernels_and_no_conditional(program: str) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--only", f"{program}, Continuous"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [x.split("|")[2:5] for x in done.stdout.splitlines() if program in x]
    launches, _, round_trips = max(lines, key=lambda line: float(line[0]))
    assert float(launches) <= 24
    # The host asks whether a task is left, and nothing else.
    assert int(round_trips) == 1
