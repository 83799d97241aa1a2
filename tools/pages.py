"""A hook of MkDocs: pages that are programs are shown with what they print and draw.

- A Markdown page with `execute: true` in its front matter is run from top to bottom
  when the documentation is built, in a process of its own. What a `python` block prints
  stands below it, and so does a figure in its last line, as in a notebook.
- A notebook in `docs/gallery` becomes a page with the outputs that are stored in it,
  which `make gallery` computes.

What a page printed is kept in `build/pages` until its program, batchkit or a version of
what it uses changes.
"""

import base64
import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient


CACHE: Final = Path(__file__).parents[1] / "build" / "pages"

_FRONT: Final = re.compile(r"\A---\n(.*?)^---\n", re.M | re.S)
_BLOCK: Final = re.compile(r"^```python\n(.*?)^```\n", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace pages that are programs by pages with their outputs."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            # The notebook itself can be downloaded, too.
            uri = file.src_uri.replace(".ipynb", ".md")
            cells = nbformat.reads(file.content_string, 4).cells
            name = file.src_uri.rsplit("/", 1)[-1]
            note = f"\n[Download this page as a notebook]({name}){{ .notebook }}\n"
            _add(files, config, uri, cells, note)
        elif file.src_uri.endswith(".md"):
            front = _FRONT.match(file.content_string)
            if front and re.search(r"^execute: true$", front[1], re.M):
                text = file.content_string[front.end() :]
                files.remove(file)
                _add(files, config, file.src_uri, executed(text), "")
    return files


def _add(
    files: Files, config: MkDocsConfig, uri: str, cells: list[Any], note: str
) -> None:
    """Add the page of some cells, and their figures."""
    folder = uri.removesuffix(".md")
    text: list[str] = []
    count = 0
    for cell in cells:
        if cell.cell_type == "markdown":
            text.append(cell.source)
            continue
        text.append(f"```python\n{cell.source}\n```")
        for kind, value in outputs(cell):
            if kind == "text":
                text.append(f"```text\n{value.rstrip()}\n```")
            else:
                count += 1
                # Beside the page, whose address ends with its name.
                image = f"{folder}-{count}.png"
                files.append(File.generated(config, image, content=value))
                name = image.rsplit("/", 1)[-1]
                text.append(f"![What the program above draws]({name}){{ .figure }}")
        if cell is cells[0]:
            text.append(note)
    if cells and cells[0].cell_type == "markdown":
        text.insert(1, note)
    page = File.generated(config, uri, content="\n\n".join(text) + "\n")
    files.append(page)


def outputs(cell: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a cell printed, returned and drew, in order."""
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            yield "text", output.text
        data = output.get("data", {})
        if "image/png" in data:
            yield "image", base64.b64decode(data["image/png"])
        elif "text/plain" in data:
            yield "text", data["text/plain"]


def cells_of(text: str) -> list[Any]:
    """Cut a Markdown page into cells of text and of code."""
    cells: list[Any] = []
    end = 0
    for block in _BLOCK.finditer(text):
        cells.append(nbformat.v4.new_markdown_cell(text[end : block.start()].strip()))
        cells.append(nbformat.v4.new_code_cell(block[1].rstrip()))
        end = block.end()
    cells.append(nbformat.v4.new_markdown_cell(text[end:].strip()))
    return cells


def executed(text: str) -> list[Any]:
    """Run the blocks of a page, or take what they printed the last time."""
    cells = cells_of(text)
    program = [x.source for x in cells if x.cell_type == "code"]
    digest = hashlib.sha256("\0".join([*program, *_environment()]).encode())
    kept = CACHE / f"{digest.hexdigest()[:20]}.ipynb"
    if kept.exists():
        stored = nbformat.read(kept, 4)
    else:
        code = [x for x in cells if x.cell_type == "code"]
        stored = run(nbformat.v4.new_notebook(cells=code))
        CACHE.mkdir(parents=True, exist_ok=True)
        nbformat.write(stored, kept)
    found = iter(stored.cells)
    return [next(found) if x.cell_type == "code" else x for x in cells]


@functools.cache
def _environment() -> list[str]:
    """Return what a program's output depends on besides itself."""
    package = Path(__file__).parents[1] / "batchkit"
    sources = [x.read_text("utf-8") for x in sorted(package.rglob("*.py"))]
    names = ("jax", "blackjax", "equinox", "numpy", "matplotlib", "arviz")
    return [*sources, *(importlib.metadata.version(x) for x in names)]


def run(notebook: Any) -> Any:
    """Run a notebook in a process of its own, in an empty folder.

    An error of a cell is an error here.
    """
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        ).execute()
    return notebook
