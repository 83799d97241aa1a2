"""Context of the current trace: the number of outer lanes, and replicated state.

A task may itself map: each outer lane then has its own copy of the inner lanes. A
batcher with a memory budget divides the budget by the number of outer lanes.

A program may keep its state replicated on every device, as a sampler does that sorts
its points. `Sharded` then keeps its arguments and results replicated as well.
Otherwise XLA shards the state over the devices, and they communicate in every sum.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


_OUTER_LANES: ContextVar[int] = ContextVar("outer_lanes", default=1)
_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


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


def is_whole_around() -> bool:
    """Return True if the program around the tasks keeps its state replicated."""
    return _WHOLE.get()


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Declare in the body that the state around the tasks is replicated."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)
