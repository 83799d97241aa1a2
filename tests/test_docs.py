"""Every public name is documented, with an example, and every example is run."""

import re
from pathlib import Path

import pytest

import batchkit


ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"
TEXTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("batchkit/**/*.py")),
]


@pytest.mark.parametrize("name", batchkit.__all__)
def test_api_page(name: str) -> None:
    pages = "\n".join(page.read_text("utf-8") for page in sorted(API.glob("*.md")))
    assert re.search(rf"^::: batchkit\.{name}$", pages, re.MULTILINE) is not None


@pytest.mark.parametrize("name", batchkit.__all__)
def test_example(name: str) -> None:
    doc = getattr(batchkit, name).__doc__
    assert doc is not None
    block = re.search(r"^ *```python\n.*?^ *```$", doc, re.MULTILINE | re.DOTALL)
    assert block is not None


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_run(path: Path) -> None:
    # `make blocks` runs the blocks labelled `python` and passes over `py`, `pycon` or
    # `python title="..."`.
    labels = re.findall(r"^[ \t>]*(?:`{3,}|~{3,})(.+)$", path.read_text("utf-8"), re.M)
    assert [label for label in labels if "py" in label and label != "python"] == []
