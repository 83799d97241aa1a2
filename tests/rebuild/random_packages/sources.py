"""Packages that exist as text only, to be imported for as long as a test needs them."""

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, final


MODULES = ("toy", "toy.near", "toy.far")

# Stands at the top of every module of a program.
HEADER = """\
import collections, contextlib, dataclasses, functools, types, typing
import jax, jax as j, numpy as np
from jax import vmap as batch
import theirs
"""

# What users write: a module of their own, which is not rebuilt.
THEIRS = """\
import functools
import jax
from jax import vmap

def give(f): return f
def wrapped(f):
    @functools.wraps(f)
    def inner(*args): return f(*args)
    return inner
def bare(f):
    def inner(*args): return f(*args)
    return inner

class Holder:
    def __init__(self, f): self.f = f

half_way = give  # called with `f0` as soon as it is defined
def defined(f): half_way(f)

def add(x): return jax.vmap(lambda r: r + 1)(x)
def add_by(batch, x): return batch(lambda r: r + 1)(x)
def add_by_default(x, batch=vmap): return add_by(batch, x)
def add_by_keyword_default(x, *, batch=vmap): return add_by(batch, x)
@wrapped
def add_wrapped(x): return add(x)
add_in_closure = (lambda batch: lambda x: add_by(batch, x))(jax.vmap)
class Adder:
    def __call__(self, x): return add(x)
    def go(self, x): return add(x)
    @staticmethod
    def to(x): return add(x)
"""

# Users' functions, as expressions in that module; each adds one to every row.
ADDERS = {
    "function": "add",
    "default": "add_by_default",
    "keyword default": "add_by_keyword_default",
    "closure": "add_in_closure",
    "wrapper": "add_wrapped",
    "plain wrapper": "bare(add)",
    "partial": "functools.partial(add)",
    "partial with vmap": "functools.partial(add_by, jax.vmap)",
    "partial with a keyword": "functools.partial(add_by_default, batch=vmap)",
    "mapped": "jax.vmap(lambda r: r + 1)",
    "partial of a mapped function": "functools.partial(jax.vmap(lambda r: r + 1))",
    "jitted": "jax.jit(add)",
    "instance": "Adder()",
    "bound method": "Adder().go",
    "static method": "Adder.to",
}


@final
@dataclass(frozen=True)
class Sources:
    """The modules of a package as text, and theirs."""

    texts: Mapping[str, str]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        del cycle
        printer.text("\n".join(f"# {n}\n{text}" for n, text in self.texts.items()))

    @contextlib.contextmanager
    def imported(
        self, half_way: Callable[[Any], None] | None = None
    ) -> Iterator[dict[str, ModuleType]]:
        """The modules by their names; `half_way` is given `f0` once it is defined."""
        texts = {"theirs": THEIRS, **self.texts}
        finder = _Finder(texts)
        sys.meta_path.insert(0, finder)
        try:
            theirs = importlib.import_module("theirs")
            vars(theirs).update(half_way=half_way or theirs.give)
            yield {name: importlib.import_module(name) for name in texts}
        finally:
            sys.meta_path.remove(finder)
            for name in texts:
                sys.modules.pop(name, None)


@final
class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from their texts."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._texts:
            return None
        is_package = self.is_package(fullname)
        return importlib.util.spec_from_loader(fullname, self, is_package=is_package)

    def is_package(self, fullname: str) -> bool:
        return any(name.startswith(f"{fullname}.") for name in self._texts)

    def get_source(self, fullname: str) -> str:
        return self._texts[fullname]
