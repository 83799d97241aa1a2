"""A lock that one process holds on a file, and that is gone when the process is.

The operating system holds the lock, not the file: a process that is killed leaves the
file behind, and nobody waits for it. The file only tells who has the lock.
"""

import contextlib
import errno
import logging
import os
import socket
import sys
from typing import Final, final

from ._checkpoint import CheckpointError
from ._disk import disk_errors, remove
from ._safe_log import SafeLog


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


_log: Final = SafeLog(logging.getLogger("batchkit"), {})

_HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@final
class Lock:
    """The lock on what stands at `path`, by way of the file `path + ".lock"`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._name = f"{path}.lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        **Raises:**

        `CheckpointError` if another run has it, or if its file cannot be written.
        """
        assert self._file is None
        while self._file is None:
            with disk_errors("write", self._path):
                # A link of that name could lead to any file, which is then emptied.
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                file = os.open(self._name, flags, 0o666)
            try:
                self._file = self._locked(file)
            finally:
                if self._file is None:
                    os.close(file)

    def release(self) -> None:
        """Gives the lock back, and removes its file."""
        assert self._file is not None
        # Before the lock goes: afterwards the file may be somebody else's.
        remove(self._name)
        os.close(self._file)
        self._file = None

    def _locked(self, file: int) -> int | None:
        """The file, locked; or `None` if it was removed before we had the lock."""
        try:
            _take(file)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _log.warning(
                    "%s: its file system has no locks, so nothing keeps another run "
                    "from writing there, too.",
                    self._path,
                )
            elif error.errno in _HELD:
                raise CheckpointError(
                    f"{self._path!r} is in use by {self._holder(file)}.",
                    "Wait until that run has ended, or give this run another path.",
                ) from error
            else:
                with disk_errors("lock", self._path):
                    raise
        with disk_errors("write", self._path):
            try:
                if not os.path.samestat(os.fstat(file), os.stat(self._name)):
                    return None
            except FileNotFoundError:
                return None
        # Only to tell others: on a full disk the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())
        return file

    def _holder(self, file: int) -> str:
        text = ""
        with contextlib.suppress(OSError):
            text = os.read(file, 300).decode(errors="replace")
        match text.split():
            case [pid, host] if host == socket.gethostname():
                this = " (this process)" if pid == str(os.getpid()) else ""
                return f"process {pid}{this}"
            case [pid, host]:
                return f"process {pid} on {host}"
        return "another process"
