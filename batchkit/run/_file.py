"""One checkpoint as one HDF5 file, which is either whole or refused.

HDF5 has checksums for some of its parts only. So the checksum here is over the bytes of
the file, whatever they mean. HDF5 lets a file begin with a block for the user, which
its readers skip; there the checksum stands, as text:

    batchkit checkpoint
    format 1
    bytes 104129
    sha256 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae

The sum is over the lines above it and the bytes after the block. Every later format
begins in the same way, so that an older batchkit can tell newer from damaged.

Behind the block follows an ordinary HDF5 file: the text of a JSON object in `header`,
and the arrays in the groups of `arrays`. What HDF5 has no type for is stored as the
integers that it consists of, with its name in an attribute: `dtype` for the types of
`ml_dtypes`, such as bfloat16, and `prng_impl` for keys. `contents` in the header names
every array with its type, shape and CRC-32; files of earlier versions do not have it.

A checksum protects against accidents and not against an author: anybody can compute it.
So a file that is read may be made to do harm. Only its first block is read before it
has been found to be ours, only as many bytes as it declares and has, and these are not
shown to the HDF5 library, see `_hdf5.py`.

The file is put together in memory. The library's own writing would leave a file half
written, and a library that does not recover, when the disk is full.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from ._checkpoint import CheckpointError
from ._hdf5 import Dataset, read_datasets


_FULL: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Missing permission, or a read-only file system.
FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING: Final = {errno.ENOENT, errno.ENOTDIR}
FORMAT: Final = 1

_BLOCK: Final = 512
_SIGNATURE: Final = b"batchkit checkpoint\n"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_WRITTEN: Final = re.compile(
    rb"(batchkit checkpoint\nformat (\d{1,9})\nbytes (\d{1,18})\n)"
    rb"sha256 ([0-9a-f]{64})\n *\n"
)
# The remedy if a checkpoint cannot be used; a result has another one.
_FRESH: Final = "start over with `fresh=True`"
_NOT_OURS: Final = "Choose another path, or move this file away."
# JSON takes up to thirty times its length when it is parsed.
_MAX_HEADER: Final = 2**26
# Bytes that are no valid value raise one of these in the code that uses the value.
_NONSENSE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


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

    `before_rename` is called when the new bytes are on the disk, before they have the
    name.
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


def write_file(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Write a checkpoint; an existing file is replaced whole or not at all.

    `header` has values of JSON by name, of which tuples come back as lists; `"/"` in
    the name of an array makes a group. Raise `CheckpointError` if it cannot be written,
    `TypeError` or `ValueError` if it cannot be stored.
    """
    # Released here: a buffer that outlives its BytesIO is an error when both are freed.
    with encode(header, arrays) as data:
        replace_file(os.path.realpath(path), data)


def read_file(
    path: str | os.PathLike[str], otherwise: str = _FRESH
) -> tuple[dict[str, Any], dict[str, np.ndarray | jax.Array]]:
    """Return the header and the arrays of a checkpoint, or raise `CheckpointError`.

    The arrays are NumPy's, with the bits, shape and dtype that were written; typed keys
    are arrays of keys. `otherwise` is what errors recommend if the file cannot be used.
    """
    path = os.fspath(path)
    return decode(path, sound_bytes(path, otherwise), otherwise)


def sound_bytes(path: str, otherwise: str = _FRESH) -> bytes:
    """Return all bytes of a checkpoint whose checksum is right; see `read_file`."""

    def damaged(what: str) -> CheckpointError:
        remedy = f"{otherwise[0].upper()}{otherwise[1:]}, or put a sound copy of the "
        return CheckpointError(
            f"{path!r} is damaged: {what}.", f"{remedy}file in its place.", damaged=True
        )

    with _opened(path) as file:
        block = file.read(_BLOCK)
        if not block.startswith(_SIGNATURE):
            raise _foreign(path, block)
        written = _WRITTEN.fullmatch(block)
        if written is None:
            raise damaged(f"its first {_BLOCK} bytes are not as they were written")
        size = os.fstat(file.fileno()).st_size
        if size != int(written[3]):
            raise damaged(f"it has {size} bytes of {int(written[3])}")
        try:
            file.seek(0)
            data = file.read(size)
        except MemoryError as error:
            raise CheckpointError(
                f"{path!r} has {size} bytes, for which there is no memory.",
                "Read it on a machine with more memory.",
            ) from error
    if _checksum(written[1], data) != written[4]:
        raise damaged("its bytes are not those that were written, by their checksum")
    if int(written[2]) > FORMAT:
        raise CheckpointError(
            f"{path!r} has format {int(written[2])}, and this batchkit reads formats "
            f"up to {FORMAT}.",
            f"Use the batchkit that wrote it, or a newer one; or {otherwise}.",
        )
    return data


def refuse_foreign(path: str, remedy: str) -> None:
    """Raise `CheckpointError` if there is a file of other content, not an empty one."""
    if not os.path.lexists(path):
        return
    with _opened(path) as file:
        block = file.read(_BLOCK)
    if block and not block.startswith(_SIGNATURE):
        raise _foreign(path, block, remedy)


@contextlib.contextmanager
def understood(path: str, otherwise: str = _FRESH) -> Iterator[None]:
    """Raise `CheckpointError` for errors in the body, which uses values of a file."""
    try:
        yield
    except _NONSENSE as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
        raise CheckpointError(
            f"{path!r} is sound, but cannot be understood: "
            f"{what[:300] or type(error).__name__}.",
            f"Use the versions of batchkit and JAX that wrote it; or {otherwise}.",
        ) from error


