"""Every vmap that stands in the source of blackjax, found by reading it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import blackjax


Site = tuple[str, str, int]  # module, qualified name, line


def sites() -> set[Site]:
    assert blackjax.__file__ is not None
    root = Path(blackjax.__file__).parent
    found: set[Site] = set()
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(x for x in parts if x != "__init__")
        for functions, line in _vmaps(ast.parse(path.read_text()), ()):
            found.add((module, ".<locals>.".join(functions), line))
    return found


def _vmaps(
    node: ast.AST, functions: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int]]:
    """The functions around each vmap that is called or decorates, and its line."""
    if isinstance(node, ast.Call) and _is_vmap(node.func):
        yield functions, node.lineno
    if isinstance(node, ast.FunctionDef):
        yield from ((functions, x.lineno) for x in node.decorator_list if _is_vmap(x))
        functions = (*functions, node.name)
    elif isinstance(node, ast.Lambda):
        functions = (*functions, "<lambda>")
    for child in ast.iter_child_nodes(node):
        yield from _vmaps(child, functions)


def _is_vmap(expression: ast.expr) -> bool:
    if isinstance(expression, ast.Attribute):
        owner = expression.value
        return expression.attr == "vmap" and getattr(owner, "id", "") == "jax"
    return isinstance(expression, ast.Name) and expression.id == "vmap"
