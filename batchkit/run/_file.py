"""One checkpoint as one HDF5 file, which is either whole or refused.

HDF5 has checksums for some of its parts only, and its library may crash on a file that
is damaged in the others. So the checksum here is over the bytes of the file, whatever
they mean, and the library sees none before they have been found to be those that were
written. HDF5 lets a file begin with a block for the user, which its readers skip; there
the checksum stands, as text:

    batchkit checkpoint
    format 1
    bytes 104129
    sha256 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae

The sum is over the lines above it and the bytes after the block. Every later format
begins in the same way, so that an older batchkit can tell newer from damaged.

Behind the block stands an ordinary HDF5 file: the text of a JSON object in `header`,
and the arrays in the groups of `arrays`. What HDF5 has no type for is stored as the
integers that it consists of, with its name in an attribute: `dtype` for the types of
`ml_dtypes`, such as bfloat16, and `prng_impl` for keys.

The file is put together in memory. The library's own writing would leave a file half
written, and a library that does not recover, when the disk is full.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Final

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from ._checkpoint import CheckpointError
from ._disk import disk_errors, put, remove, sync_folder_of


FORMAT: Final = 1

_BLOCK: Final = 512
_SIGNATURE: Final = b"batchkit checkpoint\n"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_WRITTEN: Final = re.compile(
    rb"(batchkit checkpoint\nformat (\d{1,9})\nbytes (\d{1,18})\n)"
    rb"sha256 ([0-9a-f]{64})\n *\n"
)
# What is left to do when a checkpoint cannot be used; a result has another way out.
_FRESH: Final = "start over with `fresh=True`"
_NOT_OURS: Final = "Choose another path, or move this file away."


def write_file(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Writes a checkpoint; a file that is there is replaced whole or not at all.

    **Arguments:**

    - `path`: the file.
    - `header`: names and values that JSON has: text, numbers, booleans, `None`, lists
        and dicts of them. A tuple comes back as a list.
    - `arrays`: names and arrays, of JAX or NumPy; `"/"` in a name makes a group.

    **Raises:**

    `CheckpointError` if it cannot be written; `TypeError` and `ValueError` if it cannot
    be stored.
    """
    path = os.path.realpath(path)
    data = encode(header, arrays)
    with disk_errors("write", path):
        put(f"{path}.tmp", data)
        try:
            os.replace(f"{path}.tmp", path)
        except BaseException:
            remove(f"{path}.tmp")
            raise
        sync_folder_of(path)


def read_file(
    path: str | os.PathLike[str], otherwise: str = _FRESH
) -> tuple[dict[str, Any], dict[str, np.ndarray | jax.Array]]:
    """The header and the arrays of a checkpoint.

    **Arguments:**

    - `path`: the file.
    - `otherwise`: what errors say can be done without the file; by default to start
        over.

    **Returns:**

    The arrays are NumPy's, with the bits, shape and dtype that were written; typed keys
    are arrays of keys.

    **Raises:**

    `CheckpointError` if there is no file, if it cannot be read, is no checkpoint, is
    damaged, or has a newer format.
    """
    path = os.fspath(path)
    return decode(path, sound_bytes(path, otherwise), otherwise)


def sound_bytes(path: str, otherwise: str = _FRESH) -> bytes:
    """All bytes of a checkpoint that are as they were written.

    **Raises:**

    `CheckpointError`, as `read_file` does.
    """
    again = (
        f"{otherwise[0].upper()}{otherwise[1:]}, or put a sound copy of the file in "
        "its place."
    )
    with disk_errors("read", path), open(path, "rb") as file:
        data = file.read()
    if not data.startswith(_SIGNATURE):
        what = (
            "It is empty"
            if not data
            else "It is an HDF5 file from elsewhere"
            if data.startswith(_HDF5)
            else "It is something else, or its first bytes are damaged"
        )
        raise CheckpointError(
            f"{path!r} is no file of batchkit. {what}.", _NOT_OURS, damaged=True
        )
    written = _WRITTEN.fullmatch(data[:_BLOCK])
    if written is None:
        raise CheckpointError(
            f"{path!r} is damaged: its first {_BLOCK} bytes are not as they were "
            "written.",
            again,
            damaged=True,
        )
    if len(data) != int(written[3]):
        raise CheckpointError(
            f"{path!r} is damaged: it has {len(data)} bytes of {int(written[3])}.",
            again,
            damaged=True,
        )
    if _sum(written[1], data) != written[4]:
        raise CheckpointError(
            f"{path!r} is damaged: its bytes are not those that were written, by their "
            "checksum.",
            again,
            damaged=True,
        )
    if int(written[2]) > FORMAT:
        raise CheckpointError(
            f"{path!r} has format {int(written[2])}, and this batchkit reads formats "
            f"up to {FORMAT}.",
            f"Use the batchkit that wrote it, or a newer one; or {otherwise}.",
        )
    return data


