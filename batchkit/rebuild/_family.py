"""All that is rebuilt for one call of `rebuild_sampler`: a copier for each phase.

Copies for `init` and copies for `step` live in two namespaces, so a policy that tells
them apart needs no hidden context. What users get is exposed: every function in it is
an entry point, which copies the functions of the packages that are handed to it.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, MutableMapping
from types import CodeType, FunctionType, ModuleType
from typing import Any, final

from ..batchers import AbstractBatcher
from ._copier import Copier
from ._expensive import Marker
from ._found import Found
from ._inside import children, holds, with_changed
from ._mapper import Mapper
from ._marks import BEHIND_ENTRY, ENTRY, mark, marked
from ._memory import SharedCells
from ._modules import ModuleStandIn, original_module
from ._ownership import Packages
from ._phases import PHASES, phase_of
from ._policies import AbstractPolicy
from ._users import bound_in, users_functions


@final
class Family:
    """Copiers that share a policy, and what leaves them for the user."""

    def __init__(
        self, policy: AbstractBatcher | AbstractPolicy, packages: Packages
    ) -> None:
        self._policy = policy
        self._packages = packages
        self._cells = SharedCells()
        self._copiers: dict[str | None, Copier] = {}
        self._marker = Marker(policy)
        self._users: MutableMapping[CodeType, str] = weakref.WeakKeyDictionary()

    def copier(self, phase: str | None = None) -> Copier:
        """The copier of a phase. One serves all if the policy is a batcher."""
        if isinstance(self._policy, AbstractBatcher):
            phase = None
        if phase not in self._copiers:
            mapper = Mapper(self._policy, phase, self._users)
            self._copiers[phase] = Copier(
                mapper, self._packages, self._cells, self._marker
            )
        return self._copiers[phase]

    def rebuilt(self, api: Any) -> Any:
        """`api` as users get it back."""
        self._users.update(
            users_functions(bound_in(api, self._packages), self._packages)
        )
        return self._exposed_whole(api, None, Found.IN_CLOSURE)

    def _exposed_whole(self, value: Any, phase: str | None, found: Found) -> Any:
        with contextlib.ExitStack() as stack:
            for each in (None, *PHASES):  # locks, always in the same order
                stack.enter_context(self.copier(each).operation())
            stack.enter_context(self._cells.shared())
            return self._exposed(value, phase, found)

    def _exposed(self, value: Any, phase: str | None, found: Found) -> Any:
        """`value` with each function in it an entry point of its phase."""
        copier = self.copier(phase)
        if self._is_whole(value, copier, found):
            new = copier.copy(value, found)
            if isinstance(new, ModuleStandIn):
                return self._module(new, phase)
            if copier.made(new):
                return self._entry_point(new, phase)
            return new
        copier.refuse_hidden(value, found)

        def is_changed(item: Any) -> bool:
            return self._is_whole(item, copier, found)

        if not holds(value, is_changed, self._packages.own_instance):
            return value

        is_partial = isinstance(value, functools.partial)

        def expose(item: Any, name: str | None) -> Any:
            is_given = is_partial and item is not value.func  # by the user
            where = Found.IN_ARGUMENT if is_given else found
            name = None if is_partial else name  # of an argument, which is no phase
            return self._exposed(item, phase_of(name, phase), where)

        return with_changed(value, expose, lambda *_: None)

    def _is_whole(self, value: Any, copier: Copier, found: Found) -> bool:
        """Whether something is exposed as it is, and not for what is inside it."""
        if isinstance(value, ModuleStandIn) or copier.copies(value, found):
            return not any(children(value, self._packages.own_instance))
        return any(each.made(value) for each in self._copiers.values())

    def _entry_point(
        self, function: FunctionType, phase: str | None
    ) -> Callable[..., Any]:
        """The one function through which users call a rebuilt one."""
        known = marked(function, ENTRY)
        if known is not None:
            return known
        copier = self.copier(phase)

        @functools.wraps(function)
        def entry(*args: Any, **kwargs: Any) -> Any:
            self._users.update(users_functions((args, kwargs), self._packages))
            copier.resolve_late_names()
            args, kwargs = copier.copy((args, kwargs), Found.IN_ARGUMENT)
            args, kwargs = self._marker.arguments(
                function, args, kwargs, copier.is_users_function
            )
            out = function(*args, **kwargs)
            return self._exposed_whole(out, phase, Found.IN_ARGUMENT)

        mark(entry, BEHIND_ENTRY, function)
        mark(function, ENTRY, entry)
        return entry

    def _module(self, module: ModuleStandIn, phase: str | None) -> ModuleType:
        def look_up(name: str) -> Any:
            part = getattr(module, name)
            return self._exposed_whole(part, phase_of(name, phase), Found.IN_CLOSURE)

        return ModuleStandIn(original_module(module), look_up, {})
