"""Every public name of blackjax, and every vmap in it, goes through a batcher."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import blackjax
import blackjax.adaptation.laps
import jax
import pytest

import batchkit as bk

from ..helpers import mesh
from ..vmaps import vmaps_in
from . import page
from .cases import Case
from .harness import (
    assert_close,
    expected,
    recorded,
    run,
    same_program,
    trace,
    upstream,
)
from .table import CASES, EXCEPTIONS, HANDED_IN, UNREACHED


# `make test` traces every case under `Vmap()` and compares its program with upstream's.
# In the layouts named here it compiles and runs one case of each family: compiling
# takes most of the time. `make slow` runs every case in every layout.
QUICK = {
    "nss": {"Chunked"},
    "tempered_smc": {"Chunked"},
    "chees_adaptation": {"Chunked"},
    "eca[run]": {"Chunked"},
    "meanfield_vi": {"Chunked"},
    "svgd": {"Chunked"},
    "sgld": {"Chunked"},
    "slice_sampling": {"Chunked", "Continuous"},
    "hmc": {"Chunked", "Sequential", "Sharded", "Continuous"},
    "diagnostics": {"Chunked"},
}
# These run hundreds of small programs from Python before they have reached every vmap.
SLOW_TO_TRACE = {"mclmc_lrd_warmup", "staged_adaptation[chains]"}


def cases() -> Iterator[Any]:
    """Every case; those that are slow to trace are left to `make slow`."""
    for case in CASES:
        marks = [pytest.mark.slow] if str(case) in SLOW_TO_TRACE else []
        yield pytest.param(case, id=str(case), marks=marks)


def test_the_table_has_every_public_name():
    public = {name for name in dir(blackjax) if not name.startswith("_")}
    covered = {case.name for case in CASES}
    assert public - covered - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - public == set(), "no longer in blackjax"
    assert EXCEPTIONS.keys() & covered == set(), "has a case after all"
    names = {str(case) for case in CASES}
    assert len(names) == len(CASES)
    # An older release of blackjax may lack a name.
    named = {x for x in QUICK.keys() | SLOW_TO_TRACE if x.split("[")[0] in public}
    assert named <= names


def test_every_vmap_in_the_source_of_blackjax_is_reached_or_found():
    """Where tracing is slow, the vmaps that reading finds count as reached.

    All cases are traced here, for the tests below as well.
    """
    names = {case.name for case in CASES if str(case) in SLOW_TO_TRACE}
    found = {site for name in names for site in bk.sites(getattr(blackjax, name))}
    quick = [case for case in CASES if str(case) not in SLOW_TO_TRACE]
    assert missed(found | reached(quick)) == UNREACHED.keys()


@pytest.mark.slow
def test_the_cases_reach_every_vmap_in_the_source_of_blackjax():
    assert missed(reached(CASES)) == UNREACHED.keys()


def reached(cases: Iterable[Case]) -> set[bk.Site]:
    with jax.enable_x64(True):
        return {site for case in cases for site in recorded(case)[2]}


def missed(found: Iterable[bk.Site]) -> set[str]:
    """The vmaps in blackjax's source that are not among the sites."""
    lines = {(site.module, site.line) for site in found}
    assert blackjax.__file__ is not None
    root = Path(blackjax.__file__).parent
    unreached: set[str] = set()
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(x for x in parts if x != "__init__")
        for name, line, _ in vmaps_in(path.read_text("utf-8")):
            if (module, line) not in lines:
                unreached.add(f"{module}:{name}")
    return unreached


def test_what_no_case_reaches_is_refused():
    with pytest.raises(bk.UnreachableSiteError, match="equipartition_fullrank"):
        bk.rebuild_sampler(blackjax.adaptation.laps.laps, batcher=bk.Chunked(2))


@pytest.mark.parametrize("case", list(cases()))
def test_every_vmap_that_is_reached_was_found_before(case: Case):
    found = {
        dataclasses.replace(site, phase=None)
        for site in bk.sites(getattr(blackjax, case.name))
    }
    handed_in = {site.name for site in reached([case]) - found}
    assert handed_in == HANDED_IN.get(str(case), set())


@pytest.mark.parametrize("case", list(cases()))
def test_vmap_has_upstreams_bits(case: Case):
    with jax.enable_x64(True):
        program, args, _ = recorded(case)
        check(case, program, args, tolerance=0.0)


def layouts() -> Iterator[Any]:
    """Every case in every layout that splits the tasks."""
    batchers = (
        bk.Chunked(3),
        bk.Sequential(),
        bk.Sharded(mesh(2)),
        bk.Continuous(3),
    )
    for batcher in batchers:
        name = type(batcher).__name__
        for case in CASES:
            is_quick = name in QUICK.get(str(case), ())
            marks = [] if is_quick else [pytest.mark.slow]
            yield pytest.param(case, batcher, id=f"{name}-{case}", marks=marks)


@pytest.mark.parametrize(("case", "batcher"), list(layouts()))
def test_other_layouts_are_upstreams_to_rounding(
    case: Case, batcher: bk.AbstractBatcher
):
    with jax.enable_x64(True):
        check(case, *trace(case, batcher), case.tolerance)


def check(case: Case, program: Any, args: Any, tolerance: float) -> None:
    if not same_program(program, upstream(case)[0]):
        assert_close(run(program, args), expected(case), tolerance)


def test_the_page_in_the_documentation_is_of_today():
    text = page.PAGE.read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \|", text, re.MULTILINE)
    (listed,) = re.findall(r"^These \d+ cases have no site.*: (.*)\.$", text, re.M)
    without = re.findall(r"`([^`]+)`", listed)
    steps = {str(case): str(case.steps) for case in CASES}
    assert rows == [x for x in steps.items() if x[0] not in without], _STALE
    assert without == [name for name in steps if name in without], _STALE
    if f"blackjax {blackjax.__version__}," not in text:
        pytest.skip("the page is about another release of blackjax")
    assert page.sites_section() in text, _STALE


_STALE = "run `make coverage` and commit docs/coverage.md"
