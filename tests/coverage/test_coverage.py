"""Every public name of blackjax, and every vmap in it, goes through a batcher."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import blackjax
import blackjax.adaptation.laps
import jax
import pytest

import batchkit as bk

from ..helpers import mesh
from . import page
from .cases import ALL, Case
from .harness import (
    assert_close,
    expected,
    recorded,
    run,
    same_program,
    trace,
    upstream,
)
from .source import sites
from .table import CASES, EXCEPTIONS, HANDED_IN, UNREACHED


def test_the_table_has_every_public_name():
    public = {name for name in dir(blackjax) if not name.startswith("_")}
    covered = {case.name for case in CASES}
    assert public - covered - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - public == set(), "no longer in blackjax"
    assert EXCEPTIONS.keys() & covered == set(), "has a case after all"
    assert len({str(case) for case in CASES}) == len(CASES)


def test_the_cases_reach_every_vmap_in_the_source_of_blackjax():
    with jax.enable_x64(True):
        found = {site for case in CASES for site in recorded(case)[2]}
    lines = {(site.module, site.line) for site in found}
    missed = {f"{m}:{name}" for m, name, line in sites() if (m, line) not in lines}
    assert missed == UNREACHED.keys()


def test_what_no_case_reaches_is_refused():
    with pytest.raises(bk.UnreachableSiteError, match="equipartition_fullrank"):
        bk.rebuild_sampler(blackjax.adaptation.laps.laps, batcher=bk.Chunked(2))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_vmap_that_is_reached_was_found_before(case: Case):
    with jax.enable_x64(True):
        reached = recorded(case)[2]
    found = {
        dataclasses.replace(site, phase=None)
        for site in bk.sites(getattr(blackjax, case.name))
    }
    assert {site.name for site in reached - found} == HANDED_IN.get(str(case), set())


@pytest.mark.parametrize("case", CASES, ids=str)
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
    for name, batcher in zip(ALL, batchers, strict=True):
        for case in CASES:
            marks = [] if name in case.quick else [pytest.mark.slow]
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
    assert rows == [(str(case), str(case.steps)) for case in CASES], _STALE
    if f"blackjax {blackjax.__version__}," not in text:
        pytest.skip("the page is about another release of blackjax")
    assert page.sites_section() in text, _STALE


_STALE = "run `make coverage` and commit docs/coverage.md"
