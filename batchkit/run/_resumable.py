"""The one loop on the host, with progress, for every kind of run that resumes.

A run computes in blocks on the devices. Between two of them the host shows progress,
saves a checkpoint when one is due, answers Ctrl-C and SIGTERM, and lets all processes
agree on what they do next. A kind of run defines its blocks, its checkpoint and its end
(`AbstractResumable`); `complete` does the rest.

A block takes about half a second, so that progress is shown and signals are answered,
unless the kind of run sets the length of its blocks.
"""

import abc
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from tqdm.auto import tqdm

from .._util._formats import format_bytes
from .._util._multihost import is_first_process
from ..explain._explain import memory_of
from ._file import understood
from ._processes import log
from ._saving import Saver
from ._store import Saved


# Seconds between two lines in the log.
LOG_EVERY: Final = 30.0
# Seconds between two updates of a bar during a wait.
_TICK: Final = 1.0
# `tqdm` would show a rate and a remaining time that include compiling and the warm-up;
# the records of runs have better ones. Without a total there is no bar to fill.
_BAR: Final = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:,}/{total:,}{unit} [{elapsed}{postfix}]"
)
_COUNT: Final = "{desc}: {n:,}{unit} [{elapsed}{postfix}]"
# As long as Ctrl-C may wait, and much longer than the host needs between two blocks.
_BLOCK_SECONDS: Final = 0.5


@final
class Reporter:
    """Shows the progress of a run, in the first process.

    In a terminal and in a notebook this is a bar; elsewhere a line in the log of
    `batchkit` now and then. If the terminal is closed the bar ends, and the run does
    not.
    """

    def __init__(
        self, progress: bool | Callable[[Any], object], title: str, unit: str
    ) -> None:
        """Show progress of a run with a title, in units such as `" steps"`."""
        self.shows = bool(progress) and is_first_process()
        self._function = progress if callable(progress) and self.shows else None
        self._title = title
        self._unit = unit
        self._bar: Any = None
        # `waiting` refreshes the bar from a thread of its own.
        self._lock = threading.Lock()
        self._logged = time.monotonic()

    def __enter__(self) -> "Reporter":
        if self.shows and self._function is None and _has_screen():
            self._bar = tqdm(
                desc=self._title,
                unit=self._unit,
                bar_format=_COUNT,
                dynamic_ncols=True,
                file=_Screen(sys.stderr),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, record: Any, done: int, total: int | None = None) -> None:
        """Show how much is done, and of how many units in all, if that is known."""
        if self._function is not None:
            self._function(record)
        elif self._bar is not None:
            with self._lock:
                self._bar.total = total
                self._bar.bar_format = _COUNT if total is None else _BAR
                self._bar.set_postfix_str(str(record), refresh=False)
                self._bar.update(done - self._bar.n)
        elif self.shows and time.monotonic() - self._logged >= LOG_EVERY:
            self._logged = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            log.info("%s: %s%s%s; %s", self._title, f"{done:,}", of, self._unit, record)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show the reason and the duration of a wait while the body runs."""
        if not self.shows or self._function is not None:
            yield
            return
        stop = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(what, stop), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()

    def compile(self, caller: str, compile: Callable[[], Any], what: str) -> None:
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
            caller,
            what,
            time.perf_counter() - start,
            needed,
        )

    def _tick(self, what: str, stop: threading.Event) -> None:
        start = time.monotonic()
        while True:
            seconds = time.monotonic() - start
            if self._bar is not None:
                with self._lock:
                    self._bar.bar_format = _COUNT if self._bar.total is None else _BAR
                    self._bar.set_postfix_str(f"{what}, {seconds:.0f} s")
            elif seconds >= LOG_EVERY:
                log.info("%s: %s, %.0f s", self._title, what, seconds)
            if stop.wait(_TICK if self._bar is not None else LOG_EVERY):
                return


def format_duration(seconds: int | float) -> str:
    """Format seconds as hours, minutes and seconds: 1:02:03."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@final
class _Screen:
    """A stream of text to which nothing is written after the first error.

    If it raised, `tqdm` would keep its lock, and the next bar would wait for ever.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._works = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[[], object]) -> None:
        if self._works:
            try:
                call()
            except (OSError, ValueError):  # A broken pipe, a stream that is closed.
                self._works = False


def _has_screen() -> bool:
    """Return True if a user sees stderr: in a terminal, or a notebook."""
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


class AbstractResumable(abc.ABC):
    """A run in blocks, whose state is on the devices."""

    caller: str  # the function that the user called

    @abc.abstractmethod
    def begin(self, reporter: Reporter) -> None:
        """Make the first state, and raise if a run cannot start there."""

    @abc.abstractmethod
    def resume(self, saved: Saved) -> str:
        """Restore the state of a checkpoint, and describe how much of the run it is."""

    @abc.abstractmethod
    def has_ended(self, seconds: float) -> bool:
        """Return True if nothing is left to compute after so many seconds."""

    @abc.abstractmethod
    def advance(self, limit: int, seconds: float, reporter: Reporter) -> int:
        """Compute one block of at most `limit` steps, and return their number."""

    @abc.abstractmethod
    def next_limit(self, made: int | None, per_block: int) -> int:
        """Return the most steps of the next block.

        The last one had `made` steps, None before the first; `per_block` steps, 1
        before the first, take half a second.
        """

    @abc.abstractmethod
    def progress(self) -> tuple[Any, int, int | None]:
        """Return a record to show, the units done, and the units in all if known."""

    @abc.abstractmethod
    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is saved: a header for JSON, and arrays by name."""

    @property
    @abc.abstractmethod
    def _seconds(self) -> tuple[float, ...]:
        """The times of the run so far: to compile, and for all else."""

    @property
    def seconds(self) -> float:
        """The time of the run so far, without compiling."""
        return sum(self._seconds[1:])

    @property
    def must_save(self) -> bool:
        """True if the run is saved after this block, due or not."""
        return False


def complete(
    run: AbstractResumable, saved: Saved | None, saver: Saver, reporter: Reporter
) -> tuple[bool, float]:
    """Compute the rest of a run, from its checkpoint `saved` if there is one.

    Return whether a block was computed, so that the end of the run is not saved yet,
    and the time of the run, the same in all processes.
    """

    def agreed(limit: int, is_shown: bool) -> tuple[int, float, bool]:
        """Show progress, and return the numbers with which all processes continue."""
        seconds = run.seconds
        show = (lambda: reporter.show(*run.progress())) if is_shown else None
        numbers = saver.look(limit, seconds, run.has_ended(seconds), show=show)
        return int(numbers[0]), numbers[1], bool(numbers[2])

    def save() -> None:
        if saver.is_on:
            saver.save(*run.checkpoint())

    if saved is None:
        saver.begin()
        run.begin(reporter)
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
        return False, seconds
    saver.begin()
    if saver.interrupted:
        saver.leave()
    while not ended:
        before = run.seconds
        made = run.advance(limit, seconds, reporter)
        # Without compiling, which the first block may do.
        elapsed = run.seconds - before
        per_block = int(made * _BLOCK_SECONDS / max(elapsed, 1e-6))
        limit, seconds, ended = agreed(run.next_limit(made, per_block), True)
        if saver.interrupted:
            save()
            saver.leave()
        elif saver.is_due or run.must_save:
            save()
    return True, seconds
