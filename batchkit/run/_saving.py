"""Saving a run while it goes on, and finding it again.

A run is known by what it was started with, the parts of its *identity*: the problem,
the key, where it begins, the settings. A file is resumed only if all of them agree.
Whatever else the file holds belongs to the kind of run that wrote it.

Of several processes the first one has the file, and the others need not see its folder.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, final

from ._checkpoint import Checkpoint, CheckpointError, seconds_until_next
from ._environment import Provenance
from ._file import decode, encode, understood
from ._fingerprint import Part
from ._processes import (
    bytes_from_first,
    first_and_largest,
    in_first,
    is_first,
    raised_by_first,
    several,
    speaker,
)
from ._result_file import typed
from ._same_run import Compare, SameRun
from ._signals import Interruptible
from ._store import Saved, Store


_log: Final = logging.getLogger("batchkit")


def checkpoint_from(value: Any, caller: str) -> Checkpoint | None:
    """What `checkpoint=` means: None, a path, or a `Checkpoint`.

    **Raises:**

    `TypeError` if it is something else.
    """
    if value is None or isinstance(value, Checkpoint):
        return value
    if isinstance(value, str | os.PathLike):
        return Checkpoint(value)
    raise TypeError(
        f"{caller}(checkpoint={value!r}): checkpoint must be a path such as 'run.h5', "
        f"a Checkpoint, or None; got {type(value).__name__}."
    )


def check_fresh(value: object, caller: str) -> None:
    """Raises `TypeError` unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{caller}(fresh={value!r}): fresh must be True or False; got "
            f"{type(value).__name__}."
        )


