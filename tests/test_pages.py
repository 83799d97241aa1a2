"""The checks of the documentation find what they are for; its notebooks run."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

import batchkit
from tools.check_site import wrong
from tools.pages import cells_of, outputs, run


GALLERY = Path(__file__).parents[1] / "docs" / "gallery"


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], list[str]]:
    """Checks a site of the reference and one page, of which the body is given."""
    entries = "".join(f'<h3 id="batchkit.{name}"></h3>' for name in batchkit.__all__)
    reference = tmp_path / "api" / "all" / "index.html"
    reference.parent.mkdir(parents=True)
    reference.write_text(f"<article>{entries}</article>")
    page = tmp_path / "index.html"

    def check(body: str) -> list[str]:
        page.write_text(f"<article>{body}</article>")
        return list(wrong(tmp_path))

    return check


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<p>It took SECONDS s.</p>", "'SECONDS' looks like a placeholder"),
        ("<p>TODO: measure</p>", "'TODO' looks like a placeholder"),
        ('<a href="none/">x</a>', "the link 'none/' leads nowhere"),
        ('<a href="api/all/#none">x</a>', "the link 'api/all/#none' leads nowhere"),
        ('<img src="none.png">', "the link 'none.png' leads nowhere"),
        ('<link href="none.css">', "the link 'none.css' leads nowhere"),
        ('<img src="index.html">', "the image 'index.html' lacks { .figure }"),
        ('<img alt="MEASURED" src="x">', "'MEASURED' looks like a placeholder"),
        ("<pre><code>TODO_LATER</code></pre>", "'TODO' in a block looks like"),
        ("<p>[X][batchkit.X]</p>", "the reference '][batchkit.X]' leads nowhere"),
        (f"<pre><code>{'x' * 101}</code></pre>", "a line of code has 101 letters"),
        (
            f'<div class="columns"><pre><code>{"x" * 48}</code></pre></div>',
            "a line of code has 48 letters",
        ),
    ],
)
def test_defect_of_a_page_is_found(
    site: Callable[[str], list[str]], body: str, words: str
) -> None:
    found = site(body)
    assert any(words in line for line in found), found


def test_page_without_defects_passes(site: Callable[[str], list[str]]) -> None:
    link = '<a href="api/all/#batchkit.Vmap">x</a><a href="https://a.b/c">y</a>'
    code = f"<p>NUTS and <code>STATE</code></p><pre><code>{'x' * 100}</code></pre>"
    assert site(link + code) == []


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("other", "api: batchkit.Vmap has 0 entries, and must have one"),
        ("Chunked", "api: batchkit.Chunked has 2 entries, and must have one"),
    ],
)
def test_name_without_one_entry_is_found(
    site: Callable[[str], list[str]], tmp_path: Path, now: str, words: str
) -> None:
    page = tmp_path / "api" / "all" / "index.html"
    page.write_text(page.read_text().replace("batchkit.Vmap", f"batchkit.{now}"))
    assert words in site("")


def test_private_default_in_a_signature_is_found(
    site: Callable[[str], list[str]], tmp_path: Path
) -> None:
    page = tmp_path / "api" / "all" / "index.html"
    page.write_text(page.read_text() + "<pre><code>f(x = _X)</code></pre>")
    assert site("") == ["api/all/index.html: a signature shows '= _X'"]


def test_page_is_cut_into_cells() -> None:
    cells = cells_of("# Title\n\n```python\nx = 1\n```\n\n```text\ny\n```\n\nend\n")
    assert [(x.cell_type, x.source) for x in cells] == [
        ("markdown", "# Title"),
        ("code", "x = 1"),
        ("markdown", "```text\ny\n```\n\nend"),
    ]


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.ipynb")), ids=lambda x: x.stem)
def test_notebook_has_its_outputs(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    kinds = [kind for x in cells if x.cell_type == "code" for kind, _ in outputs(x)]
    assert kinds.count("image") >= 1
    assert kinds.count("text") >= 2
    # `make gallery` leaves out what the terminal has shown.
    assert "stderr" not in str([x.get("outputs") for x in cells])


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.ipynb")), ids=lambda x: x.stem)
def test_notebook_runs(path: Path) -> None:
    stored = nbformat.read(path, 4)
    again = run(nbformat.read(path, 4))
    for old, new in zip(stored.cells, again.cells, strict=True):
        if old.cell_type == "code":
            assert [x for x, _ in outputs(old)] == [x for x, _ in outputs(new)]
