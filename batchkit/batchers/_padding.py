"""Padding of the last chunk, and its removal, with a derivative that is safe from NaN.

Padded rows repeat real ones: zeros could give NaN or a loop that never ends. In reverse
mode a plain slice gives padded rows a cotangent of zero, and zero times an infinite
derivative is NaN, which would spread to the gradient of every array that the rows
share. So the derivative of the slice splits each cotangent evenly over the copies of
its row. The derivative is linear, so the copies add up to the gradient of the row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped


def pad_rows(rows: Shaped[Array, "n ..."], total: int) -> Shaped[Array, "total ..."]:
    """Append copies of the first rows, as often as needed, up to `total` rows."""
    size = rows.shape[0]
    if total == size:
        return rows
    # Slicing and concatenating is cheaper than a gather, but reaches one copy only.
    if total <= 2 * size:
        return jnp.concatenate([rows, rows[: total - size]])
    return rows[np.arange(total) % size]


def cut_rows(padded: Shaped[Array, "total ..."], size: int) -> Shaped[Array, "n ..."]:
    """Return the first `size` rows of a result computed from `pad_rows`."""
    if padded.shape[0] == size:
        return padded
    # Other dtypes have no derivative; typed keys have no arithmetic either.
    if jnp.issubdtype(padded.dtype, jnp.inexact):
        return _cut_inexact_rows(padded, size)
    return padded[:size]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cut_inexact_rows(padded: Array, size: int) -> Array:
    return padded[:size]


@_cut_inexact_rows.defjvp
def _(size: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (padded,), (tangent,) = primals, tangents
    row_of = np.arange(padded.shape[0]) % size
    copies = np.bincount(row_of)[row_of].reshape(-1, *[1] * (padded.ndim - 1))
    share = tangent / copies.astype(tangent.dtype)
    return padded[:size], share[:size].at[row_of[size:]].add(share[size:])
