"""Saving a run while it goes on, and resuming it.

A run is identified by its *identity*, a fingerprint of each part that it was started
with: the problem, the key, the positions, the settings. A file is resumed only if all
of them agree. Whatever else the file holds belongs to the kind of run that wrote it.

Of several processes the first one has the file, and the others need not see its folder.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final, final

from .._util._checks import check_flag, check_type
from .._util._multihost import (
    allgather_bytes,
    allgather_numbers,
    is_first_process,
)
from ._arguments import check_key
from ._checkpoint import Checkpoint, CheckpointError
from ._file import decode, understood
from ._packages import Provenance
from ._processes import bytes_of_first_process, log, run_in_first_process
from ._same_run import Compare, Part, SameRun
from ._store import Saved, Store
from ._trees import typed


# A checkpoint that took a second is followed by at least 100 seconds of the run.
_RUN_PER_COST: Final = 100
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

# One request may arrive as several signals: a terminal and the launcher around a
# program both pass a Ctrl-C on, and `timeout` ends a process and then its group. So
# signals within so many seconds are one request.
_TOGETHER: Final = 0.1


def check_run(
    owner: str, rng_key: Any, checkpoint: Any, fresh: object, progress: object
) -> Checkpoint | None:
    """Check arguments of every kind of run, and return where the run is saved."""
    check_flag(owner, "fresh", fresh)
    rule = "True, False, or a function that is called with the state of the run"
    is_right = isinstance(progress, bool) or callable(progress)
    check_type(is_right, owner, "progress", progress, rule)
    check_key(rng_key, owner)
    if isinstance(checkpoint, str | os.PathLike):
        return Checkpoint(checkpoint)
    rule = "a path such as 'run.h5', a Checkpoint, or None"
    is_right = isinstance(checkpoint, Checkpoint | None)
    check_type(is_right, owner, "checkpoint", checkpoint, rule)
    return checkpoint


def seconds_until_next(every: float, cost: float) -> float:
    """Return the time until the next checkpoint; the last one took `cost` seconds."""
    return max(every, _RUN_PER_COST * cost)


@final
class Saver:
    """The checkpoints of one run, and the signals that interrupt it.

    Enter it before anything expensive: it takes the lock. Without a checkpoint it does
    nothing, and signals do what they always do.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        kind: str,
        identity: Mapping[str, Part],
        *,
        compare: Compare | None = None,
        start_of: Callable[[Mapping[str, Any]], int] = lambda header: 0,
        layout: Any = None,
        fresh: bool = False,
    ) -> None:
        """Save a `kind` of run, in words, to a checkpoint, if it is not None.

        `layout`, a value of JSON, says how tasks are laid out, and may change between
        calls. With `fresh` the run starts over if there is a file. For others see
        `SameRun`.
        """
        self._checkpoint = checkpoint
        self._kind = kind
        self._same = SameRun(identity, compare, start_of)
        self._layout = layout
        self._fresh = fresh
        self._store: Store | None = None
        if checkpoint is not None and is_first_process():
            self._store = Store(checkpoint.path, fresh)
        self._signals = Interruptible()
        self._has_left = False
        # The same in all processes since the last `look`.
        self.is_due = False
        self._requested = 0
        self._kept: tuple[Mapping[str, Any], Mapping[str, Any]] = {}, {}
        self._cost = 0.0
        self._last = time.perf_counter()

    def __enter__(self) -> "Saver":
        if self._checkpoint is not None:
            self._in_first(Store.__enter__)
            self._signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.is_on:
            self._signals.restore()
        if self._store is not None:
            self._store.__exit__()
        requested = self._signals.requested
        if kind is None and requested is not None and not self._has_left:
            # It arrived after the last `look`, so nothing has acted on it.
            signal.raise_signal(requested)

    def look(
        self, *numbers: int | float, show: Callable[[], None] | None = None
    ) -> tuple[float, ...]:
        """Return numbers of the first process, with which all processes go on.

        The clock of the first process decides whether the run is saved; a signal counts
        in whichever process it arrives. `show` shows progress in the first process;
        what it raises is raised in all.
        """
        error: Exception | None = None
        if show is not None and is_first_process():
            try:
                show()
            except Exception as raised:
                error = raised
        rows = allgather_numbers(
            *numbers,
            error is not None,
            self._is_due_now(),
            self._signals.requested or 0,
        )
        *agreed, failed, due, _ = map(float, rows[0])

        def raise_again() -> bytes:
            assert error is not None
            raise error

        if failed:
            bytes_of_first_process(raise_again)
        self.is_due, self._requested = bool(due), int(rows[:, -1].max())
        return tuple(agreed)

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C or SIGTERM asked the run to save itself and leave."""
        return self._requested > 0 and not self._has_left

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        """The versions that the run was computed with so far, in their order."""
        return self._same.provenance

    @property
    def path(self) -> str | None:
        return None if self._checkpoint is None else self._checkpoint.path

    @property
    def is_on(self) -> bool:
        """True if the run is saved."""
        return self._checkpoint is not None and not self._has_left

    def resume(self) -> Saved | None:
        """Return the checkpoint of this run, or None if there is none to resume."""
        if not self.is_on or self._fresh:
            return None
        found: tuple[str | None, bytes] = None, b""

        def read() -> str | None:
            nonlocal found
            assert self._store is not None
            found = self._store.read() or found
            return found[0]

        path = run_in_first_process(read)
        if path is None:
            self._check_other_hosts()
            return None
        saved = Saved(*decode(path, bytes_of_first_process(lambda: found[1])), path)
        with understood(path):
            kind = typed(saved.header, "kind", str)
            if kind != self._kind:
                raise CheckpointError(
                    f"{path!r} holds a {kind}, and this is a {self._kind}.",
                    "Choose another path, or start over with `fresh=True`.",
                )
            self._same.check(saved)
        if saved.header.get("layout") != self._layout:
            log.info(
                "%s was laid out otherwise: %s. What follows agrees with a run on one "
                "layout to rounding, not to the bit.",
                path,
                saved.header.get("layout"),
            )
        return saved

    def begin(self) -> None:
        """Note that this process computes from here on; raise if it cannot save."""
        self._same.begin()
        if self.is_on:
            self._in_first(Store.check_writable)

    def _check_other_hosts(self) -> None:
        """Raise if another process has the file that the first one lacks."""
        assert self._checkpoint is not None
        path = os.path.realpath(self._checkpoint.path)
        host = socket.gethostname()
        exists = any(map(os.path.lexists, (path, f"{path}.previous")))
        said = allgather_bytes(f"{int(exists)} {host}".encode())
        (_, first), *others = (x.decode().split(" ", 1) for x in said)
        for process, (has_one, other) in enumerate(others, 1):
            if has_one == "1":
                raise CheckpointError(
                    f"process {process} on {other} has a checkpoint at {path!r}. The "
                    f"first process, on {first}, reads it for all, and has none.",
                    f"Start the processes such that the first one is on {other}, copy "
                    "the file, or start over with `fresh=True`.",
                )

    def _in_first(self, call: Callable[[Store], object]) -> None:
        """Call a function in the first process; what it raises is raised in all."""

        def called() -> None:
            assert self._store is not None
            call(self._store)

        run_in_first_process(called)

    def _is_due_now(self) -> bool:
        if self._checkpoint is None:
            return False
        wait = seconds_until_next(self._checkpoint.every, self._cost)
        return time.perf_counter() - self._last >= wait

    def keep(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Set a header and arrays that every `save` from now on adds to its own."""
        self._kept = dict(header), dict(arrays)

    def save(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Save the run, if it is saved at all; see `write_file`."""
        if not self.is_on:
            return
        start = time.perf_counter()

        def write(store: Store) -> None:
            entries, sketches = self._same.to_save()
            full = {
                "kind": self._kind,
                **entries,
                "layout": self._layout,
                "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                **self._kept[0],
                **header,
            }
            store.write(full, {**self._kept[1], **arrays, **sketches})

        self._in_first(write)
        self._last = time.perf_counter()
        self._cost = self._last - start

    def leave(self) -> None:
        """End the run as the signal asks, after the run was saved."""
        assert self._checkpoint is not None
        requested = signal.Signals(self._requested)
        path = os.path.realpath(self._checkpoint.path)
        log.warning("%s: saved to %s.", requested.name, path)
        self._signals.restore()
        if requested == signal.SIGINT:
            raise KeyboardInterrupt
        # The handler that was set before acts now, with the file already in order. It
        # may return: then the run goes on, and is not saved any more.
        self._has_left = True
        if self._store is not None:
            self._store.__exit__()
            self._store = None
        signal.raise_signal(requested)


@final
class Interruptible:
    """Record the first SIGINT or SIGTERM while entered; the second acts at once.

    The first is a request to stop, which the run follows once it is saved.

    A signal that the process ignores, or that code outside of Python handles, stays as
    it is. In other threads than the main one nothing changes: Python handles signals in
    the main thread only.
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

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested = signal.Signals(number)
            self._at = now
        elif now - self._at > _TOGETHER:
            self.restore()
            signal.raise_signal(number)

    def restore(self) -> None:
        """Set the handlers from before, so that signals act at once again."""
        while self._before:
            number, before = self._before.popitem()
            # A handler that was set since then stays.
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)
