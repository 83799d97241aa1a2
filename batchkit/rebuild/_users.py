"""The functions that a user hands to a sampler: found, named, and marked.

Batchers such as `Continuous` look for marked functions in a task, and decide when they
trace it which of them is expensive. A mark changes nothing elsewhere, and is only made
if the policy may choose such a batcher.
"""

import inspect
import weakref
from collections.abc import Iterator, MutableMapping
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, Final, final

from ..batchers._marks import CANDIDATE, mark
from ._policies import AnyPolicy, may_want
from ._values import Packages, attribute, holds_vmap, parts, walk


# Functions that a package imports for itself, not the user's.
_NOBODYS: Final = Packages(("batchkit", "builtins", "functools", "jax", "numpy"))


@final
class Marker:
    """Names the user's functions, and marks each once for every argument that it is."""

    def __init__(self, policy: AnyPolicy, packages: Packages) -> None:
        self.names: MutableMapping[CodeType, str] = weakref.WeakKeyDictionary()
        self._marks = may_want(policy, "uses_expensive_marks")
        self._packages = packages
        # By the identity of a function, which its mark keeps alive.
        self._marked: weakref.WeakValueDictionary[tuple[int, str], Any] = (
            weakref.WeakValueDictionary()
        )

    def users(self, value: Any, name: str | None, is_argument: bool) -> Any:
        """Name the functions in a value of the user's, and mark it as one.

        `name` is that of an argument or of the variable of a closure, where a package
        may also have bound functions that it imports for itself.
        """
        functions = [*self._functions_in(value)]
        for function in functions:
            code = function.__code__
            where = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
            described = f"{function.__qualname__} ({where}:{code.co_firstlineno})"
            self.names[code] = described
        may_be_called = callable(value) and not isinstance(value, type)
        if name is None or not may_be_called or not (functions or is_argument):
            return value
        # A callable object may be something else: a mesh, or a network of which the
        # parameters are sampled. Then blackjax's name for the argument decides.
        kinds = FunctionType | BuiltinFunctionType | MethodType | partial
        wraps = attribute(value, "__wrapped__") is not None
        may_be_one = isinstance(value, kinds) or wraps or name.endswith("_fn")
        is_mark = any(x is value for x in self._marked.values())
        if not self._marks or not may_be_one or is_mark or holds_vmap(value):
            return value
        marked = self._marked.get((id(value), name))
        if marked is None:
            marked = mark(value, CANDIDATE, name)
            self._marked[id(value), name] = marked
        return marked

    def _functions_in(self, value: Any) -> Iterator[FunctionType]:
        """Yield each function in `value` that belongs to no package."""
        for item in walk([value], lambda x: parts(x, self._packages.opens)):
            if callable(item) and not isinstance(item, type) and not parts(item):
                function = _innermost(item)
                if function is None or self._packages.own(function):
                    continue
                if not _NOBODYS.hold(function.__module__):
                    yield function


def _innermost(value: Any) -> FunctionType | None:
    """Return the Python function behind decorators and objects that are called."""
    for _ in range(100):  # a chain of wrappers could lead back to itself
        wrapped = attribute(value, "__wrapped__")
        if isinstance(value, partial):
            value = value.func
        elif isinstance(value, MethodType):
            value = value.__func__
        elif wrapped is not None:
            value = wrapped
        elif isinstance(value, FunctionType) or value is None:
            return value
        elif _NOBODYS.hold(type(value).__module__):
            return None
        else:
            value = inspect.getattr_static(type(value), "__call__", None)
    return None
