"""The file of a result or a checkpoint: an HDF5 file with a checksum over all bytes.

HDF5 has checksums for some of its parts only, but a file may begin with a block for the
user, which readers of HDF5 skip. Ours has 512 bytes, filled up with spaces:

    batchkit checkpoint
    format 1
    bytes 104129
    header 103200 929
    sha256 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae

The sum is over the lines above it and the bytes after the block. `header` has the place
and the length of the text of a JSON object. Places count bytes from the start of the
file. Every later format begins in the same way, so that an older batchkit can tell
newer from damaged.

After the block comes an ordinary HDF5 file: the JSON text as `header`, and the arrays
in the groups of `arrays`, each in one piece. The JSON object has `contents`, a list of
all arrays in the order of their places:

    [2048, "state/1", "<u2", [5, 3], {"dtype": "bfloat16"}]

These are its place, name, NumPy type, shape and attributes in HDF5. What HDF5 has no
type for is stored as unsigned integers: types of `ml_dtypes`, whose name is the
attribute `dtype`, and typed keys of JAX, whose implementation is `prng_impl`. An array
without elements has no bytes; its place is the end of the block.

Arrays are read by `contents`, not by the structure of HDF5, which is for other tools. A
checksum protects against accidents and not against an author: anybody can compute it,
and the HDF5 library would follow a crafted file to other files, to memory that is only
declared, and to a crash of the interpreter. So the library only writes. Before a file
is found to be ours only its first block is read, and then as many bytes as it has. As
arrays are listed in order and overlap nowhere, they take no more memory than the file;
the sizes of one without elements are bounded, too.

The file is put together in memory. The library's own writing would leave a partial
file, and a library that does not recover, when the disk is full.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from ._checkpoint import CheckpointError


_FULL: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Missing permission, or a read-only file system.
FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING: Final = {errno.ENOENT, errno.ENOTDIR}
FORMAT: Final = 1

_BLOCK: Final = 512
_SIGNATURE: Final = b"batchkit checkpoint\n"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_WRITTEN: Final = re.compile(
    rb"(?P<first>batchkit checkpoint\nformat (?P<format>\d{1,9})\n"
    rb"bytes (?P<bytes>\d{1,18})\nheader (?P<place>\d{1,18}) (?P<length>\d{1,9})\n)"
    rb"sha256 (?P<sum>[0-9a-f]{64})\n *\n"
)
# The types that arrays have in files, by NumPy's text for them. HDF5 has them all.
# Texts are looked up here because NumPy parses others: as structures, or as Python.
_DTYPES: Final = {
    np.dtype(f"{order}{kind}").str: np.dtype(f"{order}{kind}")
    for order in "<>"
    for kind in (
        *("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
        *("f2", "f4", "f8", "c8", "c16"),
    )
}
# HDF5 has no arrays with more dimensions.
_MAX_RANK: Final = 32
# Sizes of an array without elements that a file of any length may have.
_SMALL: Final = 2**20
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
    path: str,
    data: bytes | memoryview,
    new: str = "",
    before_rename: Callable[[], None] | None = None,
) -> None:
    """Replace a file, whole or not at all, and wait until the disk has it.

    `before_rename` is called when the new bytes are on the disk, in the file `new`,
    `path + ".tmp"` by default.
    """
    new = new or f"{path}.tmp"
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
        if size != int(written["bytes"]):
            raise damaged(f"it has {size} bytes of {int(written['bytes'])}")
        try:
            file.seek(0)
            data = file.read(size)
        except MemoryError as error:
            raise CheckpointError(
                f"{path!r} has {size} bytes, for which there is no memory.",
                "Read it on a machine with more memory.",
            ) from error
    if _checksum(written["first"], data) != written["sum"]:
        raise damaged("its bytes are not those that were written, by their checksum")
    if (newer := int(written["format"])) > FORMAT:
        raise CheckpointError(
            f"{path!r} has format {newer}, and this batchkit reads formats "
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
    stored = {name: _to_stored(name, x) for name, x in arrays.items()}
    contents: list[list[Any]] = []
    image = io.BytesIO()
    # The oldest layout of HDF5, which every tool reads.
    with h5py.File(image, "w", userblock_size=_BLOCK, libver="earliest") as file:
        file.attrs["format"] = "batchkit checkpoint"
        file.attrs["format_version"] = FORMAT
        file.create_group("arrays")
        for name, (array, attributes) in stored.items():
            dataset = file.create_dataset(f"arrays/{name}", data=array)
            dataset.attrs.update(attributes)
            place = _place_of(dataset, array)
            contents.append([place, name, array.dtype.str, array.shape, attributes])
        text = _to_json({**header, "contents": sorted(contents)})
        array = np.array(text)
        place = _place_of(file.create_dataset("header", data=array), array)
    size = image.seek(0, os.SEEK_END)
    for name, (array, _) in stored.items():
        if not _is_shape(array.shape, size):
            raise ValueError(
                f"arrays: {name!r} has shape {array.shape}, and of an array without "
                f"elements the product of the other sizes can be at most "
                f"{max(size, _SMALL)}, the bytes of the file. Leave it out."
            )
    image.seek(place)
    if image.read(len(text)) != text:
        raise _unknown_layout("header")
    data = image.getbuffer()
    first = f"format {FORMAT}\nbytes {len(data)}\nheader {place} {len(text)}\n"
    first = _SIGNATURE + first.encode()
    block = first + b"sha256 " + _checksum(first, data) + b"\n"
    data[:_BLOCK] = block.ljust(_BLOCK - 1) + b"\n"
    return data


def _place_of(dataset: h5py.Dataset, array: np.ndarray) -> int:
    """Return the place in the file of the bytes of an array that HDF5 has stored."""
    if array.size == 0:
        return _BLOCK
    place = dataset.id.get_offset()
    size, dtype = dataset.id.get_storage_size(), dataset.dtype
    # A later library may store arrays otherwise: an error now is better than on
    # resuming.
    if place is None or (size, dtype) != (array.nbytes, array.dtype):
        raise _unknown_layout(str(dataset.name))
    return place


def _unknown_layout(name: str) -> CheckpointError:
    version = f"h5py {h5py.version.version} with HDF5 {h5py.version.hdf5_version}"
    return CheckpointError(
        f"{version} stores {name!r} in a form that batchkit could not read again.",
        "Install another version of h5py.",
    )


def decode(
    path: str, data: bytes, otherwise: str = _FRESH
) -> tuple[dict[str, Any], dict[str, np.ndarray | jax.Array]]:
    """Return header and arrays from sound bytes; see `read_file`."""
    with understood(path, otherwise):
        written = _WRITTEN.fullmatch(data[:_BLOCK])
        assert written is not None
        start, length = int(written["place"]), int(written["length"])
        end = start + length
        if not (start >= _BLOCK and end <= len(data) and length <= _MAX_HEADER):
            raise ValueError("its header is where no header can be, or too long")
        header = _from_json(data[start:end])
        return header, _arrays_in(data, header.pop("contents"), start, end)


def _arrays_in(
    data: bytes, contents: Any, header_start: int, header_end: int
) -> dict[str, np.ndarray | jax.Array]:
    """Return copies of the arrays that a header lists, or raise `ValueError`."""
    arrays: dict[str, np.ndarray | jax.Array] = {}
    free = _BLOCK
    for entry in contents:
        match entry:
            case [int(place), str(name), str(text), list(shape), dict(attributes)] if (
                text in _DTYPES and _is_shape(shape, len(data)) and name not in arrays
            ):
                dtype, count = _DTYPES[text], math.prod(shape)
            case _:
                raise ValueError(
                    f"its list of arrays has {entry!r}, which has a mistake, is too "
                    "large, or has the name of another one"
                )
        end = place + count * dtype.itemsize
        in_header = place < header_end and header_start < end
        if place < free or end > len(data) or in_header:
            raise ValueError(f"its array {name!r} is where no array can be")
        free = end
        # A copy, which is aligned and does not keep the bytes of the file.
        array = np.frombuffer(data, dtype, count, place).reshape(shape).copy()
        arrays[name] = _from_stored(name, array, attributes)
    return arrays


def _is_shape(sizes: Sequence[Any], size_of_file: int) -> bool:
    """Return whether an array in a file can have a shape, with elements or without."""
    # Also without elements: XLA takes memory for the other sizes. The bound on each of
    # them keeps the product small, as JSON has numbers of thousands of digits.
    limit = max(size_of_file, _SMALL)
    return (
        len(sizes) <= _MAX_RANK
        and all(type(n) is int and 0 <= n <= limit for n in sizes)
        and math.prod(n for n in sizes if n) <= limit
    )


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


def _to_json(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(header, allow_nan=False).encode("ascii")
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


def _from_json(text: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"its header has {constant}, which JSON has not")

    # As text: of bytes, `json` guesses the encoding.
    header = json.loads(text.decode("ascii"), parse_constant=refuse)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _to_stored(name: str, value: Any) -> tuple[np.ndarray, dict[str, str]]:
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
    if array.dtype.str not in _DTYPES:
        raise TypeError(
            f"arrays: {name!r} has dtype {array.dtype}, and only booleans and numbers "
            "of at most 64 bits, or complex pairs of them, can be stored."
        )
    return array, attributes


def _from_stored(
    name: str, array: np.ndarray, attributes: dict[str, Any]
) -> np.ndarray | jax.Array:
    """Return an array with the type that it had before, or raise `ValueError`."""
    if array.dtype == bool and np.any(array.view(np.uint8) > 1):
        raise ValueError(f"its array {name!r} has booleans other than 0 and 1")
    match [*attributes.items()]:
        case []:
            return array
        case [("dtype", str(word))]:
            # Looked up, as NumPy would parse other texts.
            dtype = np.dtype(np.sctypeDict.get(word, object))
            if dtype.isbuiltin == 2 and array.dtype == np.dtype(f"u{dtype.itemsize}"):
                return array.view(dtype)
        # JAX would cut integers of 64 bits down to 32.
        case [("prng_impl", str(word))] if array.dtype == np.uint32:
            return jax.random.wrap_key_data(jnp.asarray(array), impl=word)
    raise ValueError(f"its array {name!r} of {array.dtype} cannot have {attributes!r}")
