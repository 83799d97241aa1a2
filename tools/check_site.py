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
        *("SLURM", "SIGTERM", "SIGINT", "SIGABRT", "NCCL", "GPFS", "JSON"),
    }
)
_PLACEHOLDER: Final = re.compile(r"\b[A-Z]{4,}\b")
# Also in code, where a word in capitals may be a constant.
_TO_DO: Final = re.compile(r"\b(?:TODO|FIXME|XXX|TBD|SECONDS|MEASURED)(?![A-Z])")
# A reference to a name that has no entry.
_REFERENCE: Final = re.compile(r"\]\[batchkit[\w.]*\]")
_PRIVATE: Final = re.compile(r"= _[A-Za-z]\w*")
# Elements that have no end.
_VOID: Final = frozenset({"br", "hr", "img", "input", "link", "meta", "source", "wbr"})


@final
class _Page(HTMLParser):
    """What the checks look at in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.images: list[dict[str, str]] = []
        self.text: list[str] = []
        self.blocks: list[tuple[str, int]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.append(values["id"])
        self.links += [values[x] for x in ("href", "src") if x in values]
        if tag == "img" and self._inside("article"):
            self.images.append(values)
            self.text.append(values.get("alt", ""))
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
    """Yield the defects of a site, page by page."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        text = " ".join(page.text)
        for word in _PLACEHOLDER.findall(text):
            if word not in WORDS:
                yield f"{name}: {word!r} looks like a placeholder"
        for block, _ in page.blocks:
            for word in _TO_DO.findall(block):
                yield f"{name}: {word!r} in a block looks like a placeholder"
        for reference in _REFERENCE.findall(text):
            yield f"{name}: the reference {reference!r} leads nowhere"
        for image in page.images:
            if "figure" not in image.get("class", "") and "twemoji" not in str(image):
                yield f"{name}: the image {image.get('src')!r} lacks {{ .figure }}"
        for link in page.links:
            if not _resolves(link, path, site, pages):
                yield f"{name}: the link {link!r} leads nowhere"
        for block, width in page.blocks:
            for line in block.splitlines():
                if len(line) > width:
                    yield f"{name}: a line of code has {len(line)} letters, more than "
                    yield f"  the {width} that are shown: {line!r}"
    reference = {x: page for x, page in pages.items() if x.parent.parent.name == "api"}
    entries = Counter(
        anchor.removeprefix("batchkit.")
        for page in reference.values()
        for anchor in page.anchors
        if anchor.startswith("batchkit.")
    )
    for path, page in reference.items():
        for block, _ in page.blocks:
            for default in _PRIVATE.findall(block):
                yield f"{path.relative_to(site)}: a signature shows {default!r}"
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
