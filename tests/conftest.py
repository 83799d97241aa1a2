"""Settings of all tests; small packages that spell a vmap in every possible way."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings


# The same examples everywhere, and a busy machine is no reason to fail.
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")


@pytest.fixture
def make_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ModuleType]]:
    """Writes a package `toy` from `name=source` pairs and imports it."""

    def make(**sources: str) -> ModuleType:
        package = tmp_path / "toy"
        package.mkdir()
        (package / "__init__.py").write_text(textwrap.dedent(sources.pop("init", "")))
        for name, source in sources.items():
            (package / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        module = importlib.import_module("toy")
        for name in sources:
            importlib.import_module(f"toy.{name}")
        return module

    yield make
    for name in [x for x in sys.modules if x.split(".")[0] == "toy"]:
        del sys.modules[name]


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """Turns off the type checks that the tests add, to see the package's own."""
    # Checks are added when the package is imported, which pytest must be ready for.
    from .helpers import unchecked

    with unchecked():
        yield
