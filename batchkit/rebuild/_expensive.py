"""Marking the user's functions for batchers that look for marks.

Which of them is costly is seen later, when a task is traced; a mark changes nothing
elsewhere. Functions are only wrapped if the policy may ask for a batcher that looks.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, final

from ..batchers import AbstractBatcher
from ..batchers._marks import SUPPOSED, mark
from ._inside import wrapped_by
from ._policies import AbstractPolicy, may_want


@final
class Marker:
    """Marks functions, each of them once for every argument that it is."""

    def __init__(self, policy: AbstractBatcher | AbstractPolicy) -> None:
        self._marks = may_want(policy, "uses_expensive_marks")
        # By the identity of a function, which its mark keeps alive.
        self._marked: weakref.WeakValueDictionary[tuple[int, str], Any] = (
            weakref.WeakValueDictionary()
        )

    def arguments(
        self,
        function: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_users: Callable[[Any], bool],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with the user's functions among them marked."""
        if not self._marks:
            return args, kwargs
        names = _names_of_positional(function, len(args))
        return (
            tuple(
                self.function(x, name) if is_users(x) else x
                for x, name in zip(args, names, strict=True)
            ),
            {
                name: self.function(x, name) if is_users(x) else x
                for name, x in kwargs.items()
            },
        )

    def function(self, function: Any, name: str) -> Any:
        """A function of the user, marked; anything else as it is."""
        if not self._marks or not _is_function(function, name):
            return function
        if any(x is function for x in self._marked.values()):
            return function
        marked = self._marked.get((id(function), name))
        if marked is None:
            marked = mark(function, SUPPOSED, name)
            self._marked[id(function), name] = marked
        return marked


def _is_function(value: Any, name: str) -> bool:
    """Whether a callable is there to be called.

    An object may be anything else as well, such as a mesh, or a network of which the
    parameters are sampled: blackjax's name for the argument tells.
    """
    kinds = FunctionType | BuiltinFunctionType | MethodType | functools.partial
    is_function = isinstance(value, kinds) or wrapped_by(value) is not None
    return is_function or name.endswith("_fn")


def _names_of_positional(function: FunctionType, count: int) -> Iterable[str]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    parameters = inspect.signature(function).parameters.values()
    names = [x.name for x in parameters if x.kind in kinds]
    return [*names, *(f"argument {i}" for i in range(len(names), count))][:count]
