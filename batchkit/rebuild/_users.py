"""The functions that a user hands to a sampler: found, named, and marked.

Batchers such as `Continuous` look for marked functions in a task, and decide when they
trace it which of them is expensive. A mark changes nothing elsewhere, and is only made
if the policy may choose such a batcher.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, Final, final

from ..batchers import AbstractBatcher
from ..batchers._marks import CANDIDATE, mark
from ._policies import AbstractPolicy, may_want
from ._walk import Packages, attribute, parts, walk


# Functions that a package imports for itself, not the user's.
_NOBODYS: Final = Packages(("batchkit", "builtins", "functools", "jax", "numpy"))


@final
class Marker:
    """Names the user's functions, and marks each once for every argument that it is."""

    def __init__(
        self, policy: AbstractBatcher | AbstractPolicy, packages: Packages
    ) -> None:
        self.names: MutableMapping[CodeType, str] = weakref.WeakKeyDictionary()
        self._marks = may_want(policy, "uses_expensive_marks")
        self._packages = packages
        # By the identity of a function, which its mark keeps alive.
        self._marked: weakref.WeakValueDictionary[tuple[int, str], Any] = (
            weakref.WeakValueDictionary()
        )

    def note(self, value: Any) -> None:
        """Record the names of the user's functions in a value, for `explain`."""
        for function in self._functions_in(value):
            code = function.__code__
            where = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
            name = f"{function.__qualname__} ({where}:{code.co_firstlineno})"
            self.names[code] = name

    def arguments(
        self,
        function: FunctionType,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        is_users: Callable[[Any], bool],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with the user's functions marked."""
        if not self._marks:
            return args, dict(kwargs)
        # Of a decorated function, those of the function inside.
        parameters = inspect.signature(function).parameters.values()
        names = [x.name for x in parameters if x.kind <= x.POSITIONAL_OR_KEYWORD]
        names += [f"argument {i}" for i in range(len(names), len(args))]

        def marked(value: Any, name: str) -> Any:
            return self._mark(value, name) if is_users(value) else value

        positional = tuple(map(marked, args, names))
        return positional, {name: marked(x, name) for name, x in kwargs.items()}

    def bound(self, value: Any, name: str) -> Any:
        """Return what an algorithm was built with, marked if it is a user's function.

        Functions that a package imports for itself are bound there too, and not marked.
        """
        if not self._marks or not callable(value):
            return value
        return self._mark(value, name) if any(self._functions_in(value)) else value

    def _functions_in(self, value: Any) -> Iterator[FunctionType]:
        """Yield each function in `value` that belongs to no package."""
        for item in walk([value], lambda x: parts(x, self._packages.opens)):
            if callable(item) and not isinstance(item, type) and not parts(item):
                function = _innermost(item)
                if function is None or self._packages.own(function):
                    continue
                if not _NOBODYS.hold(function.__module__):
                    yield function

    def _mark(self, function: Any, name: str) -> Any:
        # A callable object may be something else: a mesh, or a network of which the
        # parameters are sampled. Then blackjax's name for the argument decides.
        kinds = FunctionType | BuiltinFunctionType | MethodType | functools.partial
        wraps = attribute(function, "__wrapped__") is not None
        if not (isinstance(function, kinds) or wraps or name.endswith("_fn")):
            return function
        if any(x is function for x in self._marked.values()):
            return function
        marked = self._marked.get((id(function), name))
        if marked is None:
            marked = mark(function, CANDIDATE, name)
            self._marked[id(function), name] = marked
        return marked


def _innermost(value: Any) -> FunctionType | None:
    """Return the Python function behind decorators and objects that are called."""
    for _ in range(100):  # a chain of wrappers could lead back to itself
        wrapped = attribute(value, "__wrapped__")
        if isinstance(value, functools.partial):
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
