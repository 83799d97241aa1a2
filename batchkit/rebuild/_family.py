"""All that is rebuilt for one call of `rebuild_sampler`: a copier for each phase.

Copies for `init` and copies for `step` live in two namespaces, so a policy that tells
them apart needs no hidden context. What users get is exposed: every function in it is
an entry point, which copies the functions of the packages that are handed to it.
"""

import functools
import weakref
from collections.abc import Callable, MutableMapping
from types import CodeType, FunctionType, ModuleType
from typing import Any, final

from ..batchers import AbstractBatcher
from ._copier import Copier, Found
from ._inside import holds, with_changed
from ._mapper import Mapper
from ._marks import BEHIND_ENTRY, ENTRY, REBUILT, mark, marked
from ._modules import ModuleStandIn, original_module
from ._ownership import Packages
from ._phases import phase_of
from ._policies import AbstractPolicy
from ._users import users_functions


@final
class Family:
    """Copiers that share a policy, and what leaves them for the user."""

    def __init__(
        self, policy: AbstractBatcher | AbstractPolicy, packages: Packages
    ) -> None:
        self._policy = policy
        self._packages = packages
        self._copiers: dict[str | None, Copier] = {}
        self._users: MutableMapping[CodeType, str] = weakref.WeakKeyDictionary()

    def copier(self, phase: str | None = None) -> Copier:
        """The copier of a phase. One serves all if the policy is a batcher."""
        if isinstance(self._policy, AbstractBatcher):
            phase = None
        if phase not in self._copiers:
            mapper = Mapper(self._policy, phase, self._users)
            self._copiers[phase] = Copier(mapper, self._packages)
        return self._copiers[phase]

    def exposed(self, value: Any, phase: str | None = None) -> Any:
        """`value` as users get it: each function an entry point of its phase."""
        if isinstance(value, ModuleStandIn):
            return self._module(value, phase)
        if self._made(value):
            return self._entry_point(self.copier(phase).copy(value), phase)
        if not holds(value, self._is_inner, self._packages.own_instance):
            return value

        def expose(item: Any, name: str | None) -> Any:
            return self.exposed(item, phase_of(name, phase))

        return with_changed(value, expose, lambda *_: None)

    def _is_inner(self, value: Any) -> bool:
        return self._made(value) or isinstance(value, ModuleStandIn)

    def _made(self, value: Any) -> bool:
        return any(copier.made(value) for copier in self._copiers.values())

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
            self._users.update(users_functions((args, kwargs), self._is_package_code))
            copier.resolve_late_names()
            args, kwargs = copier.copy((args, kwargs), Found.IN_ARGUMENT)
            return self.exposed(function(*args, **kwargs), phase)

        mark(entry, BEHIND_ENTRY, function)
        mark(function, ENTRY, entry)
        return entry

    def _is_package_code(self, function: FunctionType) -> bool:
        return REBUILT in function.__globals__ or self._packages.wrote(function)

    def _module(self, module: ModuleStandIn, phase: str | None) -> ModuleType:
        def look_up(name: str) -> Any:
            return self.exposed(getattr(module, name), phase_of(name, phase))

        return ModuleStandIn(original_module(module), look_up, {})
