"""Marking the user's functions for batchers that look for marks.

Which of them is costly is seen later, when a task is traced; a mark changes nothing
elsewhere. Functions are only wrapped if the policy may ask for a batcher that looks.
"""

import inspect
import weakref
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, final

from ..batchers import AbstractBatcher
from ..batchers._marks import SUPPOSED, looks_for_marks, mark
from ._inside import children
from ._policies import AbstractPolicy, ByPhase, BySite


@final
class Marker:
    """Marks functions, each of them once, by the name of the argument that it is."""

    def __init__(self, policy: AbstractBatcher | AbstractPolicy) -> None:
        self._marks = _may_look_for_marks(policy)
        # By the identity of a function, which its mark keeps alive.
        self._marked: weakref.WeakValueDictionary[int, Any] = (
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
        """A function of the user, marked."""
        if not self._marks or any(x is function for x in self._marked.values()):
            return function
        marked = self._marked.get(id(function))
        if marked is None:
            marked = self._marked[id(function)] = mark(function, SUPPOSED, name)
        return marked


def _names_of_positional(function: FunctionType, count: int) -> Iterable[str]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    parameters = inspect.signature(function).parameters.values()
    names = [x.name for x in parameters if x.kind in kinds]
    return [*names, *(f"argument {i}" for i in range(len(names), count))][:count]


def _may_look_for_marks(policy: object) -> bool:
    if isinstance(policy, AbstractBatcher):
        return looks_for_marks(policy)
    if isinstance(policy, ByPhase | BySite):
        inside = children(policy, lambda x: isinstance(x, AbstractPolicy))
        parts = [
            x for each in inside for x in (each if isinstance(each, tuple) else [each])
        ]
        return any(map(_may_look_for_marks, parts))
    return isinstance(policy, AbstractPolicy)  # which may choose whatever it likes
