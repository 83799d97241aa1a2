"""The functions that a user hands to a sampler, by their code."""

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from ._finder import closure_contents
from ._inside import children, wrapped_by
from ._ownership import Packages


# What a package imports for itself is not the user's.
_NOBODYS = Packages(("batchkit", "builtins", "functools", "jax", "numpy"))


def bound_in(api: Any, packages: Packages) -> list[Any]:
    """What an algorithm that is built already has been given: what it closes over."""
    bound: list[Any] = []
    seen: set[int] = set()
    pending = [api]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        pending.extend(children(item, packages.own_instance))
        if isinstance(item, FunctionType) and (
            packages.wrote(item) or packages.wrapped(item)
        ):
            contents = [x for _, x in closure_contents(item)]
            bound.extend(contents)
            pending.extend(contents)
    return bound


def users_functions(value: Any, packages: Packages) -> Iterator[tuple[CodeType, str]]:
    """The code and the name of each function in `value` that is no package's."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        inside = list(children(item, lambda _: False))
        pending.extend(inside)
        if inside or isinstance(item, type) or not callable(item):
            continue
        function = _innermost(item)
        if function is None or packages.wrote(function):
            continue
        if not _NOBODYS.hold(function.__module__):
            code = function.__code__
            where = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
            yield code, f"{function.__qualname__} ({where}:{code.co_firstlineno})"


def _innermost(value: Any) -> FunctionType | None:
    """The Python function behind decorators, partials and objects that are called."""
    for _ in range(100):  # a chain of wrappers could lead back to itself
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, MethodType):
            value = value.__func__
        elif wrapped_by(value) is not None:
            value = wrapped_by(value)
        elif isinstance(value, FunctionType) or value is None:
            return value
        elif _NOBODYS.hold(type(value).__module__):
            return None
        else:
            value = inspect.getattr_static(type(value), "__call__", None)
    return None
