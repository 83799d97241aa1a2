"""Take pictures of pages of the built site in a browser, and measure what is cut off.

    python tools/screens.py FOLDER [PAGE ...]

writes a picture of each page in the light theme, the dark theme and on a phone. It
fails if a page of the site asks for something from elsewhere, reports an error, is
wider than a window of 1,280 pixels, or cuts off a line of code there, and if a search
that users make finds nothing. It needs Chromium; `CHROMIUM` says where it is.
"""

import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

# It is in an extra of its own, which `make screens` installs.
from playwright.sync_api import (  # pyright: ignore
    Page,
    TimeoutError,
    sync_playwright,
)


SITE: Final = Path(os.environ.get("SITE") or Path(__file__).parents[1] / "site")
PAGES: Final = ("", "getting-started", "runs", "api/figures", "coming-from")
VIEWS: Final[dict[str, dict[str, Any]]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
QUERIES: Final = (
    *("numpyro", "lax.map", "dynesty", "out of memory", "latex", "corner", "resume"),
    *("slurm", "pmap", "gpu", "checkpoint", "diffrax"),
)
# Without these Chromium looks for updates.
OPTIONS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The longest line of every block of code that is wider than its box.
CUT: Final = """() => [...document.querySelectorAll("article pre > code")]
    .filter((x) => x.scrollWidth > x.clientWidth + 1)
    .map((x) => x.textContent.split("\\n"))
    .map((lines) => lines.reduce((a, b) => (a.length < b.length ? b : a)))
"""
# A page that is wider than the window scrolls as a whole.
WIDE: Final = "() => document.documentElement.scrollWidth > window.innerWidth + 1"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to this machine, and yield its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def look(page: Page, address: str, name: str, path: Path | None) -> list[str]:
    """Open a page and take a picture of it; return its defects."""
    wrong: list[str] = []
    page.on(
        "request",
        lambda x: (
            None
            if x.url.startswith((address, "data:"))
            else wrong.append(f"asks for {x.url}")
        ),
    )
    page.on("pageerror", lambda x: wrong.append(f"error: {x}"))
    page.on(
        "response",
        lambda x: wrong.append(f"{x.status} {x.url}") if x.status >= 400 else None,
    )
    page.goto(f"{address}/{name}", wait_until="networkidle")
    if path is not None:
        page.screenshot(path=path, full_page=True)
    if page.viewport_size and page.viewport_size["width"] >= 1280:
        wrong += [f"cuts off {line!r}" for line in page.evaluate(CUT)]
    if page.evaluate(WIDE):
        wrong.append("is wider than the window")
    return wrong


def search(page: Page, address: str, query: str) -> list[str]:
    """Return the titles of the pages that a search finds."""
    page.goto(address, wait_until="networkidle")
    page.click("[data-md-component=search-query]")
    page.keyboard.type(query, delay=20)
    try:
        page.wait_for_selector(".md-search-result__item", timeout=5000)
    except TimeoutError:
        return []
    links = page.locator(".md-search-result__item > a").all()
    return [urlsplit(x.get_attribute("href") or "").path.strip("/") for x in links]


def main() -> None:
    folder, *pages = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium on PATH: install it, or set CHROMIUM=path")
    failed = False
    with served(SITE) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=list(OPTIONS)
        )
        for name in pages or PAGES:
            for view, options in VIEWS.items():
                context = browser.new_context(**options)
                file = f"{name.replace('/', '-') or 'home'}-{view}.png"
                for line in look(context.new_page(), address, name, Path(folder, file)):
                    failed = True
                    print(f"{name or 'home'} ({view}): {line}")
                context.close()
        wide = browser.new_page(**VIEWS["light"])
        for path in sorted(SITE.rglob("index.html")):
            name = path.parent.relative_to(SITE).as_posix()
            page = browser.new_page(**VIEWS["light"])
            for line in look(page, address, "" if name == "." else f"{name}/", None):
                failed = True
                print(f"{name}: {line}")
            page.close()
        for query in QUERIES:
            titles = search(wide, address, query)
            failed = failed or not titles
            print(f"search for {query!r}: {', '.join(titles[:4]) or 'NOTHING'}")
        browser.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
