"""Generic functions: `functools.singledispatch` keeps one function for each type."""

import functools
from collections.abc import Callable
from typing import Any


def is_generic(function: Any) -> bool:
    """Whether `functools.singledispatch` made it."""
    return function.__code__ is _CODE


def copied_generic(function: Any, copy: Callable[[Any], Any]) -> Any:
    """A generic function of its own over copies, with a cache of its own."""
    registry = dict(function.registry)
    new = functools.singledispatch(copy(registry[object]))
    for cls, implementation in registry.items():
        new.register(cls, copy(implementation))
    return new


# All functions that `functools.singledispatch` makes have the same code.
_ANY: Any = functools.singledispatch(lambda x: x)
_CODE = _ANY.__code__
