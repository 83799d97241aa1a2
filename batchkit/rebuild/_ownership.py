"""Whose object is it? Only functions of the named packages are rebuilt."""

from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, final


@final
@dataclass(frozen=True)
class Packages:
    """The packages whose functions are rebuilt; everybody else's stay as they are."""

    names: tuple[str, ...]

    def hold(self, module_name: Any) -> bool:
        """Whether a module of this name lies in one of the packages."""
        if not isinstance(module_name, str):
            return False
        return any(
            module_name == name or module_name.startswith(f"{name}.")
            for name in self.names
        )

    def wrote(self, function: FunctionType) -> bool:
        """Whether the code of the function stands in one of the packages.

        Its globals tell; `__module__` does not, because `functools.wraps` copies it.
        """
        return self.hold(function.__globals__.get("__name__"))

    def wrapped(self, function: FunctionType) -> bool:
        """Whether it is somebody else's wrapper of a function of the packages."""
        return self.hold(function.__module__) and not self.wrote(function)

    def own_instance(self, value: object) -> bool:
        """Whether the class of `value` stands in one of the packages."""
        return self.hold(type(value).__module__)

    def own_class(self, value: object) -> bool:
        """Whether `value` is a class that stands in one of the packages."""
        return isinstance(value, type) and self.hold(value.__module__)

    def own_module(self, value: object) -> bool:
        """Whether `value` is a module of one of the packages."""
        return isinstance(value, ModuleType) and self.hold(value.__name__)


def packages_from(caller: str, packages: object) -> Packages:
    """What `packages=` names, or an error on behalf of the function `caller`."""
    if not isinstance(packages, list | tuple) or not all(
        isinstance(name, str) for name in packages
    ):
        raise TypeError(
            f"{caller}(packages={packages!r}): packages must be a tuple of "
            'names such as ("blackjax",).'
        )
    return Packages(tuple(packages))
