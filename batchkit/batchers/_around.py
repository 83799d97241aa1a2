"""Into how many parts the memory of a device is divided around the current trace.

A task may itself map: the lanes of what is inside are then as many times there as there
are lanes around. Batchers that look at memory want to know; nobody else reads it.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


_PARTS: ContextVar[int] = ContextVar("parts", default=1)


def parts_around() -> int:
    """How many lanes, those of all sites around multiplied, share a device's memory."""
    return _PARTS.get()


@contextlib.contextmanager
def divided(parts: int) -> Iterator[None]:
    """In the body, memory is divided among so many more."""
    token = _PARTS.set(_PARTS.get() * max(1, parts))
    try:
        yield
    finally:
        _PARTS.reset(token)
