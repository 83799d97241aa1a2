"""The house rules that a reader of the package relies on."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import equinox as eqx
import pytest

import batchkit

from .helpers import BATCHERS


MODULES = {
    name: importlib.import_module(name)
    for _, name, _ in pkgutil.walk_packages(batchkit.__path__, "batchkit.")
}
# Each folder may import those before it.
FOLDERS = (
    "batchers",
    "continuous",
    "auto",
    "rebuild",
    "reports",
    "fitting",
    "run",
    "nested",
    "chains",
    "shards",
    "plots",
)
IN_FOLDERS = {name: module for name, module in MODULES.items() if name != "batchkit"}
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


@every_module
def test_abstract_or_final(module: ModuleType) -> None:
    for name, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ != module.__name__:
            continue
        is_final = getattr(cls, "__final__", False)
        assert is_final != name.lstrip("_").startswith("Abstract"), name
        if not is_final:
            assert inspect.isabstract(cls), name
        for base in cls.__mro__[1:]:
            assert not getattr(base, "__final__", False), name


@every_module
def test_concrete_methods_are_not_overridden(module: ModuleType) -> None:
    for name, cls in inspect.getmembers(module, inspect.isclass):
        ours = [base for base in cls.__mro__[1:] if base.__module__ in MODULES]
        for base in ours:
            for method, defined in vars(base).items():
                if inspect.isfunction(defined) and not method.startswith("__"):
                    abstract = getattr(defined, "__isabstractmethod__", False)
                    assert abstract or method not in vars(cls), f"{name}.{method}"


def test_one_interface() -> None:
    assert batchkit.AbstractBatcher.__abstractmethods__ == {"batch"}
    for batcher in BATCHERS.values():
        assert isinstance(batcher, batchkit.AbstractBatcher | eqx.Module)
        assert "__call__" not in vars(type(batcher))


def _imports(module: ModuleType) -> set[str]:
    """The absolute names of what a module imports, wherever it does so."""
    path = Path(module.__file__ or "")
    package = module.__package__ or ""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(parents) if node.level > 0 else ""
            base = ".".join(part for part in (prefix, node.module or "") if part)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("module", IN_FOLDERS.values(), ids=IN_FOLDERS)
def test_imports_run_one_way(module: ModuleType) -> None:
    place = FOLDERS.index(module.__name__.split(".")[1])
    for name in _imports(module):
        # Only runs call blackjax itself; the rest works on whatever it is given.
        assert not name.startswith("blackjax") or place >= FOLDERS.index("run")
        if name.startswith("batchkit"):
            assert FOLDERS.index(name.split(".")[1]) <= place


@every_module
def test_public_jax_only(module: ModuleType) -> None:
    for name in _imports(module):
        assert not name.startswith(("jax._", "jaxlib", "equinox._", "equinox.internal"))


@every_module
def test_annotations_are_evaluated(module: ModuleType) -> None:
    source = Path(module.__file__ or "").read_text("utf-8")
    assert "from __future__ import annotations" not in source


@pytest.mark.parametrize("name", [n for n in dir(batchkit) if n[0].isupper()])
def test_docstrings(name: str) -> None:
    """A class says what it is, and its `__init__` what it takes."""
    cls = getattr(batchkit, name)
    doc = inspect.getdoc(cls)
    assert doc is not None
    assert doc.split("\n")[0].endswith(".")
    if not inspect.isabstract(cls) and issubclass(cls, batchkit.AbstractBatcher):
        assert "**Arguments:**" in (cls.__init__.__doc__ or "")
