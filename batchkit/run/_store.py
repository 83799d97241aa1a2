"""The file of one run: a lock, and two generations of which one is always sound.

A new generation is written beside the file, and the disk has it before anything is
renamed. Then the current one gets a second name, that of the previous one, and the new
one takes over its first name. Both are single steps of the file system, so the file
exists at every instant, the old one or the new one, and a process that is killed in
between loses nothing.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np

from ._checkpoint import CheckpointError
from ._file import (
    FORBIDDEN,
    disk_errors,
    encode,
    refuse_foreign,
    remove,
    replace_file,
    sound_bytes,
)
from ._lock import Lock
from ._processes import log


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
class Saved(NamedTuple):
    """A checkpoint that was read: header and arrays as written, and its path."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray | jax.Array]
    path: str


@final
class Store:
    """Checkpoints of one run, locked against other writers while it is entered.

    Where nothing can be written there is no lock either, and an existing file is read.
    """

    def __init__(self, path: str | os.PathLike[str], fresh: bool = False) -> None:
        """Store at a path, or where a link there leads; `fresh` may replace a foreign
        file.
        """
        self.path = os.path.realpath(path)
        self.previous = f"{self.path}.previous"
        self._link = f"{self.previous}.tmp"
        self._lock = Lock(self.path)
        self._fresh = fresh
        self._entered = False
        # The reason why nothing can be written, if there is one.
        self._read_only: CheckpointError | None = None
        # Whether the file may become the previous generation; None until it is read.
        self._sound: bool | None = None

    def __enter__(self) -> "Store":
        """Take the lock, and remove what a killed process has left."""
        with disk_errors("write", self.path), contextlib.suppress(FileNotFoundError):
            os.lstat(self._link)  # It has the longest name, which may be too long.
        self._foreign()
        self._read_only = self._sound = None
        try:
            self._lock.acquire()
        except CheckpointError as error:
            exists = os.path.lexists(self.path) or os.path.lexists(self.previous)
            code = getattr(error.__cause__, "errno", None)
            if self._fresh or not exists or code not in FORBIDDEN:
                raise
            self._read_only = error
        else:
            remove(f"{self.path}.tmp")  # of earlier versions
            if (token := self._lock.left_behind) is not None:
                remove(self._temporary(token))
            remove(self._link)
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        if self._read_only is None:
            self._lock.release()

    def check_writable(self) -> None:
        if self._read_only is not None:
            raise CheckpointError(
                f"{self.path!r} holds a run that has not ended, and to go on with it "
                f"it must be saved. {self._read_only.reason}",
                "Copy the file to a folder that this user may write to.",
            ) from self._read_only

    def read(self) -> tuple[str, bytes] | None:
        """Return path and bytes of the newest sound generation; None without files."""
        assert self._entered
        damages: list[CheckpointError] = []
        for path in (self.path, self.previous):
            if not os.path.lexists(path):
                continue
            try:
                data = sound_bytes(path)
            except CheckpointError as error:
                if not error.damaged:
                    raise
                damages.append(error)
                continue
            self._sound = path == self.path
            if not self._sound:
                why = damages[0].reason if damages else f"{self.path!r} is missing."
                log.warning("%s Using the generation before it, %r.", why, path)
            return path, data
        self._sound = False
        if not damages:
            return None
        raise CheckpointError(
            " ".join(error.reason for error in damages), damages[0].remedy, damaged=True
        ) from damages[0]

    def write(self, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Write the newest generation; the newest until now becomes the previous one.

        Raise `CheckpointError` if it cannot be written, or if a file from elsewhere may
        not be replaced. The generations are then as before.
        """
        assert self._entered
        self.check_writable()
        self._lock.check()
        if (foreign := self._foreign()) is not None:
            log.warning("%s It is replaced, as fresh=True says.", foreign.reason)
        if self._sound is None:
            self._sound = self._is_sound()

        def before_rename() -> None:
            # Writing may have taken long enough to be taken for lost.
            self._lock.check()
            # A damaged file must not take the place of a sound generation.
            if self._sound:
                self._keep_as_previous()

        with encode(header, arrays) as data:
            new = self._temporary(self._lock.token)
            replace_file(self.path, data, new, before_rename)
        self._sound = True
        self._fresh = False

    def _temporary(self, token: str) -> str:
        """Return the name of the file that an owner of the lock writes."""
        return f"{self.path}.{token}.tmp"

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
            return  # Removed meanwhile: the previous generation is the only one.
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without links the file is missing for an instant, but not the previous.
            os.replace(self.path, self.previous)
            return
        try:
            os.replace(self._link, self.previous)
        finally:
            remove(self._link)
