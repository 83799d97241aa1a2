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
    """Every vmap in the packages' code that running `value` could reach.

    Somebody else's function is opened where it wraps one of the packages' functions;
    everything else that is not the packages' is passed over.
    """
    seen: dict[int, Any] = {}  # with the values, so that no id is used twice
    pending = [(value, False)]
    while pending:
        item, in_wrapper = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, FunctionType):
            own = packages.wrote(item)
            in_wrapper = not own and (in_wrapper or packages.wrapped(item))
            if own or in_wrapper:
                found, reached = _read(item, packages)
                yield from found
                pending.extend((x, in_wrapper) for x in reached)
        elif packages.own_class(item):
            pending.extend((x, False) for x in _class_members(item))
        else:
            pending.extend(
                (x, in_wrapper) for x in children(item, packages.own_instance)
            )
            if packages.own_instance(item):
                pending.append((type(item), False))
            if callable(item) and not isinstance(item, type):
                pending.append((getattr(item, "__wrapped__", None), in_wrapper))


def _read(function: FunctionType, packages: Packages) -> tuple[list[Site], list[Any]]:
    """The sites in one function, and what it refers to."""
    sites: list[Site] = []
    reached: list[Any] = []
    mapped = mapped_function(function)
    if mapped is not None and packages.hold(function.__module__):
        inner = getattr(function, "__wrapped__", function)
        line = getattr(inner, "__code__", function.__code__).co_firstlineno
        sites.append(
            Site(function.__module__, function.__qualname__, line, "@jax.vmap")
        )
    if packages.wrote(function):
        for reference in global_references(function.__code__):
            for depth, found in enumerate(_resolve(function, reference.path), 1):
                if is_vmap(found):
                    sites.append(
                        Site(
                            function.__globals__["__name__"],
                            reference.qualname,
                            reference.line,
                            ".".join(reference.path[:depth]),
                        )
                    )
                elif not isinstance(found, ModuleType):
                    reached.append(found)
    reached.extend(function.__defaults__ or ())
    reached.extend((function.__kwdefaults__ or {}).values())
    reached.extend(contents for _, contents in closure_contents(function))
    reached.append(getattr(function, "__wrapped__", None))
    return sites, reached


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


def _class_members(cls: type) -> Iterator[Any]:
    for member in vars(cls).values():
        if isinstance(member, staticmethod | classmethod):
            yield member.__func__
        elif isinstance(member, property):
            yield from (member.fget, member.fset, member.fdel)
        else:
            yield member
    yield from cls.__mro__[1:]
