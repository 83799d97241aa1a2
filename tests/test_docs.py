"""Every public name is documented, with an example, and every example is run."""

import re
from pathlib import Path

import batchkit


ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"
TEXTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("batchkit/**/*.py")),
]


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in sorted(API.glob("*.md")))
    entries = re.findall(r"^::: batchkit\.(\w+)$", pages, re.MULTILINE)
    assert sorted(set(batchkit.__all__) - set(entries)) == []


def test_every_file_is_in_the_source_layout() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text("utf-8")
    layout = re.search(r"^```text\nbatchkit/\n(.*?)^```", page, re.M | re.S)
    assert layout is not None
    listed: set[str] = set()
    package = ""
    for line in layout[1].splitlines():
        if found := re.match(r"  (\w+)/", line):
            package = found[1]
        listed |= {f"{package}/{name}" for name in re.findall(r"\w+\.py", line)}
    files = (ROOT / "batchkit").glob("*/*.py")
    there = {f"{x.parent.name}/{x.name}" for x in files if x.name != "__init__.py"}
    assert listed == there


def test_every_public_name_has_an_example() -> None:
    block = re.compile(r"^ *```python\n.*?^ *```$", re.MULTILINE | re.DOTALL)
    without = [
        name
        for name in batchkit.__all__
        if block.search(getattr(batchkit, name).__doc__ or "") is None
    ]
    assert without == []


def test_every_block_of_python_is_run() -> None:
    # `make blocks` runs the blocks labelled `python` and passes over `py`, `pycon` or
    # `python title="..."`.
    label = re.compile(r"^[ \t>]*(?:`{3,}|~{3,})(.+)$", re.MULTILINE)
    passed_over = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in TEXTS
        for found in label.findall(path.read_text("utf-8"))
        if "py" in found and found != "python"
    ]
    assert passed_over == []
