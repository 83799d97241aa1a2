"""An oracle for `sites`: the vmaps in a source text, found by `ast`."""

import ast
import textwrap
from collections.abc import Iterable
from typing import Any


# What is compared: qualname, line, spelling.
Found = tuple[str, int, str]


def vmaps_in(source: str, names: Iterable[str] = ("vmap",)) -> set[Found]:
    """Every mention of a vmap in the functions of a module.

    **Arguments:**

    - `source`: the text of the module.
    - `names`: the names by which it knows `vmap`; `x.vmap` is found anyway.
    """
    visitor = _Vmaps(set(names))
    visitor.visit(ast.parse(textwrap.dedent(source)))
    return visitor.found


def line_of(source: str, name: str) -> int:
    """The line on which a function is defined, its decorators included."""
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return min([node.lineno, *(x.lineno for x in node.decorator_list)])
    raise AssertionError(f"no function {name}")


class _Vmaps(ast.NodeVisitor):
    def __init__(self, names: set[str]) -> None:
        self.found: set[Found] = set()
        self._names = names
        self._inside: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            if self._is_vmap(decorator):
                # No function runs the decorators of a module's own functions, so they
                # are known by what they decorate.
                where = "".join(self._inside).removesuffix(".<locals>.")
                place = where or node.name
                spelling = f"@{ast.unparse(decorator)}"
                self.found.add((place, decorator.lineno, spelling))
            else:
                self.visit(decorator)
        self._visit_body(node.name, node.args, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_body("<lambda>", node.args, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside.append(f"{node.name}.")
        self.generic_visit(node)
        self._inside.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._note(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._note(node)

    def _visit_body(self, name: str, args: ast.arguments, body: Any) -> None:
        self.visit(args)  # defaults belong to what is outside
        self._inside.append(f"{name}.<locals>.")
        for statement in body:
            self.visit(statement)
        self._inside.pop()

    def _note(self, node: ast.expr) -> None:
        # At the top level of a module nothing can be told to another vmap.
        if self._inside and self._is_vmap(node):
            where = "".join(self._inside).removesuffix(".<locals>.").removesuffix(".")
            self.found.add((where, node.lineno, ast.unparse(node)))

    def _is_vmap(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == "vmap" and isinstance(node.value, ast.Name)
        return (
            isinstance(node, ast.Name)
            and node.id in self._names
            and isinstance(node.ctx, ast.Load)
        )
