"""The one loop on the host, for every kind of run that can be stopped and resumed.

A run computes in blocks on the devices. Between two of them the host shows progress,
saves a checkpoint when one is due, answers Ctrl-C and SIGTERM, and lets all processes
agree on what they do next. A kind of run defines its blocks, its checkpoint and its end
(`AbstractResumable`); `complete` does the rest.

A block takes about half a second, so that progress is shown and signals are answered,
unless the kind of run sets the length of its blocks.
"""

import abc
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

from .._util._formats import format_bytes
from ..explain._memory_use import memory_of
from ._file import understood
from ._processes import explaining_loss, log
from ._progress import Reporter
from ._saving import Saver
from ._store import Saved


# As long as Ctrl-C may wait, and much longer than the host needs between two blocks.
_BLOCK_SECONDS: Final = 0.5


class AbstractResumable(abc.ABC):
    """A run in blocks, whose state is on the devices."""

    caller: str  # the function that the user called

    @abc.abstractmethod
    def begin(self, host: "Host") -> None:
        """Make the first state, and raise if a run cannot start there."""

    @abc.abstractmethod
    def resume(self, saved: Saved) -> str:
        """Restore the state of a checkpoint, and describe how much of the run it is."""

    @abc.abstractmethod
    def has_ended(self, seconds: float) -> bool:
        """Return True if nothing is left to compute after so many seconds."""

    @abc.abstractmethod
    def advance(self, limit: int, seconds: float, host: "Host") -> int:
        """Compute one block of at most `limit` steps, and return their number.

        `seconds` is the time of the run so far, the same in all processes; `host`
        compiles.
        """

    @abc.abstractmethod
    def next_limit(self, made: int | None, per_block: int) -> int:
        """Return the most steps of the next block.

        **Arguments:**

        - `made`: the steps of the last block; None before the first.
        - `per_block`: the steps that take half a second; 1 before the first block.
        """

    @abc.abstractmethod
    def progress(self) -> tuple[Any, int, int | None]:
        """Return a record to show, the units done, and the units in all if known."""

    @abc.abstractmethod
    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is saved: a header for JSON, and arrays by name."""

    @property
    @abc.abstractmethod
    def seconds(self) -> float:
        """The time of the run so far, without compiling."""

    @property
    def must_save(self) -> bool:
        """True if the run is saved after this block, due or not."""
        return False


@final
class Host:
    """Compilation and waiting on behalf of a run, shown and logged."""

    def __init__(self, caller: str, reporter: Reporter) -> None:
        self._caller = caller
        self.waiting = reporter.waiting

    def compile(self, compile: Callable[[], Any], what: str) -> None:
        """Compile a program, and log its compile time and its memory."""
        start = time.perf_counter()
        with self.waiting(f"compiling {what}"):
            compiled = compile()
        try:
            needed = format_bytes(memory_of(compiled).total)
        except NotImplementedError:
            needed = "an unknown number of bytes"
        log.info(
            "%s: compiled %s in %.1f s; a device needs %s",
            self._caller,
            what,
            time.perf_counter() - start,
            needed,
        )


@final
class Completed(NamedTuple):
    """The end of a run.

    - `has_advanced`: whether a block was computed, so that its end is not saved yet.
    - `seconds`: the time of the run, the same in all processes.
    """

    has_advanced: bool
    seconds: float


def complete(
    run: AbstractResumable, saved: Saved | None, saver: Saver, reporter: Reporter
) -> Completed:
    """Compute the rest of a run, from its checkpoint `saved` if there is one."""

    def agreed(limit: int, is_shown: bool) -> tuple[int, float, bool]:
        """Show progress, and return the numbers with which all processes continue."""
        seconds = run.seconds
        show = (lambda: reporter.show(*run.progress())) if is_shown else None
        numbers = saver.look(limit, seconds, run.has_ended(seconds), show=show)
        return int(numbers[0]), numbers[1], bool(numbers[2])

    def save() -> None:
        if saver.is_on:
            saver.save(*run.checkpoint())

    with explaining_loss(run.caller, saver.path):
        host = Host(run.caller, reporter)
        if saved is None:
            saver.begin()
            run.begin(host)
            save()
        else:
            with understood(saved.path):
                after = run.resume(saved)
            log.info(
                "%s: resuming %s, saved %s after %s",
                run.caller,
                saved.path,
                saved.header["saved"],
                after,
            )
        # A run that is complete already shows nothing.
        is_shown = not run.has_ended(run.seconds)
        limit, seconds, ended = agreed(run.next_limit(None, 1), is_shown)
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
            per_block = int(made * _BLOCK_SECONDS / max(elapsed, 1e-6))
            limit, seconds, ended = agreed(run.next_limit(made, per_block), True)
            if saver.interrupted:
                save()
                saver.leave()
            elif saver.is_due or run.must_save:
                save()
        return Completed(True, seconds)
