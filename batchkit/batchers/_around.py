"""What a batcher may want to know of the program around the current trace.

A task may itself map: the lanes of what is inside are then as many times there as there
are lanes around. Batchers that look at memory want to know into how many parts that of
a device is divided.

A program may keep all that it works on whole on every device, as a sampler does that
sorts its points. If a batcher that spreads tasks over devices knows, it keeps what is
around it whole. If not, XLA spreads that over the devices as well, and they talk to
each other at every sum.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


_PARTS: ContextVar[int] = ContextVar("parts", default=1)
_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


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


def is_whole_around() -> bool:
    """Whether every device has all of what is around the tasks."""
    return _WHOLE.get()


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """In the body, every device has all of what is around the tasks."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)
