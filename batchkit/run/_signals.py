"""Ctrl-C and SIGTERM as a request, which the run grants when it has saved itself."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final, final


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

# One request may arrive as several signals: a terminal and the launcher around a
# program both pass a Ctrl-C on, and `timeout` ends a process and then its group. Nobody
# asks twice within so many seconds.
_TOGETHER: Final = 0.1


@final
class Interruptible:
    """While entered, the first SIGINT or SIGTERM is noted, and the second acts at once.

    A signal that the process ignores, or that code outside of Python handles, stays as
    it is. Outside of the main thread nothing changes: only there can Python handle
    signals.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested = signal.Signals(number)
            self._at = now
        elif now - self._at > _TOGETHER:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._before:
            number, before = self._before.popitem()
            # What was set since then is not ours to take away.
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)
