"""`python -m batchkit plan`: the table, the line of Python, and the exit status."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

import batchkit as bk
from batchkit import __main__ as command

from ..devices.test_described import needs_cuda
from .test_plan import POSITIONS, SETTINGS


pytestmark = pytest.mark.usefixtures("no_type_checks")

SHAPE = jax.ShapeDtypeStruct(POSITIONS.shape, POSITIONS.dtype)
MODEL = """
import blackjax, jax, jax.numpy as jnp

def problem():
    return {
        "api": blackjax.hmc,
        "positions": jax.ShapeDtypeStruct((3,), jnp.float32),
        "logdensity_fn": lambda x: -jnp.sum(x**2),
        "step_size": 0.1,
        "inverse_mass_matrix": jnp.ones(3),
        "num_integration_steps": 3,
    }
"""


@pytest.fixture
def problem(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The dictionary of `my_model:problem`; the module also has a `wrong` one."""
    returned = {"api": sampler, "positions": SHAPE, **SETTINGS}
    module = ModuleType("my_model")

    def problem() -> dict[str, Any]:
        return returned

    for function in (problem, lambda: 3):
        function.__module__ = "my_model"
    vars(module).update(problem=problem, wrong=lambda: 3, number=3)
    monkeypatch.setitem(sys.modules, "my_model", module)
    return returned


def test_line_that_is_printed_is_the_plan(problem: Any, capsys: Any) -> None:
    assert command.main(["plan", "my_model:problem", "--budget", "60 kB"]) == 0
    table, line = capsys.readouterr().out.strip().split("\n\n")
    plan = bk.plan(budget="60 kB", **problem)
    assert table == repr(plan)
    assert isinstance(plan.init.batcher, bk.Chunked)
    assert eval(f"dict({line})", {"bk": bk}) == {"batcher": plan.batcher}


def test_nothing_that_fits_is_status_1(problem: Any, capsys: Any) -> None:
    assert command.main(["plan", "my_model:problem", "--budget", "3 kB"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("plan(init): one lane needs")


def test_options_come_before_the_arguments_of_the_problem(
    problem: Any, capsys: Any, described: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def described_device(kind: str) -> Any:
        asked.append(kind)
        return described

    monkeypatch.setattr(command, "described_device", described_device)
    problem["budget"] = "500 MB"
    arguments = ["plan", "my_model:problem", "--device", "H100"]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--budget", "600 MB"]) == 0
    out = capsys.readouterr().out
    assert "cpu, budget 500 MB (50 % of its 1 GB)" in out
    assert "cpu, budget 600 MB (60 % of its 1 GB)" in out
    assert asked == ["H100", "H100"]


def test_measures_from_the_positions_of_the_problem(
    problem: Any, capsys: Any, tmp_path: Path
) -> None:
    problem |= {"positions": POSITIONS[:2], "num_delete": 2, "remember": tmp_path}
    assert command.main(["plan", "my_model:problem", "--measure"]) == 0
    assert "fastest of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["my_model"], "'my_model' must be MODULE:FUNCTION, such as my_model:problem"),
        (["your_model:problem"], "no module 'your_model'; in this folder there are: a"),
        (["a.b:problem"], "there is no module 'a.b'"),
        (["my_model:problems"], "'my_model' has no function 'problems'; it has: prob"),
        (["my_model:number"], "'my_model' has no function 'number'; it has: problem"),
        (["my_model:wrong"], "with 'api' and 'positions'; got int"),
        (["my_model:problem", "--budget", "many"], "such as '512 MB' or '8 GiB'"),
        (["my_model:problem", "--device", "H10"], "the kinds are 'V100'"),
        (["my_model:problem", "--measure"], "positions are shapes"),
        (["my_model:problem", "--measure", "--device", "H100"], "not allowed with"),
    ],
)
def test_wrong_arguments_are_status_2(
    arguments: list[str],
    words: str,
    problem: Any,
    capsys: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("")
    with pytest.raises(SystemExit) as info:
        command.main(["plan", *arguments])
    assert info.value.code == 2
    assert words in capsys.readouterr().err


def test_error_in_the_users_module_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "broken_model.py").write_text("import a_missing_package")
    monkeypatch.syspath_prepend(tmp_path)
    assert command.main(["plan", "broken_model:problem"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "No module named 'a_missing_package'" in error


def test_module_in_the_current_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "a_model.py").write_text(MODEL)
    line = ["plan", "a_model:problem", "--budget", "1 MB"]
    folder = Path(bk.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "batchkit", *line],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu, budget 1 MB\n")
    assert done.stdout.endswith("batcher=bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())\n")


@needs_cuda
def test_plans_for_a_gpu_that_is_not_here(problem: Any, capsys: Any) -> None:
    arguments = ["plan", "my_model:problem", "--device", "H100", "--budget", "60 kB"]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("NVIDIA H100 80GB HBM3, budget 60 kB")
    assert jax.default_backend() == "cpu"
