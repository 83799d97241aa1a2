"""Bytes that are on the disk when we say so, and errors of the disk in plain words."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from ._checkpoint import CheckpointError


_FULL: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def disk_errors(doing: str, path: str) -> Iterator[None]:
    """Raises a `CheckpointError` that names `path` for every error of the disk.

    **Arguments:**

    - `doing`: what is being done to the file, such as `"write"`.
    - `path`: the file, as its user knows it.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        # A disk that cannot give back what it holds is as good as a damaged file.
        raise CheckpointError(
            f"Cannot {doing} {path!r}: {why}.",
            _remedy(error, doing, path),
            damaged=error.errno == errno.EIO,
        ) from error


def put(path: str, data: bytes | memoryview) -> None:
    """Write a new file and wait until it is on the disk; on any error none is left.

    A file or a link of that name is removed first: in a folder where others may write,
    a link could lead to any file of this user.
    """
    remove(path)
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            remove(path)
            raise


def remove(path: str) -> None:
    """Removes a file, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def sync_folder_of(path: str) -> None:
    """Waits until the names in the folder of `path` are on the disk."""
    if os.name == "nt":
        return  # It cannot open a folder, and keeps names in order by itself.
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some file systems of networks have no such thing as an fsync of a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(folder)


def is_forbidden(error: BaseException | None) -> bool:
    """Return True if an error says that this user may not write, here or at all."""
    return isinstance(error, OSError) and error.errno in _FORBIDDEN


def _remedy(error: OSError, doing: str, path: str) -> str:
    folder = os.path.dirname(path) or "."
    if error.errno in _FULL:
        return (
            "Free space there, or choose a path on another disk. What was saved before "
            "is untouched."
        )
    if error.errno in _FORBIDDEN:
        return "Choose a path that this user may read and write, in such a folder."
    if doing == "read" and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"Check the path; it was looked for in {os.getcwd()!r}."
    if error.errno == errno.ENAMETOOLONG:
        return (
            "Choose a shorter name, by 13 characters at least: files beside it have "
            "names that are longer by '.previous.tmp'."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"Make the folder {folder!r} first, or choose another path."
    if error.errno == errno.EISDIR:
        return "It is a folder: choose the path of a file."
    return "Choose another path, on another disk if this one fails."
