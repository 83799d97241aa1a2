"""Check the built site: placeholders, links, entries of the reference, lines of code.

    python tools/check_site.py [FOLDER]

prints what is wrong and where, and fails if anything is.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final, final
from urllib.parse import unquote, urlsplit

import batchkit


# Characters of a line of code that fit at a width of 1,280 pixels, and in a column.
WIDTH: Final = 100
COLUMN: Final = 47
# Words in capitals that are no placeholders.
WORDS: Final = frozenset(
    {
        *("NUTS", "HMC", "MALA", "SMC", "SVGD", "MCMC", "BFGS"),
        *("SLURM", "SIGTERM", "SIGINT", "SIGABRT", "NCCL", "JSON"),
    }
)
_PLACEHOLDER: Final = re.compile(r"\b(?:[A-Z]{4,}|TODO|FIXME|XXX|TBD)\b")
# Elements that have no end.
_VOID: Final = frozenset({"br", "hr", "img", "input", "link", "meta", "source", "wbr"})


@final
class _Page(HTMLParser):
    """What the checks look at in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self.blocks: list[tuple[str, int]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        for name in ("href", "src"):
            if name in values and tag != "link":
                self.links.append(values[name])
        if tag not in _VOID:
            self._open.append((tag, values.get("class", "")))
        if tag == "code" and self._inside("pre"):
            # In two columns a line has half the room.
            narrow = any("columns" in kind for _, kind in self._open)
            self.blocks.append(("", COLUMN if narrow else WIDTH))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside("pre") and self._inside("code") and self.blocks:
            text, width = self.blocks[-1]
            self.blocks[-1] = (text + data, width)
        elif self._inside("article") and not self._inside("code", "script", "style"):
            self.text.append(data)

    def _inside(self, *tags: str) -> bool:
        return any(tag in tags for tag, _ in self._open)


def wrong(site: Path) -> Iterator[str]:
    """Yield what is wrong with a site, page by page."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        for word in _PLACEHOLDER.findall(" ".join(page.text)):
            if word not in WORDS:
                yield f"{name}: {word!r} looks like a placeholder"
        for link in page.links:
            if not _resolves(link, path, site, pages):
                yield f"{name}: the link {link!r} leads nowhere"
        for block, width in page.blocks:
            for line in block.splitlines():
                if len(line) > width:
                    yield f"{name}: a line of code has {len(line)} letters, more than "
                    yield f"  the {width} that are shown: {line!r}"
    entries = Counter(
        name
        for path, page in pages.items()
        if path.parent.parent.name == "api"
        for name in batchkit.__all__
        if f"batchkit.{name}" in page.anchors
    )
    for name in batchkit.__all__:
        if entries[name] != 1:
            yield f"api: batchkit.{name} has {entries[name]} entries, and must have one"


def _resolves(link: str, path: Path, site: Path, pages: dict[Path, _Page]) -> bool:
    """Return True if a link leads to a file of the site and an anchor in it."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    if path.name == "404.html":  # it is shown at any address, with links from the root
        return True
    target = path
    if parts.path:
        target = (path.parent / unquote(parts.path)).resolve()
        if target.is_dir():
            target /= "index.html"
    if not target.is_relative_to(site) or not target.is_file():
        return False
    anchor = unquote(parts.fragment)
    return not anchor or target not in pages or anchor in pages[target].anchors


def main() -> None:
    site = Path(*sys.argv[1:] or ["site"]).resolve()
    if not (site / "index.html").is_file():
        sys.exit(f"there is no site in {site}: build it with `make docs`")
    found = list(wrong(site))
    print("\n".join(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
