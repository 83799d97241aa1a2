"""The house rules that a reader of the package relies on.

Each rule is one test that reads the whole package and lists every offender.
"""

import ast
import graphlib
import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import equinox as eqx

import batchkit

from .helpers import BATCHERS


MODULES = {
    name: importlib.import_module(name)
    for _, name, _ in pkgutil.walk_packages(batchkit.__path__, "batchkit.")
}
# The packages that each package imports, wherever it does so: neither more nor fewer.
IMPORTS = {
    "_util": set(),
    "batchers": {"_util"},
    "continuous": {"_util", "batchers"},
    "devices": {"_util"},
    "rebuild": {"_util", "batchers"},
    "explain": {"_util", "batchers", "devices", "rebuild"},
    "run": {"_util", "batchers", "devices", "explain", "rebuild"},
    "auto": {
        *("_util", "batchers", "continuous", "devices", "explain", "rebuild", "run")
    },
    "hosts": {"_util", "run"},
    "nested": {"_util", "batchers", "explain", "hosts", "rebuild", "run"},
    "chains": {"_util", "batchers", "explain", "hosts", "run"},
    "shards": {"_util", "batchers", "chains", "hosts", "run"},
    "plots": {"_util", "chains", "explain", "nested", "run", "shards"},
    "__main__": {"auto", "devices", "explain"},
}
# Runs call blackjax itself; everything else works on the API that it is given.
IMPORT_BLACKJAX = {"nested", "chains", "shards"}


def classes() -> Iterator[type]:
    """Every class of the package, once."""
    for module in MODULES.values():
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                yield cls


def test_classes_are_abstract_or_final() -> None:
    offenders: list[str] = []
    for cls in classes():
        is_final = getattr(cls, "__final__", False)
        is_abstract = cls.__name__.lstrip("_").startswith("Abstract")
        if is_final == is_abstract or (is_abstract and not inspect.isabstract(cls)):
            offenders.append(f"{_name(cls)} is neither final nor abstract")
        offenders += [
            f"{_name(cls)} derives from {_name(base)}, which is final"
            for base in cls.__mro__[1:]
            if getattr(base, "__final__", False)
        ]
    assert offenders == []


def test_concrete_methods_are_not_overridden() -> None:
    offenders = [
        f"{_name(cls)}.{method} overrides that of {_name(base)}"
        for cls in classes()
        for base in cls.__mro__[1:]
        if base.__module__ in MODULES
        for method, defined in vars(base).items()
        if inspect.isfunction(defined) and not method.startswith("__")
        if not getattr(defined, "__isabstractmethod__", False)
        if method in vars(cls)
    ]
    assert offenders == []


def test_batchers_have_one_interface() -> None:
    assert batchkit.AbstractBatcher.__abstractmethods__ == {"batch"}
    for batcher in BATCHERS.values():
        assert isinstance(batcher, batchkit.AbstractBatcher | eqx.Module)
        assert "__call__" not in vars(type(batcher))


def test_imports_between_packages_are_those_of_the_table() -> None:
    found: dict[str, set[str]] = {name: set() for name in IMPORTS}
    for module in MODULES.values():
        package = module.__name__.split(".")[1]
        found[package] |= {name.split(".")[1] for name in imports(module)} - {package}
        assert "batchkit" not in _imported(module), "it imports the packages"
    assert found == IMPORTS


def test_imports_run_one_way() -> None:
    """Neither packages nor the files of one import each other in a circle."""
    graphlib.TopologicalSorter(IMPORTS).prepare()
    graphlib.TopologicalSorter(
        {name: imports(module) - {name} for name, module in MODULES.items()}
    ).prepare()


def test_only_runs_import_blackjax() -> None:
    offenders = [
        name
        for name, module in MODULES.items()
        if any(x.split(".")[0] == "blackjax" for x in _imported(module))
        if name.split(".")[1] not in IMPORT_BLACKJAX
    ]
    assert offenders == []


def test_only_public_names_of_jax_and_equinox_are_imported() -> None:
    private = ("jax._", "jaxlib", "equinox._", "equinox.internal")
    offenders = [
        f"{name} imports {imported}"
        for name, module in MODULES.items()
        for imported in sorted(_imported(module))
        if imported.startswith(private)
    ]
    assert offenders == []


def test_no_two_files_and_no_two_classes_share_a_name() -> None:
    files = [name.rsplit(".", 1)[-1] for name in MODULES if name.count(".") == 2]
    names = [*files, *(cls.__name__ for cls in classes())]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_annotations_are_evaluated() -> None:
    offenders = [
        name for name, module in MODULES.items() if "__future__" in _imported(module)
    ]
    assert offenders == []


def test_public_classes_document_what_they_take() -> None:
    """A class says what it is, and the `__init__` of a batcher what it takes."""
    offenders: list[str] = []
    for name in dir(batchkit):
        cls = getattr(batchkit, name)
        if not name[0].isupper():
            continue
        if not (inspect.getdoc(cls) or "").split("\n")[0].endswith("."):
            offenders.append(f"{name} has no sentence that says what it is")
        if inspect.isabstract(cls) or not issubclass(cls, batchkit.AbstractBatcher):
            continue
        if "**Arguments:**" not in (cls.__init__.__doc__ or ""):
            offenders.append(f"{name}.__init__ does not document its arguments")
    assert offenders == []


def imports(module: ModuleType) -> set[str]:
    """The modules of batchkit that a module imports, wherever it does so."""
    return _imported(module) & MODULES.keys()


def _imported(module: ModuleType) -> set[str]:
    """The absolute name of everything that a module imports, wherever it does so."""
    package = module.__package__ or ""
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(parents) if node.level > 0 else ""
            base = ".".join(part for part in (prefix, node.module or "") if part)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
