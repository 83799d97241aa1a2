"""The lock of a run's file: held by one process, released when that process ends.

The operating system holds the lock, not the file `path + ".lock"`: a killed process
leaves the file behind, and no other process waits for it. It only names the owner.

On a network file system the lock of a lost host may outlive it. So an owner touches the
file as a sign of life. A process on another host that sees no such sign takes over: it
removes the file, and locks a new one. Should the former owner come back, it finds that
the file is another one, and stops before it replaces anything.
"""

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final, final

from ._checkpoint import CheckpointError
from ._file import disk_errors, remove
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


# Seconds from one sign of life to the next, and without one until an owner counts as
# lost.
_LIFE: Final = 5.0
_SILENCE: Final = 30.0
# The last word in the file of an owner that shows signs of life.
_TOUCHED: Final = "touched"
_HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@final
class Lock:
    """A lock on a file, of this process."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._name = f"{path}.lock"
        self._file: int | None = None
        self._released = threading.Event()
        self._life: threading.Thread | None = None
        # Part of the name of this owner's temporary file, which no other one uses.
        self.token = os.urandom(4).hex()
        # That of the owner before, if it was killed.
        self.left_behind: str | None = None

    def acquire(self) -> None:
        """Take the lock; raise `CheckpointError` if another run has it."""
        assert self._file is None
        while self._file is None:
            with disk_errors("write", self._path):
                # A link of that name could lead to any file, which would be emptied.
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                file = os.open(self._name, flags, 0o666)
            try:
                if self._is_locked(file):
                    self._file = file
            finally:
                if self._file is None:
                    os.close(file)
        self._sign(self._file)

    def release(self) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        self._released.set()
        if self._life is not None:
            # It must not touch another file that gets the same number.
            self._life.join(1.0)
        try:
            # Before the lock goes: afterwards the file may be that of another process.
            if self._is_current(file):
                remove(self._name)
        finally:
            os.close(file)

    def check(self) -> None:
        """Raise `CheckpointError` if another process has taken over."""
        assert self._file is not None
        if not self._is_current(self._file) and os.path.lexists(self._name):
            raise CheckpointError(
                f"{self._path!r} was taken over by {self._current_owner()}: for "
                f"{_SILENCE:.0f} s this process showed no sign of life there, as if "
                "its host were lost.",
                "That run goes on; start this one again when it has ended.",
            )

    def _is_current(self, file: int) -> bool:
        """Return False if another process removed or replaced the file of the lock."""
        with disk_errors("write", self._path):
            try:
                return os.path.samestat(os.fstat(file), os.stat(self._name))
            except OSError as error:
                # Of a file that another host removed, NFS says that it is stale.
                if error.errno in (errno.ENOENT, errno.ESTALE):
                    return False
                raise

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
                if not self._shows_life(file):
                    return False
                raise CheckpointError(
                    f"{self._path!r} is in use by {_owner_in(file)}.",
                    "Wait until that run has ended, or give this run another path.",
                ) from error
            else:
                with disk_errors("lock", self._path):
                    raise
        return self._is_current(file)

    def _shows_life(self, file: int) -> bool:
        """Return False if the file of an owner is gone, or removed here as it is lost.

        On this host the system would have released the lock of an owner that is lost.
        """
        words = _words_in(file)
        if words[-1:] != [_TOUCHED] or words[2] == _this_boot():
            return True
        log.warning(
            "%s is locked by %s; waiting up to %.0f s for a sign of life of it.",
            self._path,
            _owner_in(file),
            _SILENCE,
        )
        first, end = self._touched_at(), time.monotonic() + _SILENCE
        while time.monotonic() < end:
            time.sleep(_SILENCE / 30)
            if not self._is_current(file):
                return False
            if self._touched_at() != first:
                return True
        log.warning(
            "%s: no sign of life of %s in %.0f s. Its host counts as lost, and this "
            "process takes over.",
            self._path,
            _owner_in(file),
            _SILENCE,
        )
        remove(self._name)
        return False

    def _touched_at(self) -> int | None:
        """Return when the file was touched last, in the time of its file system."""
        # Network file systems may answer `stat` from a cache, unless a file is opened.
        with contextlib.suppress(OSError):
            file = os.open(self._name, os.O_RDONLY)
            try:
                return os.fstat(file).st_mtime_ns
            finally:
                os.close(file)
        return None

    def _sign(self, file: int) -> None:
        """Write who has the lock, and begin to show signs of life."""
        before = _words_in(file)
        self.left_behind = before[3] if len(before) > 3 else None
        words = [str(os.getpid()), socket.gethostname(), _this_boot(), self.token]
        # Not all systems and file systems can touch an open file.
        with contextlib.suppress(OSError, TypeError, NotImplementedError):
            os.utime(file)
            words.append(_TOUCHED)
        # Only for others: on a full disk the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, f"{' '.join(words)}\n".encode())
        self._released = threading.Event()
        if _TOUCHED in words:
            self._life = threading.Thread(
                target=_show_life, args=(file, self._released), daemon=True
            )
            self._life.start()

    def _current_owner(self) -> str:
        with contextlib.suppress(OSError):
            file = os.open(self._name, os.O_RDONLY)
            try:
                return _owner_in(file)
            finally:
                os.close(file)
        return "another process"


def _words_in(file: int) -> list[str]:
    with contextlib.suppress(OSError):
        os.lseek(file, 0, os.SEEK_SET)
        return os.read(file, 300).decode(errors="replace").split()
    return []


def _owner_in(file: int) -> str:
    match _words_in(file):
        case [pid, host, *_] if host == socket.gethostname():
            this = " (this process)" if pid == str(os.getpid()) else ""
            return f"process {pid}{this}"
        case [pid, host, *_]:
            return f"process {pid} on {host}"
    return "another process"


def _show_life(file: int, released: threading.Event) -> None:
    while not released.wait(_LIFE):
        with contextlib.suppress(OSError):
            os.utime(file)


def _this_boot() -> str:
    """Return a name of this running system, which hosts of equal names do not share."""
    with contextlib.suppress(OSError):
        text = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
        return text.strip() or socket.gethostname()
    return socket.gethostname()
