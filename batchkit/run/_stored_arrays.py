"""Arrays in the types that HDF5 has: names, conversion, and conversion back."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._hdf5 import MOST_GROUPS, Dataset


def check_names(arrays: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless all names can be places in one file."""
    for name in arrays:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError(
                f"arrays: {name!r} cannot name an array; a name is made of words with "
                "'/' between them, such as 'state/position'."
            )
        if len(parts) > MOST_GROUPS:
            raise ValueError(
                f"arrays: {name!r} has more than {MOST_GROUPS} words; join some."
            )
        for i in range(1, len(parts)):
            if (group := "/".join(parts[:i])) in arrays:
                raise ValueError(
                    f"arrays: {group!r} cannot be an array and hold {name!r}, too; "
                    "rename one of them."
                )


def store_array(name: str, value: Any) -> Dataset:
    """Return the numbers to store for an array, and the attributes that go with them.

    **Raises:**

    `TypeError` if its type cannot be stored.
    """
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


def describe(item: Dataset) -> str:
    """Describe type, shape and content of a stored array, for the header.

    The CRC-32 of its bytes shows a dataset whose address was changed, which a file
    checksum that was computed anew after the change does not.
    """
    if isinstance(item.value, str):
        raise ValueError("it has a text among its arrays")
    shape = list(item.value.shape)
    content = np.ascontiguousarray(item.value).reshape(-1).view(np.uint8)
    words = item.value.dtype.str, f"{shape}", *item.attributes.values()
    return " ".join([*words, f"crc32 {zlib.crc32(content.data):08x}"])


def load_array(item: Dataset) -> np.ndarray | jax.Array:
    """Return a copy of a stored array, with the type that it had before.

    **Raises:**

    `TypeError` or `ValueError` if it cannot be of that type.
    """
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
