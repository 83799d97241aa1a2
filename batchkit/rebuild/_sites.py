"""Finding every vmap that a value can reach, without running anything."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, final

from ._code import global_references
from ._inside import children
from ._ownership import Packages
from ._vmaps import has_vmap, is_vmap, mapped_function


@final
@dataclass(frozen=True)
class Site:
    """One place in the source where a vmap is called."""

    module: str
    qualname: str
    line: int
    spelling: str  # as it stands there: "jax.vmap", "vmap", "@jax.vmap"

    def __str__(self) -> str:
        return f"{self.spelling} in {self.module}:{self.qualname}, line {self.line}"


def reachable_sites(value: Any, packages: Packages) -> Iterator[Site]:
    """Every vmap in the packages' code that running `value` could reach."""
    seen: set[int] = set()
    keep: list[Any] = []  # so that no id is used twice
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        keep.append(item)
        if isinstance(item, FunctionType):
            yield from _sites_of_function(item, packages, pending)
        elif packages.own_class(item):
            pending.extend(_class_functions(item))
        else:
            pending.extend(children(item, packages.own_instance))
            if packages.own_instance(item):
                pending.append(type(item))
            if packages.hold(getattr(item, "__module__", None)):
                pending.append(getattr(item, "__wrapped__", None))


def _sites_of_function(
    function: FunctionType, packages: Packages, pending: list[Any]
) -> Iterator[Site]:
    module = function.__module__
    if mapped_function(function) is not None and packages.hold(module):
        code = _innermost(function).__code__
        yield Site(module, function.__qualname__, code.co_firstlineno, "@jax.vmap")
    if not (packages.wrote(function) or packages.wrapped(function)):
        return
    if packages.wrote(function):
        for reference in global_references(function.__code__):
            for depth, found in enumerate(_resolve(function, reference.path), 1):
                if is_vmap(found):
                    spelling = ".".join(reference.path[:depth])
                    yield Site(
                        function.__globals__["__name__"],
                        reference.qualname,
                        reference.line,
                        spelling,
                    )
                elif not isinstance(found, ModuleType):
                    pending.append(found)
    pending.extend(function.__defaults__ or ())
    pending.extend((function.__kwdefaults__ or {}).values())
    pending.extend(contents for _, contents in closure_contents(function))
    pending.append(getattr(function, "__wrapped__", None))


def _resolve(function: FunctionType, path: tuple[str, ...]) -> Iterator[Any]:
    """The values along `a.b.c`, as far as modules lead."""
    found = function.__globals__.get(path[0])
    yield found
    for name in path[1:]:
        if not isinstance(found, ModuleType):
            return
        if has_vmap(found) and name != "vmap":
            return  # jax itself: nothing else in it is of interest
        found = getattr(found, name, None)
        yield found


def closure_contents(function: FunctionType) -> Iterator[tuple[Any, Any]]:
    """The filled cells of a function, each with what it holds."""
    for cell in function.__closure__ or ():
        try:
            contents = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        yield cell, contents


def _class_functions(cls: type) -> Iterator[Any]:
    for member in vars(cls).values():
        if isinstance(member, staticmethod | classmethod):
            yield member.__func__
        elif isinstance(member, property):
            yield from (member.fget, member.fset, member.fdel)
        else:
            yield member
    yield from cls.__mro__[1:]


def _innermost(function: Any) -> FunctionType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
