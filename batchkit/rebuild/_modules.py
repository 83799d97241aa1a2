"""A module as seen from rebuilt code.

Modules import each other in cycles, so a stand-in may be needed before its module is
complete. It therefore holds nothing of its own: it looks every name up when asked.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, final


@final
class ModuleStandIn(ModuleType):
    """Looks like `original`, with every attribute passed through `change`."""

    def __init__(self, original: ModuleType, change: Callable[[str], Any]) -> None:
        super().__init__(original.__name__, original.__doc__)
        vars(self).update(_original=original, _change=change)
        for name in ("__package__", "__spec__", "__loader__"):
            vars(self)[name] = getattr(original, name, None)

    def __getattr__(self, name: str) -> Any:
        return vars(self)["_change"](name)

    def __dir__(self) -> list[str]:
        return dir(vars(self)["_original"])


def original_module(module: ModuleStandIn) -> ModuleType:
    """The module that a stand-in stands for."""
    return vars(module)["_original"]
