"""The same names are read from code, however the compiler has put it.

What the compiler joins into one instruction depends on its version and on what stands
on one line, so each spelling is compiled with all of it on one line and with each part
on a line of its own.
"""

import ast
import textwrap
from types import ModuleType

import pytest

import batchkit as bk

from .spellings import NESTED_IMPORTS, SPELLINGS
from .vmaps import vmaps_in


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


@pytest.mark.parametrize(
    ("source", "names"),
    [*SPELLINGS.values(), *NESTED_IMPORTS.values()],
    ids=[*SPELLINGS, *(f"{name}, nested" for name in NESTED_IMPORTS)],
)
def test_lines_do_not_hide_a_vmap(source, names):
    expected = {
        (qualname, spelling) for qualname, _, spelling in vmaps_in(source, names)
    }
    for one_line in (True, False):
        module = compiled(source, one_line=one_line)
        found = bk.sites(module.run, packages=("toy",))
        assert {(x.qualname, x.spelling) for x in found} == expected


def test_a_parameter_does_not_inherit_the_import_that_it_shadows():
    source = """
        def run(x):
            from jax import vmap
            def inner(vmap): return vmap(x)
            return inner(lambda r: r), vmap(lambda r: r)(x)
        """
    found = bk.sites(compiled(source, one_line=True).run, packages=("toy",))
    assert {(x.qualname, x.spelling) for x in found} == {("run", "vmap")}
