"""Finding the vmaps that copying cannot reach.

Hidden are the methods of classes, what stands behind `__wrapped__` in an object that is
no Python function, such as a jitted one, and, in a module, the attributes of somebody
else's objects.
"""

import functools
from types import FunctionType, ModuleType
from typing import Any, final

from ..batchers import Site
from ._finder import reachable_sites
from ._inside import children, wrapped_by
from ._ownership import Packages


@final
class HiddenSites:
    """Finds hidden vmaps, and remembers those of classes."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._of_class: dict[type, tuple[Site, ...]] = {}

    def of(self, value: Any, in_module: bool) -> tuple[Site, ...]:
        """The vmaps that `value` can reach and that cannot be exchanged.

        **Arguments:**

        - `value`: anything; what is inside a container is asked for by itself.
        - `in_module`: whether it was found at the top level of a module.
        """
        if isinstance(value, type):
            return self._in_class(value)
        if isinstance(value, FunctionType | ModuleType) or is_cache(value):
            return ()
        hidden: list[Any] = []
        own = self._packages.own_instance(value)
        if own:
            in_class = self._in_class(type(value))
            if in_class:
                return in_class
        elif in_module and not any(children(value, lambda _: False)):
            hidden.extend(getattr(value, "__dict__", {}).values())
        if callable(value):
            hidden.append(wrapped_by(value))
        return tuple(
            site for item in hidden for site in reachable_sites(item, self._packages)
        )

    def _in_class(self, cls: type) -> tuple[Site, ...]:
        if not self._packages.own_class(cls):
            return ()
        if cls not in self._of_class:
            self._of_class[cls] = tuple(reachable_sites(cls, self._packages))
        return self._of_class[cls]


def is_cache(value: Any) -> bool:
    """Whether it is a `functools.lru_cache`."""
    return isinstance(value, _CACHE)


_CACHE = type(functools.lru_cache(lambda: None))


def holder_of(value: Any) -> str:
    """What holds a hidden vmap, in the words of an error message."""
    cls = value if isinstance(value, type) else type(value)
    wrapped = wrapped_by(value)
    if wrapped is not None and not isinstance(value, type):
        name = getattr(wrapped, "__qualname__", repr(wrapped))
        return f"The {cls.__name__} of {name}"
    return f"The class {cls.__module__}.{cls.__qualname__}"
