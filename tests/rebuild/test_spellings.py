"""A vmap is found where it stands and rebuilt, however it is spelled or reached.

Lines are checked against `ast`, which reads the text; `sites` reads compiled code. In a
jaxpr, `Chunked(2)` over four rows is a scan of length 2, which the original does not
have.
"""

import ast
import functools
import textwrap
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.rebuild import Sites

from ..helpers import equations, explained
from ..vmaps import Found, snapshot, vmaps_in
from .spellings import HANDED_AROUND, NAMES, SPELLINGS


ROWS = jnp.arange(8.0).reshape(4, 2)


def sites(api: Any) -> Sites:
    return bk.sites(api, packages=("toy",))


def rebuild(api: Any, batcher: Any) -> Any:
    return bk.rebuild_sampler(api, batcher, packages=("toy",))


def places(found: Any) -> set[Found]:
    return {(x.qualname, x.line, x.spelling) for x in found}


def scans(fun: Any) -> set[int]:
    """The lengths of all scans."""
    eqns = equations(jax.make_jaxpr(fun)(ROWS))
    return {x.params["length"] for x in eqns if x.primitive.name == "scan"}


def functions_of(source: str) -> list[str]:
    return [x.name for x in ast.parse(source).body if isinstance(x, ast.FunctionDef)]


@functools.cache
def places_in(function: str) -> set[Found]:
    """The vmaps that the text of `SPELLINGS` has in one of its functions."""
    found = vmaps_in(SPELLINGS, NAMES)
    return {x for x in found if x[0].split(".")[0] == function}


HANDED = [
    name.split(" = ")[0].removeprefix("def ").split("(")[0]
    for name in HANDED_AROUND.splitlines()[4:]
    if not name.startswith(("def _", "_"))
]


@pytest.mark.parametrize("name", [*functions_of(SPELLINGS), *HANDED])
@pytest.mark.usefixtures("no_type_checks")
def test_spelling_is_found_and_rebuilt(name, make_package):
    is_located = name not in HANDED
    module = make_package(init=SPELLINGS if is_located else HANDED_AROUND)
    run = getattr(module, name)
    run(ROWS)  # what a function imports into its module is there
    before = [*snapshot(module)]
    found = sites(run)
    if is_located:
        assert places(found) == places_in(name)
        assert len(found) == len(places_in(name)) > 0
        assert {x.phase for x in found} == {None}
    first, second = rebuild(run, bk.Chunked(2)), rebuild(run, bk.Sequential())
    # Also what has been rebuilt takes another batcher, and none sees the other.
    again = rebuild(second, bk.Chunked(2))
    for copy, length in ((first, 2), (second, 4), (again, 2), (run, None)):
        assert scans(copy) - {2, 4} == set()
        assert (length is None) == (scans(copy) == set())
        assert length is None or length in scans(copy)
        np.testing.assert_allclose(copy(ROWS), run(ROWS), rtol=1e-6)
    if is_located:
        reached = explained(first, ROWS)
        inside = [x for each in reached for x in each.inside]
        assert places(x.site for x in (*reached, *inside)) == places_in(name)
    assert [*snapshot(module)] == before


def compiled(source: str, *, one_line: bool) -> ModuleType:
    """A module `toy` with the lines of its source moved."""
    tree = ast.parse(textwrap.dedent(source))
    for count, node in enumerate(ast.walk(tree), 1):
        if isinstance(node, ast.expr | ast.stmt | ast.arg | ast.alias | ast.keyword):
            node.lineno = node.end_lineno = 1 if one_line else count
            node.col_offset = node.end_col_offset = 0
    module = ModuleType("toy")
    exec(compile(tree, "toy.py", "exec"), vars(module))
    return module


@pytest.mark.parametrize("one_line", [True, False])
def test_line_breaks_do_not_hide_a_vmap(one_line):
    # What the compiler joins into one instruction depends on its version and on what
    # stands on one line.
    module = compiled(SPELLINGS, one_line=one_line)
    for name in functions_of(SPELLINGS):
        expected = {(qualname, x) for qualname, _, x in places_in(name)}
        found = sites(getattr(module, name))
        assert {(x.qualname, x.spelling) for x in found} == expected, name


def test_import_is_hidden_by_a_parameter_of_its_name():
    source = """
        def run(x):
            from jax import vmap
            def inner(vmap): return vmap(x)
            return inner(lambda r: r), vmap(lambda r: r)(x)
        """
    found = sites(compiled(source, one_line=True).run)
    assert {(x.qualname, x.spelling) for x in found} == {("run", "vmap")}


def test_function_is_read_without_the_one_that_imports_for_it(make_package):
    source = """
        def make():
            from jax import vmap
            def inner(x):
                y = x + 1
                total = lambda: vmap(lambda r: r.sum())(y)
                return total()
            return inner
        """
    inner = make_package(init=source).make()
    assert places(sites(inner)) == vmaps_in(source)
    (reached,) = explained(rebuild(inner, bk.Chunked(2)), ROWS)
    assert (reached.site.line, reached.site.spelling) == (6, "vmap")


@pytest.mark.parametrize("parameter", ["layout=jax.vmap", "*, layout=jax.vmap"])
@pytest.mark.usefixtures("no_type_checks")
def test_vmap_in_a_default_goes_by_its_parameter(parameter, make_package):
    source = f"import jax\n\ndef run(x, {parameter}): return layout(lambda r: -r)(x)\n"
    module = make_package(init=source)
    assert places(sites(module.run)) == {("run", 3, "layout")}
    (reached,) = explained(rebuild(module.run, bk.Chunked(2)), ROWS)
    assert [reached.site] == list(sites(module.run))