@final
class Saver:
    """The checkpoints of one run, and the signals that ask it to stop.

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
        """**Arguments:**

        - `checkpoint`: where and how often, or None.
        - `kind`: what kind of run it is, in words, such as "nested run".
        - `identity`: what the run was started with, a fingerprint of each part by its
            name in words.
        - `compare`, `start_of`: functions that compare a checkpoint of other versions
            with this run, and return the step it goes on from; see `SameRun`.
        - `layout`: how the run is laid out, something that JSON has. It may differ from
            one part of a run to the next.
        - `fresh`: whether to start over if there is a file.
        """
        self._checkpoint = checkpoint
        self._kind = kind
        self._same = SameRun(identity, compare, start_of)
        self._layout = layout
        self._fresh = fresh
        self._store: Store | None = None
        if checkpoint is not None and is_first():
            self._store = Store(checkpoint.path, fresh)
        self._signals = Interruptible()
        self._has_left = False
        # What several processes found when they looked.
        self._is_due = False
        self._requested = 0
        self._kept: tuple[Mapping[str, Any], Mapping[str, Any]] = {}, {}
        self._cost = 0.0
        self._last = time.perf_counter()
        self.seconds = 0.0
        self.count = 0

    def __enter__(self) -> "Saver":
        if self._checkpoint is not None:
            in_first(self._enter_store)
            self._signals.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_on:
            self._signals.__exit__(kind, error, trace)
        if self._store is not None:
            self._store.__exit__(kind, error, trace)
        requested = self._signals.requested
        if kind is None and requested is not None and not self._has_left:
            # It came when nobody looked any more, and nobody else knows of it.
            signal.raise_signal(requested)

    def look(
        self, *numbers: int | float, show: Callable[[], None] | None = None
    ) -> tuple[int | float, ...]:
        """Lets several processes agree on what follows, at a place where all come by.

        What is due is decided by the clock of the first process; a signal counts in
        whichever it arrives. One process has nothing to agree on.

        **Arguments:**

        - `numbers`: what else the first process decides.
        - `show`: what it does before, in sight of the user. If it raises, all raise.

        **Returns:**

        The numbers of the first process.
        """
        error: Exception | None = None
        if show is not None and is_first():
            try:
                show()
            except Exception as raised:
                if not several():
                    raise
                error = raised
        if not several():
            return numbers
        requested = self._signals.requested or 0
        first = (*numbers, error is not None, self._is_due_now())
        *agreed, failed, due, largest = first_and_largest(first, requested)
        if failed:
            raised_by_first(error)
        self._is_due, self._requested = bool(due), int(largest)
        return tuple(agreed)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM asked the run to save itself and leave."""
        if self._has_left:
            return False
        if several():
            return self._requested > 0
        return self._signals.requested is not None

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        """The versions that the run was computed with so far, in their order."""
        return self._same.provenance

    @property
    def path(self) -> str | None:
        """Where the run is saved."""
        return None if self._checkpoint is None else self._checkpoint.path

    @property
    def is_on(self) -> bool:
        """Whether the run is saved."""
        return self._checkpoint is not None and not self._has_left

    def resume(self) -> Saved | None:
        """What was saved of this very run; None if there is nothing to go on from.

        **Raises:**

        `CheckpointError` if the file is of another run, or cannot be used.
        """
        if not self.is_on or self._fresh:
            return None
        saved = self._read()
        if saved is None:
            return None
        with understood(saved.path):
            self._check(saved)
        if saved.header.get("layout") != self._layout:
            speaker(_log).info(
                "%s was laid out otherwise: %s. What follows agrees with a run on one "
                "layout to rounding, not to the bit.",
                saved.path,
                saved.header.get("layout"),
            )
        return saved

    def begin(self) -> None:
        """Note that this process computes from here on, with its versions.

        **Raises:**

        `CheckpointError`, in all processes, if the work could not be saved.
        """
        self._same.begin()

        def check() -> None:
            assert self._store is not None
            self._store.check_writable()

        if self.is_on:
            in_first(check)

    def due(self) -> bool:
        """Whether it is time to save."""
        return self._is_due if several() else self._is_due_now()

    def _is_due_now(self) -> bool:
        if self._checkpoint is None:
            return False
        wait = seconds_until_next(self._checkpoint.every, self._cost)
        return time.perf_counter() - self._last >= wait

    def keep(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Says what every save from now on holds besides, in the same way as `save`."""
        self._kept = dict(header), dict(arrays)

    def save(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Saves the run, if it is saved at all.

        **Arguments:**

        - `header`: what JSON has of it.
        - `arrays`: arrays by name.
        """
        if not self.is_on:
            return
        start = time.perf_counter()
        header, arrays = {**self._kept[0], **header}, {**self._kept[1], **arrays}
        in_first(lambda: self._write(header, arrays))
        self._last = time.perf_counter()
        self._cost = self._last - start
        self.seconds += self._cost
        self.count += 1

    def _write(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        assert self._store is not None
        full = {
            "kind": self._kind,
            **self._same.header(),
            "layout": self._layout,
            "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **header,
        }
        self._store.write(full, {**arrays, **self._same.arrays()})

    def leave(self) -> None:
        """Does what the signal asked for, once the run is saved."""
        assert self._checkpoint is not None
        requested = signal.Signals(self._requested or self._signals.requested or 0)
        path = os.path.realpath(self._checkpoint.path)
        speaker(_log).warning("%s: saved to %s.", requested.name, path)
        self._signals.__exit__(None, None, None)
        if requested == signal.SIGINT:
            raise KeyboardInterrupt
        # The handler that was there before acts now, with the file already in order.
        self._has_left = True
        if self._store is not None:
            self._store.__exit__(None, None, None)
            self._store = None
        signal.raise_signal(requested)

    def _enter_store(self) -> None:
        assert self._store is not None
        self._store.__enter__()

    def _read(self) -> Saved | None:
        """What the first process reads, in all of them."""
        if not several():
            assert self._store is not None
            return self._store.read()
        mine: list[Saved | None] = []

        def as_bytes() -> bytes:
            assert self._store is not None
            mine.append(self._store.read())
            if mine[0] is None:
                return b""
            where = json.dumps([mine[0].path, mine[0].passed_over]).encode()
            return where + b"\n" + encode(mine[0].header, mine[0].arrays)

        data = bytes_from_first(as_bytes)
        if mine or not data:
            return mine[0] if mine else None
        where, _, data = data.partition(b"\n")
        path, passed_over = json.loads(where)
        return Saved(*decode(path, data), path, passed_over)

    def _check(self, saved: Saved) -> None:
        kind = typed(saved.header, "kind", str)
        if kind != self._kind:
            raise CheckpointError(
                f"{saved.path!r} holds a {kind}, and this is a {self._kind}.",
                "Choose another path, or start over with `fresh=True`.",
            )
        self._same.check(saved)
