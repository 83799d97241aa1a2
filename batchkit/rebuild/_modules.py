"""A module as seen from rebuilt code.

Modules import each other in cycles, so a stand-in may be needed before its module is
complete. It therefore holds nothing of its own: it looks every name up when asked, and
what is assigned to it goes where the copied functions of the module see it.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, final


@final
class ModuleStandIn(ModuleType):
    """Looks like `original`, with names read by `look_up` and written to `names`."""

    def __init__(
        self,
        original: ModuleType,
        look_up: Callable[[str], Any],
        names: dict[str, Any],
    ) -> None:
        super().__init__(original.__name__, original.__doc__)
        vars(self).update(_original=original, _look_up=look_up, _names=names)
        for name in ("__package__", "__spec__", "__loader__"):
            vars(self)[name] = getattr(original, name, None)

    def __getattr__(self, name: str) -> Any:
        names = vars(self)["_names"]
        return names[name] if name in names else vars(self)["_look_up"](name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self).pop(name, None)  # a name that is remembered here
        vars(self)["_names"][name] = value

    def __dir__(self) -> list[str]:
        return dir(vars(self)["_original"])


def original_module(module: ModuleStandIn) -> ModuleType:
    """The module that a stand-in stands for."""
    return vars(module)["_original"]
