"""Telling whoever watches a trace what it reached, and how batchers cut their tasks.

Nothing here changes what is computed. Without a watcher, one lookup of a context
variable is all that a batcher spends on it.
"""

import contextlib
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, final

import jax
from jaxtyping import PyTree


@final
@dataclass(frozen=True)
class Cut:
    """How one batcher cut its tasks: rounds x devices x lanes, the last ones filled up.

    Rounds run one after the other, in each of them `lanes` tasks at once on every
    device.
    """

    tasks: int
    rounds: int
    devices: int
    lanes: int
    loop: str = "chunk"  # what one of several rounds is called

    @property
    def repeated(self) -> int:
        """How many tasks run once more only to fill up the last round."""
        return self.rounds * self.devices * self.lanes - self.tasks


@final
@dataclass
class Reached:
    """One place that a trace reached where tasks are mapped."""

    place: Any
    batcher: Any = None
    tasks: int = 0
    bytes_in: int = 0  # of the mapped arguments of one task
    bytes_out: int = 0  # of its results
    note: str = ""
    known: Mapping[CodeType, str] = field(default_factory=dict)  # the user's functions
    cuts: list[Cut] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)  # of those known, the called
    # Of `Reached`; a type that names itself is more than old type checkers can read.
    inside: list[Any] = field(default_factory=list)


# What may stand between a batcher and whoever calls it.
_IN_BETWEEN = ("batchkit", "jax", "equinox", "functools", "jaxtyping", "beartype")

_INNERMOST: ContextVar[Reached | None] = ContextVar("innermost", default=None)


def innermost() -> Reached | None:
    """Where the watched trace is now; None if nobody watches."""
    return _INNERMOST.get()


def enter(reached: Reached) -> Token[Reached | None]:
    """From here on, everything that is reached lies inside `reached`."""
    outer = _INNERMOST.get()
    if outer is not None:
        outer.inside.append(reached)
    return _INNERMOST.set(reached)


def start(root: Reached) -> Token[Reached | None]:
    """The same, but `root` is nobody's part: a watch of its own begins."""
    return _INNERMOST.set(root)


def leave(token: Token[Reached | None]) -> None:
    """Takes back what `enter` did."""
    _INNERMOST.reset(token)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """What is traced in the body only to try something out is nobody's business."""
    with unseen():
        token = _INNERMOST.set(None)
        try:
            yield
        finally:
            _INNERMOST.reset(token)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """The watcher need not be told of every call in the body, which takes long."""
    observer = sys.getprofile() if innermost() is not None else None
    if not callable(observer):
        yield
        return
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(observer)


@contextlib.contextmanager
def reaching(reached: Reached) -> Iterator[Reached]:
    """Everything that is reached in the body lies inside `reached`."""
    token = enter(reached)
    try:
        yield reached
    finally:
        leave(token)


def note_cut(tasks: int, rounds: int, devices: int, lanes: int, loop: str) -> None:
    """Called by a batcher once it has decided how to cut the tasks of a call."""
    reached = _INNERMOST.get()
    if reached is not None:
        cut = Cut(tasks, rounds, devices, lanes, loop)
        if cut not in reached.cuts:  # a loop's body may be traced twice
            reached.cuts.append(cut)


def note(text: str) -> None:
    """Called by a batcher that has something to say about the call it runs."""
    reached = _INNERMOST.get()
    if reached is not None and text not in reached.note.split("; "):
        reached.note = "; ".join(filter(None, (reached.note, text)))


def bytes_per_task(leaves: PyTree, axes: list[int | None], tasks: int) -> int:
    """The bytes that one task has of leaves with these mapped axes."""
    total = 0
    for leaf, axis in zip(jax.tree.leaves(leaves), axes, strict=True):
        if axis is not None and tasks > 0 and leaf.dtype != jax.dtypes.float0:
            total += math.prod(leaf.shape) // tasks * leaf.dtype.itemsize
    return total


def caller_outside() -> tuple[CodeType, dict[str, Any], int]:
    """Code, globals and line of the nearest caller that is neither ours nor JAX's."""
    frame = inspect.currentframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__")).split(".")[0]
        if name not in _IN_BETWEEN:
            return frame.f_code, frame.f_globals, frame.f_lineno
        frame = frame.f_back
    raise AssertionError("somebody must have called")