def encode(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> memoryview:
    """Return the bytes of a checkpoint; see `write_file`."""
    stored = {name: _to_dataset(name, x) for name, x in arrays.items()}
    contents = {name: _describe(x) for name, x in stored.items()}
    text = _to_json({**header, "contents": contents})
    image = io.BytesIO()
    # The oldest layout of HDF5, which `read_datasets` reads.
    with h5py.File(image, "w", userblock_size=_BLOCK, libver="earliest") as file:
        file.attrs["format"] = "batchkit checkpoint"
        file.attrs["format_version"] = FORMAT
        file["header"] = text
        group = file.create_group("arrays")
        for name, (array, attributes) in stored.items():
            group.create_dataset(name, data=array).attrs.update(attributes)
    data = image.getbuffer()
    # A later HDF5 library may write otherwise: an error now is better than on resuming.
    written = read_datasets(data, _BLOCK)
    assert written.keys() == {"header", *(f"arrays/{name}" for name in arrays)}
    first = _SIGNATURE + f"format {FORMAT}\nbytes {len(data)}\n".encode()
    block = first + b"sha256 " + _checksum(first, data) + b"\n"
    data[:_BLOCK] = block.ljust(_BLOCK - 1) + b"\n"
    return data


def decode(
    path: str, data: bytes, otherwise: str = _FRESH
) -> tuple[dict[str, Any], dict[str, np.ndarray | jax.Array]]:
    """Return header and arrays from sound bytes; see `read_file`."""
    with understood(path, otherwise):
        datasets = read_datasets(data, _BLOCK)
        header = _from_json(datasets.pop("header").value)
        if any(not name.startswith("arrays/") for name in datasets):
            raise ValueError("it has more than `header` and `arrays`")
        arrays = {name.removeprefix("arrays/"): x for name, x in datasets.items()}
        contents = {name: _describe(x) for name, x in arrays.items()}
        if header.pop("contents", contents) != contents:
            raise ValueError("its arrays are not those that its header names")
        return header, {name: _to_array(x) for name, x in arrays.items()}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading; others may block, or never end."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    with disk_errors("read", path), open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(
                f"{path!r} is no regular file.", "Choose the path of a file."
            )
        yield file


def _foreign(path: str, block: bytes, remedy: str = _NOT_OURS) -> CheckpointError:
    if not block:
        what = "It is empty"
    elif block.startswith(_HDF5):
        what = "It is an HDF5 file from elsewhere"
    else:
        what = "It is something else, or its first bytes are damaged"
    return CheckpointError(
        f"{path!r} is no file of batchkit. {what}.", remedy, damaged=True
    )


def _checksum(first: bytes, data: bytes | memoryview) -> bytes:
    total = hashlib.sha256(first)
    total.update(memoryview(data)[_BLOCK:])
    return total.hexdigest().encode()


def _to_json(header: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"header: {error}. Its values must be what JSON has: text, finite numbers, "
            "booleans, None, lists and dicts. Give others as text or as arrays."
        ) from error
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"header: it has {len(text)} characters as JSON, and at most "
            f"{_MAX_HEADER} can be stored. Give what is long as arrays."
        )
    return text


def _from_json(text: str | np.ndarray) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"its header has {constant}, which JSON has not")

    if not isinstance(text, str) or len(text) > _MAX_HEADER:
        raise ValueError("its header is no text, or too long")
    header = json.loads(text, parse_constant=refuse)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _to_dataset(name: str, value: Any) -> Dataset:
    """Convert an array to numbers that HDF5 has, and attributes with its own type."""
    attributes: dict[str, str] = {}
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        impl = jax.random.key_impl(value)
        if not isinstance(impl, str):
            raise TypeError(
                f"arrays: {name!r} has keys of {impl!r}, which has no name to find it "
                "by; use an implementation that JAX knows, such as 'threefry2x32'."
            )
        attributes["prng_impl"] = impl
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.dtype.isbuiltin == 2:  # Registered with NumPy, as those of ml_dtypes are.
        attributes["dtype"] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    # A long double has bytes that mean nothing, and other machines have no such type.
    elif array.dtype.kind not in "biufc" or array.dtype.char in "gG":
        raise TypeError(
            f"arrays: {name!r} has dtype {array.dtype}, and only booleans and numbers "
            "of at most 64 bits, or complex pairs of them, can be stored."
        )
    return Dataset(array, attributes)


def _describe(item: Dataset) -> str:
    """Describe type, shape and content of a dataset, for the header.

    The CRC-32 shows that an address in the file was changed, with a checksum made anew.
    """
    if isinstance(item.value, str):
        raise ValueError("it has a text among its arrays")
    shape = list(item.value.shape)
    content = np.ascontiguousarray(item.value).reshape(-1).view(np.uint8)
    words = item.value.dtype.str, f"{shape}", *item.attributes.values()
    return " ".join([*words, f"crc32 {zlib.crc32(content.data):08x}"])


def _to_array(item: Dataset) -> np.ndarray | jax.Array:
    """Return a copy of a dataset's array, with the type that it had before."""
    array, attributes = np.array(item.value), dict(item.attributes)
    if array.dtype == bool and np.any(array.view(np.uint8) > 1):
        raise ValueError("it has booleans that are neither true nor false")
    name, impl = attributes.pop("dtype", None), attributes.pop("prng_impl", None)
    if attributes:
        raise ValueError(f"it has an attribute {min(attributes)!r}")
    if name is not None:
        dtype = np.dtype(name)
        if dtype.isbuiltin != 2 or array.dtype != np.dtype(f"u{dtype.itemsize}"):
            raise ValueError(f"it has {array.dtype} for {name!r}")
        array = array.view(dtype)
    if impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return array
