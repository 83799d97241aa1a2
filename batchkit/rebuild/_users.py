"""The functions that a user hands to a sampler, by their code."""

import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from ._inside import children


def users_functions(
    value: Any, is_package_code: Callable[[Any], bool]
) -> Iterator[tuple[CodeType, str]]:
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
        if function is not None and not is_package_code(function):
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
        elif getattr(value, "__wrapped__", None) is not None:
            value = value.__wrapped__
        elif isinstance(value, FunctionType) or value is None:
            return value
        else:
            value = vars(type(value)).get("__call__")
    return None
