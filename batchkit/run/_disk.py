"""Durable replacement of files, and errors of the file system in plain words."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from ._checkpoint import CheckpointError


_FULL: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Missing permission, or a read-only file system.
FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING: Final = {errno.ENOENT, errno.ENOTDIR}


@contextlib.contextmanager
def disk_errors(action: str, path: str) -> Iterator[None]:
    """Raise a `CheckpointError` that names `path` for every `OSError` in the body."""
    try:
        yield
    except OSError as error:
        # A disk that cannot return what it holds is as good as a damaged file.
        raise CheckpointError(
            f"Cannot {action} {path!r}: {error.strerror or error}.",
            _remedy(error, action, path),
            damaged=error.errno == errno.EIO,
        ) from error


def replace_file(
    path: str, data: bytes | memoryview, before_rename: Callable[[], None] | None = None
) -> None:
    """Replace a file, whole or not at all, and wait until the disk has it.

    `before_rename` is called when the new bytes are on the disk, and the old file is
    still in its place.
    """
    new = f"{path}.tmp"
    # In a folder where others may write, a link of that name could lead to any file of
    # this user: it is removed, and the new file must not exist ("x").
    remove(new)
    with disk_errors("write", path), contextlib.ExitStack() as stack:
        with open(new, "xb") as file:
            stack.callback(remove, new)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(new, path)
        stack.pop_all()
        _sync_folder_of(path)


def remove(path: str) -> None:
    """Remove a file if it exists and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _sync_folder_of(path: str) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder, and keeps names in order by itself.
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems have no fsync of a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(folder)


def _remedy(error: OSError, action: str, path: str) -> str:
    if error.errno in _FULL:
        return (
            "Free space there, or choose a path on another disk. What was saved before "
            "is untouched."
        )
    if error.errno in FORBIDDEN:
        return "Choose a path that this user may read and write, in such a folder."
    if action == "read" and error.errno in _MISSING:
        return f"Check the path; it was looked for in {os.getcwd()!r}."
    if error.errno == errno.ENAMETOOLONG:
        return (
            "Choose a shorter name, by 13 characters at least: files beside it have "
            "names that are longer by '.previous.tmp'."
        )
    if error.errno in _MISSING:
        folder = os.path.dirname(path) or "."
        return f"Make the folder {folder!r} first, or choose another path."
    if error.errno == errno.EISDIR:
        return "It is a folder: choose the path of a file."
    return "Choose another path, on another disk if this one fails."
