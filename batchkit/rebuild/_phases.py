"""Which part of an algorithm a function belongs to: the name it goes by tells."""

from typing import Final


PHASES: Final = ("init", "step")

_BY_NAME: Final = {"init": "init", "step": "step", "build_kernel": "step"}


def phase_of(name: str | None, outer: str | None) -> str | None:
    """The phase of what goes by `name`, inside something of the phase `outer`."""
    return _BY_NAME.get(name or "", outer)
