"""A vmap is found where it stands and rebuilt, however it is spelled or reached.

Lines are checked against `ast`, which reads the text; `sites` reads compiled code. In a
jaxpr, `Chunked(2)` over four rows is a scan of length 2, which the original does not
have.
"""

import ast
import textwrap
from types import FunctionType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.rebuild import Sites

from ..helpers import equations, explained
from .spellings import HANDED_AROUND, NAMES, NESTED_IMPORTS, SPELLINGS
from .vmaps import line_of, vmaps_in


ROWS = jnp.arange(8.0).reshape(4, 2)
LOCATED = {**SPELLINGS, **{f"{k}, nested": x for k, x in NESTED_IMPORTS.items()}}


def sites(api: Any) -> Sites:
    return bk.sites(api, packages=("toy",))


def rebuild(api: Any, batcher: Any) -> Any:
    return bk.rebuild_sampler(api, batcher, packages=("toy",))


def scans(fun: Any) -> set[int]:
    """The lengths of all scans."""
    eqns = equations(jax.make_jaxpr(fun)(ROWS))
    return {x.params["length"] for x in eqns if x.primitive.name == "scan"}


def snapshot(module: ModuleType) -> list[tuple[str, Any]]:
    """What the functions of a module consist of, to be compared by identity."""
    parts = list(vars(module).items())
    for name, value in list(parts):
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            details = (value.__code__, value.__defaults__, value.__kwdefaults__)
            attributes = value.__dict__.values()
            parts += [(name, x) for x in (*details, *cells, *attributes)]
    return parts


@pytest.mark.parametrize("name", [*LOCATED, *HANDED_AROUND])
@pytest.mark.usefixtures("no_type_checks")
def test_spelling_is_found_and_rebuilt(name, make_package):
    source = {**LOCATED, **HANDED_AROUND}[name]
    module = make_package(init=source)
    run = module.run
    expected = run(ROWS)
    before = snapshot(module)
    found = sites(run)
    listed = {(x.qualname, x.line, x.spelling) for x in found}
    if name in LOCATED:
        assert listed == vmaps_in(source, [NAMES.get(name, "vmap")])
        assert len(found) == len(listed)
        assert {x.phase for x in found} == {None}
    first, second = rebuild(run, bk.Chunked(2)), rebuild(run, bk.Sequential())
    # Also what has been rebuilt takes another batcher, and none sees the other.
    again = rebuild(second, bk.Chunked(2))
    for copy, length in ((first, 2), (second, 4), (again, 2), (run, None)):
        assert scans(copy) - {2, 4} == set()
        assert (length is None) == (scans(copy) == set())
        assert length is None or length in scans(copy)
        np.testing.assert_allclose(copy(ROWS), expected, rtol=1e-6)
    if name in LOCATED:
        reached = {
            x.site for each in explained(first, ROWS) for x in (each, *each.inside)
        }
        assert {(x.qualname, x.line, x.spelling) for x in reached} == listed
    after = snapshot(module)
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(x is y for (_, x), (_, y) in zip(after, before, strict=True))


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
    for name, source in LOCATED.items():
        listed = vmaps_in(source, [NAMES.get(name, "vmap")])
        expected = {(qualname, x) for qualname, _, x in listed}
        found = sites(compiled(source, one_line=one_line).run)
        assert {(x.qualname, x.spelling) for x in found} == expected, source


def test_import_is_hidden_by_a_parameter_of_its_name():
    source = """
        def run(x):
            from jax import vmap
            def inner(vmap): return vmap(x)
            return inner(lambda r: r), vmap(lambda r: r)(x)
        """
    found = sites(compiled(source, one_line=True).run)
    assert {(x.qualname, x.spelling) for x in found} == {("run", "vmap")}


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_sites_do_not_depend_on_the_order_of_reading(first, make_package):
    # `inner` is read by itself, or as a part of the function that imports for it.
    source = """
        def make():
            from jax import vmap
            def inner(x):
                y = x + 1
                total = lambda: vmap(lambda r: r.sum())(y)
                return total()
            return inner
        """
    module = make_package(init=source)
    inner = module.make()
    order = [module.make, inner] if first == "outer" else [inner, module.make]
    for api in order:
        found = {(x.qualname, x.line, x.spelling) for x in sites(api)}
        assert found == vmaps_in(source)
    copy = rebuild(inner, bk.Chunked(2))
    (reached,) = explained(copy, ROWS)
    assert (reached.site.line, reached.site.spelling) == (6, "vmap")


PARAMETERS = ["layout=jax.vmap", "*, layout=jax.vmap"]


@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.usefixtures("no_type_checks")
def test_vmap_in_a_default_goes_by_its_parameter(parameter, make_package):
    source = f"import jax\n\ndef run(x, {parameter}): return layout(lambda r: -r)(x)\n"
    module = make_package(init=source)
    place = ("run", line_of(source, "run"), "layout")
    assert [(x.qualname, x.line, x.spelling) for x in sites(module.run)] == [place]
    (reached,) = explained(rebuild(module.run, bk.Chunked(2)), ROWS)
    assert [reached.site] == list(sites(module.run))


@pytest.mark.usefixtures("no_type_checks")
def test_sites_of_other_modules_are_reached_under_their_names(make_package):
    module = make_package(
        init="def run(x): import toy.a; return toy.a.g(x)\n",
        a="""
        import jax
        from .b import f
        def g(x): return jax.vmap(lambda r: -r)(f(x))
        """,
        b="""
        import jax
        def f(x):
            y = 2 * x
            return jax.vmap(jax.nn.relu)(y)
        """,
    )
    listed = sites(module.run)
    assert {site.module for site in listed} == {"toy.a", "toy.b"}
    reached = explained(rebuild(module.run, bk.Chunked(2)), ROWS)
    assert {each.site for each in reached} == set(listed)
