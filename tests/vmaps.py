"""Oracles: the vmaps in a source text, found by `ast`, and what a package holds."""

import ast
import functools
import textwrap
import types
from collections.abc import Iterable, Iterator
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


def snapshot(root: types.ModuleType) -> Iterator[tuple[Any, Any]]:
    """Yield the place and the identity of all that a module of the package holds."""
    seen: dict[int, Any] = {}
    pending: list[Any] = [((), root)]
    while pending:
        place, value = pending.pop()
        yield place, id(value)
        if id(value) in seen:
            continue
        seen[id(value)] = value
        parts: Any = getattr(value, "__dict__", {}) if _is_ours(value) else {}
        if isinstance(value, types.FunctionType) and value.__module__ != "theirs":
            cells = {i: x.cell_contents for i, x in enumerate(value.__closure__ or ())}
            parts = {
                **parts,
                **cells,
                "": value.__defaults__,
                "*": value.__kwdefaults__,
            }
        elif isinstance(value, list | tuple):
            parts = dict(enumerate(value))
        elif isinstance(value, dict):
            parts = value
        elif isinstance(value, functools.partial):
            parts = {"func": value.func, "args": value.args, **value.keywords}
        pending += [((*place, name), part) for name, part in list(parts.items())]


def _is_ours(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] == "toy"
    return getattr(type(value), "__module__", None) == "toy" or (
        isinstance(value, types.FunctionType)
    )
