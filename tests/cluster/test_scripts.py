"""The scripts of the example as text: in the documentation, and under shellcheck."""

import re
import shutil
import subprocess
import textwrap

import pytest

from .programs import EXAMPLE


SCRIPTS = sorted(EXAMPLE.glob("*.sh"))
PAGE = (EXAMPLE.parents[1] / "docs" / "scale.md").read_text("utf-8")


def test_page_shows_the_scripts_as_they_are() -> None:
    block = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    shown = [textwrap.dedent(text) for _, text in block.findall(PAGE)]
    missing = [x.name for x in SCRIPTS if x.read_text("utf-8") not in shown]
    assert missing == []


def test_page_shows_the_main_function_of_the_program() -> None:
    program = (EXAMPLE / "fit.py").read_text("utf-8")
    (shown,) = re.findall(r"^```text\n(def main.*?)^```$", PAGE, re.MULTILINE | re.S)
    assert shown in program


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    done = subprocess.run(
        ["shellcheck", *SCRIPTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
