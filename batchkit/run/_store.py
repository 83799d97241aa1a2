"""The file of one run: two generations, of which at every instant one is sound.

A new generation is written beside the file and waited for until the disk has it. Then
the current one gets a second name, that of the previous one, and the new one takes over
its first name. Both are single steps of the file system, so the file is there at every
instant, the old one or the new one, and whoever is killed in between loses nothing.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, final

import jax
import numpy as np

from ._checkpoint import CheckpointError
from ._disk import disk_errors, is_forbidden, put, remove, sync_folder_of
from ._file import encode, read_file, refuse_foreign, sound_bytes
from ._lock import Lock
from ._safe_log import SafeLog


_log: Final = SafeLog(logging.getLogger("batchkit"), {})

_FOREIGN: Final = (
    "Move this file away, choose another path, or replace it with `fresh=True`."
)
_NO_LINKS: Final = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
}


@final
@dataclass(frozen=True)
class Saved:
    """What was read, and from where.

    **Arguments:**

    - `header`, `arrays`: as they were written.
    - `path`: the file that they are from.
    - `passed_over`: why a newer generation was not used, or `None` if this is the
        newest.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray | jax.Array]
    path: str
    passed_over: str | None = None


@final
class Store:
    """Checkpoints of one run, locked against other writers while it is entered.

    Where nothing can be written there is no lock either, and what is there can be read.
    """

    def __init__(self, path: str | os.PathLike[str], fresh: bool = False) -> None:
        """**Arguments:**

        - `path`: the file. A link is followed, so that the file it leads to is replaced
            and not the link.
        - `fresh`: whether the first `write` may replace a file from elsewhere.
        """
        self.path = os.path.realpath(path)
        self.previous = f"{self.path}.previous"
        self._new = f"{self.path}.tmp"
        self._link = f"{self.previous}.tmp"
        self._lock = Lock(self.path)
        self._fresh = fresh
        self._entered = False
        # Why nothing can be written, if that is so.
        self._read_only: CheckpointError | None = None
        # Whether the file may become the previous generation; None before we looked.
        self._sound: bool | None = None

    def __enter__(self) -> "Store":
        """**Raises:**

        `CheckpointError` if another run has the file, if there can be none, or if there
        is a file from elsewhere that may not be replaced.
        """
        with disk_errors("write", self.path), contextlib.suppress(FileNotFoundError):
            os.lstat(self._link)  # It has the longest name, which may be too long.
        self._foreign()
        self._read_only = None
        try:
            self._lock.acquire()
        except CheckpointError as error:
            there = os.path.lexists(self.path) or os.path.lexists(self.previous)
            if self._fresh or not there or not is_forbidden(error.__cause__):
                raise
            self._read_only = error
        self._entered = True
        self._sound = None
        if self._read_only is None:
            # Nobody else writes them now, so they are from a process that was killed.
            remove(self._new)
            remove(self._link)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered = False
        if self._read_only is None:
            self._lock.release()

    def check_writable(self) -> None:
        """Raise `CheckpointError` if this can only be read."""
        if self._read_only is not None:
            raise CheckpointError(
                f"{self.path!r} holds a run that has not ended, and to go on with it "
                f"it must be saved. {self._read_only.reason}",
                "Copy the file to a folder that this user may write to.",
            ) from self._read_only

    def read(self) -> Saved | None:
        """The newest generation that is sound, or `None` if there is none at all.

        **Raises:**

        `CheckpointError` if there are files and none of them is sound, or if the newest
        one is sound but cannot be used here.
        """
        assert self._entered
        damages: list[CheckpointError] = []
        for path in (self.path, self.previous):
            if not os.path.lexists(path):
                continue
            try:
                header, arrays = read_file(path)
            except CheckpointError as error:
                if not error.damaged:
                    raise
                damages.append(error)
                continue
            self._sound = path == self.path
            return self._saved(header, arrays, path, damages)
        if not damages:
            return None
        self._sound = False
        if len(damages) == 1:
            raise damages[0]
        raise CheckpointError(
            " ".join(error.reason for error in damages), damages[0].remedy, damaged=True
        ) from damages[0]

    def write(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> float:
        """Makes this the newest generation, and what was the newest the previous one.

        **Arguments:**

        - `header`, `arrays`: as for `write_file`.

        **Returns:**

        The seconds it took.

        **Raises:**

        `CheckpointError` if it cannot be written, or if there is a file from elsewhere
        that may not be replaced. What was there before is then still there.
        """
        assert self._entered
        start = time.perf_counter()
        self.check_writable()
        if (foreign := self._foreign()) is not None:
            _log.warning("%s It is replaced, as fresh=True says.", foreign.reason)
        if self._sound is None:
            self._sound = self._is_sound()
        with encode(header, arrays) as data, disk_errors("write", self.path):
            put(self._new, data)
            try:
                # Something damaged must not take the place of a sound generation.
                if self._sound:
                    self._keep_as_previous()
                os.replace(self._new, self.path)
            except BaseException:
                remove(self._new)
                raise
            self._sound = True
            self._fresh = False
            sync_folder_of(self.path)
        return time.perf_counter() - start

    def _saved(
        self,
        header: dict[str, Any],
        arrays: dict[str, np.ndarray | jax.Array],
        path: str,
        damages: list[CheckpointError],
    ) -> Saved:
        if path == self.path:
            return Saved(header, arrays, path)
        why = damages[0].reason if damages else f"{self.path!r} is missing."
        _log.warning("%s Using the generation before it, %r.", why, path)
        return Saved(header, arrays, path, why)

    def _foreign(self) -> CheckpointError | None:
        """Return the error of a foreign file if it may be replaced, else raise it."""
        found = None
        for path in (self.path, self.previous):
            try:
                refuse_foreign(path, _FOREIGN)
            except CheckpointError as error:
                if not (self._fresh and error.damaged):
                    raise
                found = error
        return found

    def _is_sound(self) -> bool:
        """Return True if the file is an undamaged checkpoint."""
        if not os.path.lexists(self.path):
            return False
        try:
            sound_bytes(self.path)
        except CheckpointError as error:
            return not error.damaged
        return True

    def _keep_as_previous(self) -> None:
        remove(self._link)
        try:
            os.link(self.path, self._link)
        except FileNotFoundError:
            return  # Somebody took it away; the one before it is all there is.
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without links the file is missing for an instant, but not the previous.
            os.replace(self.path, self.previous)
            return
        try:
            os.replace(self._link, self.previous)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._link)
