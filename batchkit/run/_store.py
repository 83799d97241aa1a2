"""The file of one run: a lock, and two generations of which one is always sound.

A new generation is written beside the file, and the disk has it before anything is
renamed. Then the current one gets a second name, that of the previous one, and the new
one takes over its first name. Both are single steps of the file system, so the file
exists at every instant, the old one or the new one, and a process that is killed in
between loses nothing.
"""

import contextlib
import errno
import functools
import os
import socket
import sys
import threading
import time
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
from ._processes import log


if sys.platform == "win32":
    import msvcrt

    def _take(file: int) -> None:
        # Windows forbids others to read what is locked, so this is past the text.
        os.lseek(file, 1 << 30, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


# Seconds from one sign of life of a lock's owner to the next, and without one until
# its host counts as lost.
_LIFE: Final = 5.0
_SILENCE: Final = 30.0
_TOUCHES: Final = os.utime in os.supports_fd
_HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


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
            remove(f"{self.path}.tmp")
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
        # A damaged file must not take the place of a sound generation.
        keep = self._keep_as_previous if self._sound else None
        with encode(header, arrays) as data:
            replace_file(self.path, data, keep)
        self._sound = True
        self._fresh = False

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


@final
class Lock:
    """A lock that one process holds on a file, and that ends with the process.

    The operating system holds the lock, not the file `path + ".lock"`: a killed process
    leaves the file behind, and no other process waits for it. It only names the owner.

    On a network file system the lock of a host that is lost may outlive it. So the
    owner touches the file as a sign of life, and a process on another host that sees
    none takes over: it removes the file and locks a new one, which the owner notices
    before it writes again, should it come back.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._name = f"{path}.lock"
        self._file: int | None = None
        self._released = threading.Event()
        self._life: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock; raise `CheckpointError` if another run has it."""
        assert self._file is None
        while self._file is None:
            file = self._open()
            try:
                if self._is_locked(file):
                    self._file = file
            finally:
                if self._file is None:
                    os.close(file)
        self._released = threading.Event()
        if _TOUCHES:
            show = functools.partial(_show_life, self._file, self._released)
            self._life = threading.Thread(target=show, daemon=True)
            self._life.start()

    def release(self) -> None:
        assert self._file is not None
        self._released.set()
        if self._life is not None:
            # It must not touch another file that gets the same number.
            self._life.join(1.0)
        # Before the lock goes: afterwards the file may be that of another process.
        if self._is_same(self._file):
            remove(self._name)
        os.close(self._file)
        self._file = None

    def check(self) -> None:
        """Raise `CheckpointError` if another process has taken over."""
        assert self._file is not None
        if not self._is_same(self._file) and os.path.lexists(self._name):
            raise CheckpointError(
                f"{self._path!r} was taken over by {self._holder()}: for "
                f"{_SILENCE:.0f} s this process showed no sign of life there, as if "
                "its host were lost.",
                "That run goes on; start this one again when it has ended.",
            )

    def _open(self) -> int:
        with disk_errors("write", self._path):
            # A link of that name could lead to any file, which would be emptied.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            return os.open(self._name, flags, 0o666)

    def _is_same(self, file: int) -> bool:
        """Return False if another process removed or replaced the file of the lock."""
        with disk_errors("write", self._path):
            try:
                return os.path.samestat(os.fstat(file), os.stat(self._name))
            except FileNotFoundError:
                return False

    def _is_locked(self, file: int) -> bool:
        """Lock a file; return False if another process removed it meanwhile."""
        try:
            _take(file)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning(
                    "%s: its file system has no locks, so nothing keeps another run "
                    "from writing there, too.",
                    self._path,
                )
            elif error.errno in _HELD:
                if self._has_taken_over(file):
                    return False
                raise CheckpointError(
                    f"{self._path!r} is in use by {self._holder(file)}.",
                    "Wait until that run has ended, or give this run another path.",
                ) from error
            else:
                with disk_errors("lock", self._path):
                    raise
        if not self._is_same(file):
            return False
        # Only for the messages of others: on a full disk the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            touches = f" touched every {_LIFE:.0f} s" if _TOUCHES else ""
            text = f"{os.getpid()} {socket.gethostname()}{touches}\n"
            os.write(file, text.encode())
        return True

    def _has_taken_over(self, file: int) -> bool:
        """Remove the file of an owner on another host that shows no sign of life."""
        words = _words_in(file)
        # On this host the lock has ended with its owner.
        if "touched" not in words or words[1] == socket.gethostname():
            return False
        log.warning(
            "%s is locked by %s; waiting up to %.0f s for a sign of life of it.",
            self._path,
            self._holder(file),
            _SILENCE,
        )
        first, end = self._touched(), time.monotonic() + _SILENCE
        while time.monotonic() < end:
            time.sleep(_SILENCE / 30)
            if self._touched() != first:
                return False
        if self._is_same(file):
            log.warning(
                "%s: no sign of life of %s in %.0f s. Its host counts as lost, and "
                "this process takes over.",
                self._path,
                self._holder(file),
                _SILENCE,
            )
            remove(self._name)
        return True

    def _touched(self) -> int | None:
        """Return when the file was touched last, in the time of its file system."""
        # Network file systems may answer `stat` from a cache, unless a file is opened.
        with contextlib.suppress(FileNotFoundError):
            file = os.open(self._name, os.O_RDONLY)
            try:
                return os.fstat(file).st_mtime_ns
            finally:
                os.close(file)
        return None

    def _holder(self, file: int | None = None) -> str:
        if file is None:
            with contextlib.suppress(OSError):
                file = os.open(self._name, os.O_RDONLY)
                try:
                    return self._holder(file)
                finally:
                    os.close(file)
            return "another process"
        match _words_in(file):
            case [pid, host, *_] if host == socket.gethostname():
                this = " (this process)" if pid == str(os.getpid()) else ""
                return f"process {pid}{this}"
            case [pid, host, *_]:
                return f"process {pid} on {host}"
        return "another process"


def _words_in(file: int) -> list[str]:
    with contextlib.suppress(OSError):
        os.lseek(file, 0, os.SEEK_SET)
        return os.read(file, 300).decode(errors="replace").split()
    return []


def _show_life(file: int, released: threading.Event) -> None:
    while not released.wait(_LIFE):
        with contextlib.suppress(OSError):
            os.utime(file)
