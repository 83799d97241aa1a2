"""Writes the page of the documentation that says what works, from real runs.

`python -m tests.coverage.page` runs every case in every layout and takes some minutes.
What the page says about sites is compared with the installed blackjax by the tests.
"""

import dataclasses
import os
import platform
from pathlib import Path


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import blackjax
import jax
import numpy as np
from jax.sharding import Mesh

import batchkit as bk

from .cases import Case
from .harness import (
    assert_close,
    difference,
    expected,
    recorded,
    run,
    same_program,
    trace,
    upstream,
)
from .table import CASES, EXCEPTIONS


PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
TITLES = ("Vmap()", "Chunked(3)", "Sequential()", "Sharded", "Continuous(3)")

_HEAD = """\
# Coverage of blackjax

<!-- Written by `make coverage`. Do not edit. -->

Every public name of blackjax that builds or runs an algorithm, rebuilt with each
batcher and run beside upstream in float64, for a few steps: samplers are chaotic, and a
last bit grows from step to step. `Sharded` is over two devices; the tasks are divided
evenly by neither the chunks, the devices nor the lanes. Keys, integers and booleans are
upstream's in every row.

- *same program*: what is traced is upstream's program, so its results are its bits.
- *bits*: every result has upstream's bits.
- a number: the largest difference, relative to a result where that is above 1.
"""


def main() -> None:
    """Runs all cases and writes the page."""
    jax.config.update("jax_enable_x64", True)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tasks",))
    layouts = [
        None,
        bk.Chunked(3),
        bk.Sequential(),
        bk.Sharded(mesh),
        bk.Continuous(3),
    ]
    rows: list[tuple[str, ...]] = []
    for case in CASES:
        print(case, flush=True)
        rows.append(
            (
                f"`{case}`",
                str(case.steps),
                str(len(recorded(case)[2])),
                *(verdict(case, batcher) for batcher in layouts),
            )
        )
    versions = (
        f"blackjax {blackjax.__version__}, JAX {jax.__version__}, "
        f"Python {platform.python_version()}, CPU."
    )
    same = ["0", *["same program"] * len(TITLES)]
    without = [row[0] for row in rows if list(row[2:]) == same]
    rows = [row for row in rows if row[0] not in without]
    results = table(("case", "steps", "sites reached", *TITLES), rows)
    parts = [
        _HEAD,
        versions,
        f"These {len(without)} cases have no site, and trace upstream's program in "
        f"every layout: {', '.join(without)}.",
        results,
        "Several cases of one API reach its different sites: the text in brackets says "
        "which settings.",
        sites_section(),
        "## Left out",
        table(("name", "why"), [(f"`{k}`", v) for k, v in sorted(EXCEPTIONS.items())]),
    ]
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n", "utf-8")


def verdict(case: Case, batcher: bk.AbstractBatcher | None) -> str:
    """How the results in one layout (`Vmap()` if None) compare with upstream's."""
    program, args = recorded(case)[:2] if batcher is None else trace(case, batcher)
    if same_program(program, upstream(case)[0]):
        return "same program"
    results = run(program, args)
    assert_close(results, expected(case), 0.0 if batcher is None else case.tolerance)
    worst = difference(results, expected(case))
    return f"{worst:.0e}" if worst > 0 else "bits"


def sites_section() -> str:
    """The sites of every name, which reading blackjax finds."""
    lines = ["## Sites", "What `bk.sites` finds, for every name that has any."]
    rows: list[tuple[str, ...]] = []
    for name in sorted({case.name for case in CASES}):
        found = bk.sites(getattr(blackjax, name))
        found = {dataclasses.replace(site, phase=None) for site in found}
        for site in sorted(found, key=lambda site: (site.module, site.line)):
            place = f"`{site.name}`:{site.line}"
            rows.append((f"`{name}`", place, f"`{site.spelling}`"))
    return "\n\n".join([*lines, table(("name", "site", "spelling"), rows)])


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
