"""Progress of a run: a bar, lines in the log, or calls of the user's function."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from tqdm.auto import tqdm

from .._util._formats import format_type, format_value
from .._util._multihost import is_first_process
from ._processes import log


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


def check_progress(value: Any, caller: str) -> None:
    if not isinstance(value, bool) and not callable(value):
        raise TypeError(
            f"{caller}(progress={format_value(value)}): progress must be True, False, "
            f"or a function that is called with the state of the run; got "
            f"{format_type(value)}."
        )


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
        """**Arguments:**

        - `progress`: whether to show anything, or a function to call instead.
        - `title`: the name of the run, such as "nested sampling".
        - `unit`: the unit of progress, such as " steps".
        """
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
        """Show how much is done, and of how many units in all, if that is known.

        The user's function gets the record itself; bars and logs have its `str`.
        """
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
