"""The one loop on the host, for every kind of run that can be stopped and resumed.

A run computes in blocks on the devices. Between two of them the host shows progress,
saves a checkpoint when one is due, answers Ctrl-C and SIGTERM, and lets all processes
agree on what follows. A kind of run says what a block is, what to save and when it has
ended (`AbstractResumable`); `complete` does the rest.

A block takes about half a second, so that progress is shown and signals are answered,
unless the kind of run sets the length of its blocks.
"""

import abc
import logging
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

from .._util._formats import format_bytes
from ..explain._memory_use import memory_of
from ._file import understood
from ._processes import explaining_loss, speaker
from ._progress import Reporter
from ._saving import Saver
from ._store import Saved


_log: Final = logging.getLogger("batchkit")

# As long as Ctrl-C may wait, and much longer than the host needs between two blocks.
_BLOCK_SECONDS: Final = 0.5


class AbstractResumable(abc.ABC):
    """A run in blocks, with a state of its own on the devices."""

    caller: str  # the function that the user called

    @abc.abstractmethod
    def begin(self, host: "Host") -> None:
        """Make the first state, and raise if a run cannot start there."""

    @abc.abstractmethod
    def resume(self, saved: Saved) -> str:
        """Take up a checkpoint, and return in words how far it is."""

    @abc.abstractmethod
    def has_ended(self, seconds: float) -> bool:
        """Return True if there is nothing left to compute after so many seconds."""

    @abc.abstractmethod
    def advance(self, limit: int, seconds: float, host: "Host") -> int:
        """Compute one block.

        **Arguments:**

        - `limit`: the most steps that it may have.
        - `seconds`: how long the run has taken so far, the same in all processes.
        - `host`: for what is compiled.

        **Returns:**

        The number of steps that it had.
        """

    @abc.abstractmethod
    def next_limit(self, made: int | None, in_time: int) -> int:
        """Return the most steps of the next block.

        **Arguments:**

        - `made`: how many the last one had; None before the first.
        - `in_time`: how many are made in half a second; 1 before the first.
        """

    @abc.abstractmethod
    def progress(self) -> tuple[Any, int, int | None]:
        """Return what is shown of the run, the units done, and how many there are."""

    @abc.abstractmethod
    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is saved: a header for JSON, and arrays by name."""

    @property
    @abc.abstractmethod
    def seconds(self) -> float:
        """How long the run has taken so far, without compiling."""

    @property
    def must_save(self) -> bool:
        """True if it is saved after this block, due or not."""
        return False


@final
class Host:
    """Compilation and waiting on behalf of a run, shown and logged."""

    def __init__(self, caller: str, reporter: Reporter) -> None:
        self._caller = caller
        self._reporter = reporter
        self.waiting = reporter.waiting

    def compile(self, compile: Callable[[], Any], what: str) -> None:
        """Compile a program, and log how long it took and what memory it needs."""
        start = time.perf_counter()
        with self._reporter.waiting(f"compiling {what}"):
            compiled = compile()
        try:
            needed = format_bytes(memory_of(compiled).total)
        except NotImplementedError:
            needed = "an unknown number of bytes"
        speaker(_log).info(
            "%s: compiled %s in %.1f s; a device needs %s",
            self._caller,
            what,
            time.perf_counter() - start,
            needed,
        )


@final
class Completed(NamedTuple):
    """How a run came to its end.

    - `has_advanced`: whether a block was computed, so that its end is not saved yet.
    - `seconds`: how long the run has taken in all, the same in all processes.
    """

    has_advanced: bool
    seconds: float


def complete(
    run: AbstractResumable, saved: Saved | None, saver: Saver, reporter: Reporter
) -> Completed:
    """Compute what is missing of a run.

    **Arguments:**

    - `run`: the run.
    - `saved`: its checkpoint, if there is one.
    - `saver`: where it is saved.
    - `reporter`: where progress is shown.
    """
    with explaining_loss(run.caller, saver.path):
        host = Host(run.caller, reporter)
        if saved is None:
            saver.begin()
            run.begin(host)
            _save(run, saver)
        else:
            with understood(saved.path):
                after = run.resume(saved)
            speaker(_log).info(
                "%s: resuming %s, saved %s after %s",
                run.caller,
                saved.path,
                saved.header["saved"],
                after,
            )
        # A run that is complete already shows nothing.
        shown = None if run.has_ended(run.seconds) else reporter
        limit, seconds, ended = _agreed(run, saver, shown, run.next_limit(None, 1))
        if ended:
            return Completed(False, seconds)
        saver.begin()
        if saver.interrupted:
            saver.leave()
        while not ended:
            before = run.seconds
            made = run.advance(limit, seconds, host)
            # Without compiling, which the first block may do.
            elapsed = run.seconds - before
            in_time = int(made * _BLOCK_SECONDS / max(elapsed, 1e-6))
            limit = run.next_limit(made, in_time)
            limit, seconds, ended = _agreed(run, saver, reporter, limit)
            if saver.interrupted:
                _save(run, saver)
                saver.leave()
            elif saver.due() or run.must_save:
                _save(run, saver)
        return Completed(True, seconds)


def _agreed(
    run: AbstractResumable, saver: Saver, reporter: Reporter | None, limit: int
) -> tuple[int, float, bool]:
    """Show progress, and let all processes continue, or end, with the same numbers."""
    seconds = run.seconds
    show = None if reporter is None else lambda: reporter.show(*run.progress())
    agreed = saver.look(limit, seconds, run.has_ended(seconds), show=show)
    return int(agreed[0]), float(agreed[1]), bool(agreed[2])


def _save(run: AbstractResumable, saver: Saver) -> None:
    if saver.is_on:
        saver.save(*run.checkpoint())
