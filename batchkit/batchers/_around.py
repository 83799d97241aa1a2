"""Context of the current trace: the number of outer lanes.

A task may itself map: each outer lane then has its own copy of the inner lanes. A
batcher with a memory budget divides the budget by the number of outer lanes.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


_OUTER_LANES: ContextVar[int] = ContextVar("outer_lanes", default=1)


def num_outer_lanes() -> int:
    """Return the product of the lanes of all enclosing sites on one device."""
    return _OUTER_LANES.get()


@contextlib.contextmanager
def outer_lanes(lanes: int) -> Iterator[None]:
    """Multiply the number of outer lanes in the body."""
    token = _OUTER_LANES.set(_OUTER_LANES.get() * max(1, lanes))
    try:
        yield
    finally:
        _OUTER_LANES.reset(token)
