"""Packing: small arrays share a buffer of machine words.

The loop over lanes carries many small arrays. On an accelerator each of them that is
read and replaced in a turn costs a copy, and each that is written to the results a
kernel, however small it is. So they are columns of one array of 32-bit words, or of
64-bit words, whatever their dtypes. Their bits do not change.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, Final, final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._basic_blocks import Value


# Larger arrays keep a buffer of their own: moving them costs more than a kernel.
_MAX_BYTES: Final = 256


@final
class Packing:
    """An arrangement of values in buffers: small ones share one."""

    def __init__(self, values: Sequence[Value], alone: Collection[Value] = ()) -> None:
        """Arrange values, of which those in `alone` keep a buffer of their own."""
        self._values = list(values)
        groups: dict[Any, list[Value]] = {}
        for x in values:
            is_small = x.bytes <= _MAX_BYTES and x not in alone
            word = _word(x.dtype) if is_small else None
            groups.setdefault(id(x) if word is None else word, []).append(x)
        self._groups = list(groups.values())

    def zeros(self, *lead: int) -> list[Array]:
        """Return empty buffers, with some leading axes."""
        return self.pack([x.zeros(*lead) for x in self._values], len(lead))

    def pack(self, arrays: Sequence[Any], lead: int = 1) -> list[Array]:
        """Put an array for each value into buffers; its first `lead` axes stay."""
        array_of = dict(zip(self._values, arrays, strict=True))
        buffers: list[Array] = []
        for group in self._groups:
            members = [array_of[x] for x in group]
            if len(group) > 1:
                shape = jnp.shape(members[0])[:lead]
                words = [_to_words(x, array_of[x]).reshape(*shape, -1) for x in group]
                members = [jnp.concatenate(words, axis=lead)]
            buffers += members
        return buffers

    def unpack(self, buffers: Sequence[Any], lead: int = 1) -> list[Array]:
        """Take the arrays out of their buffers, in the order of the values."""
        array_of: dict[Value, Array] = {}
        for group, buffer in zip(self._groups, buffers, strict=True):
            if len(group) == 1:
                array_of[group[0]] = buffer
                continue
            start = 0
            for x in group:
                stop = start + _num_words(x)
                words = jax.lax.slice_in_dim(buffer, start, stop, axis=lead)
                array_of[x] = _from_words(x, words, buffer.shape[:lead])
                start = stop
        return [array_of[x] for x in self._values]


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _key_shape(x: Value) -> tuple[int, ...]:
    """Return the shape of the data of a key."""
    return jax.eval_shape(lambda: jax.random.key_data(x.zeros())).shape


def _word(dtype: Any) -> Any:
    """Return the type of the words that hold a dtype; None if it is not packed."""
    if _is_key(dtype) or dtype == jnp.bool_:
        return jnp.int32
    if jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jax.dtypes.float0:
        return None
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    return {4: jnp.int32, 8: jnp.int64}.get(dtype.itemsize)


def _num_words(x: Value) -> int:
    if _is_key(x.dtype):
        return math.prod(_key_shape(x))
    return x.size


def _to_words(x: Value, array: Any) -> Array:
    if _is_key(x.dtype):
        array = jax.random.key_data(array)
    elif x.dtype == jnp.bool_:
        return array.astype(jnp.int32)
    return jax.lax.bitcast_convert_type(array, _word(x.dtype))


def _from_words(x: Value, words: Any, lead: tuple[int, ...]) -> Array:
    if x.dtype == jnp.bool_:
        return words.reshape(*lead, *x.shape) != 0
    if _is_key(x.dtype):
        data = jax.lax.bitcast_convert_type(words, jnp.uint32)
        data = data.reshape(*lead, *_key_shape(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x.zeros()))
    return jax.lax.bitcast_convert_type(words, x.dtype).reshape(*lead, *x.shape)
