"""A log of one trace: which mapped sites it reaches, and how batchers split the tasks.

`explain` starts a log; batchers and rebuilt samplers write to it. Nothing here changes
what is computed. Without a log a batcher spends one lookup of a context variable.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal, final


@final
@dataclass(frozen=True)
class Split:
    """How one batcher split its tasks: rounds x devices x lanes, the last ones padded.

    Rounds run one after the other, in each of them `lanes` tasks at once on every
    device.
    """

    tasks: int
    rounds: int
    devices: int
    lanes: int
    kind: Literal["chunk", "task", "lane"] = "chunk"  # of the loop over rounds

    @property
    def repeated(self) -> int:
        """The number of tasks that run a second time, to pad the last round."""
        return self.rounds * self.devices * self.lanes - self.tasks


@final
@dataclass
class LogEntry:
    """One site that a trace reached."""

    site: Any
    batcher: Any = None
    tasks: int = 0
    bytes_in: int = 0  # of the mapped arguments of one task
    bytes_out: int = 0  # of its results
    note: str = ""
    user_functions: Mapping[CodeType, str] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)
    called: list[str] = field(default_factory=list)  # those of `user_functions`
    # Items are `LogEntry`; beartype cannot resolve a class that names itself.
    inside: list[Any] = field(default_factory=list)


_CURRENT: ContextVar[LogEntry | None] = ContextVar("current", default=None)


def current_entry() -> LogEntry | None:
    """Return the entry that the trace is inside of, or None without a log."""
    return _CURRENT.get()


def enter(entry: LogEntry) -> Token[LogEntry | None]:
    """Append an entry to the current one and make it current."""
    outer = _CURRENT.get()
    if outer is not None:
        outer.inside.append(entry)
    return _CURRENT.set(entry)


def start_log(root: LogEntry) -> Token[LogEntry | None]:
    """Start a new log at `root`, detached from any enclosing one."""
    return _CURRENT.set(root)


def leave(token: Token[LogEntry | None]) -> None:
    """Undo `enter` or `start_log`."""
    _CURRENT.reset(token)


@contextlib.contextmanager
def logging_disabled() -> Iterator[None]:
    """Disable the log in the body, for speculative traces."""
    with profiler_paused():
        token = _CURRENT.set(None)
        try:
            yield
        finally:
            leave(token)


@contextlib.contextmanager
def profiler_paused() -> Iterator[None]:
    """Pause the log's profiler in the body, which reaches no site.

    The profiler is called for every Python function, which slows down a long trace.
    """
    profiler = sys.getprofile()
    is_paused = current_entry() is not None and callable(profiler)
    if is_paused:
        sys.setprofile(None)
    try:
        yield
    finally:
        if is_paused:
            sys.setprofile(profiler)


def log_split(
    tasks: int,
    rounds: int,
    devices: int,
    lanes: int,
    kind: Literal["chunk", "task", "lane"],
) -> None:
    """Record how a batcher has split the tasks of a call."""
    entry = _CURRENT.get()
    if entry is not None:
        split = Split(tasks, rounds, devices, lanes, kind)
        if split not in entry.splits:  # the body of a loop may be traced twice
            entry.splits.append(split)


def log_note(text: str) -> None:
    """Record a remark of a batcher about the call that it runs."""
    entry = _CURRENT.get()
    if entry is not None and text not in entry.note.split("; "):
        entry.note = "; ".join(filter(None, (entry.note, text)))