def looks_foreign(path: str) -> bool:
    """Whether a file has something in it, and that something is not a checkpoint."""
    with disk_errors("read", path), open(path, "rb") as file:
        start = file.read(len(_SIGNATURE))
    return start not in (b"", _SIGNATURE)


def encode(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> memoryview:
    """The bytes of a checkpoint; see `write_file`."""
    text = _json(header)
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=_BLOCK) as file:
        file.attrs["format"] = "batchkit checkpoint"
        file.attrs["format_version"] = FORMAT
        file["header"] = text
        group = file.create_group("arrays")
        for name in _checked(arrays):
            _store(group, name, arrays[name])
    data = image.getbuffer()
    first = _SIGNATURE + f"format {FORMAT}\nbytes {len(data)}\n".encode()
    block = first + b"sha256 " + _sum(first, data) + b"\n"
    data[:_BLOCK] = block.ljust(_BLOCK - 1) + b"\n"
    return data


def decode(
    path: str, data: bytes, otherwise: str = _FRESH
) -> tuple[dict[str, Any], dict[str, np.ndarray | jax.Array]]:
    """The header and the arrays in the bytes of a sound checkpoint; see `read_file`."""
    arrays: dict[str, np.ndarray | jax.Array] = {}

    def load(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = _load(item)

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            header = json.loads(str(_dataset(file, "header").asstr()[()]))
            _group(file, "arrays").visititems(load)
    # The checksum was right: whoever wrote this has more types or keys than we do.
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path!r} is sound, but cannot be understood: {error}.",
            f"Use the versions of batchkit and JAX that wrote it; or {otherwise}.",
        ) from error
    return header, arrays


def _sum(first: bytes, data: bytes | memoryview) -> bytes:
    total = hashlib.sha256(first)
    total.update(memoryview(data)[_BLOCK:])
    return total.hexdigest().encode()


def _json(header: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(header), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"header: {error}. Its values must be what JSON has: text, finite numbers, "
            "booleans, None, lists and dicts. Give others as text or as arrays."
        ) from error


def _checked(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays, if their names can be places in one file."""
    for name in arrays:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError(
                f"arrays: {name!r} cannot name an array; a name is made of words with "
                "'/' between them, such as 'state/position'."
            )
        for i in range(1, len(parts)):
            if (group := "/".join(parts[:i])) in arrays:
                raise ValueError(
                    f"arrays: {group!r} cannot be an array and hold {name!r}, too; "
                    "rename one of them."
                )
    return arrays


def _store(group: h5py.Group, name: str, value: Any) -> None:
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
    dataset = group.create_dataset(name, data=array)
    for key, attribute in attributes.items():
        dataset.attrs[key] = attribute


def _load(dataset: h5py.Dataset) -> np.ndarray | jax.Array:
    # In this way also a single number comes back as an array.
    array = np.empty(dataset.shape, dataset.dtype)
    if array.size:
        dataset.read_direct(array)
    if "dtype" in dataset.attrs:
        array = array.view(np.dtype(str(dataset.attrs["dtype"])))
    if "prng_impl" in dataset.attrs:
        impl = str(dataset.attrs["prng_impl"])
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return array


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise LookupError(f"{name!r} is no dataset")
    return dataset


def _group(file: h5py.File, name: str) -> h5py.Group:
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise LookupError(f"{name!r} is no group")
    return group
