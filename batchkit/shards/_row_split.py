"""Rows of data split into parts, and the log-likelihood of the rows of one part.

Data are cut into parts of equal shape, though their numbers of rows differ by one: the
shorter ones repeat a real row at their end. The rows that every part has are passed to
the likelihood together. The last row, which only some have, is passed by itself, and
where it is a repetition `where` leaves its value out.

That alone would not keep it out of the gradient: in reverse mode the cotangent of what
is left out is zero, and zero times an infinite derivative is NaN. So the parameters go
through a `where` of their own, whose derivative leaves out any cotangent.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..run._arguments import common_length


def generator(rng_key: Any) -> np.random.Generator:
    """Return a generator of NumPy seeded by a key of JAX."""
    is_typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(rng_key) if is_typed else rng_key
    return np.random.default_rng(np.asarray(data).ravel().tolist())


def order_of_rows(
    count: int, num_shards: int, strata: Any, rng: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Return a random order of rows in which each shard is a contiguous part.

    With strata, the rows of each are assigned to the shards in turn, and the next
    stratum continues where the one before has ended: shards differ by at most one row
    of any stratum, and by at most one in all.
    """
    mixed = rng.permutation(count)
    if strata is None:
        return mixed
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    # A stable sort keeps the rows of a stratum mixed.
    by_stratum = mixed[np.argsort(labels[mixed], kind="stable")]
    return np.concatenate([by_stratum[s::num_shards] for s in range(num_shards)])


def split_table(
    rows: int, parts: int
) -> tuple[Int[np.ndarray, "parts full"], Int[np.ndarray, "parts 1"] | None]:
    """Return the row numbers that all parts have, and the last one of longer parts.

    Longer parts come first. The others repeat a row in place of the last one, which is
    None if all parts are of one size.
    """
    full, longer = divmod(rows, parts)
    place = np.arange(parts)[:, None]
    first = place * full + np.minimum(place, longer)
    table = first + np.arange(full)
    if not longer:
        return table, None
    return table, first + np.where(place < longer, full, full - 1)


def take_rows(data: PyTree, index: Int[np.ndarray, "..."]) -> PyTree:
    """Return the rows of each array with these numbers, on the host."""
    return jax.tree.map(lambda x: as_array(x)[index], data)


def as_array(leaf: Any) -> np.ndarray:
    """Return an array on the host, in the dtype that it has on a device."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def sum_over_rows(
    loglikelihood_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    rows: PyTree,
    last: PyTree,
    has_last: Bool[Array, ""] | bool,
) -> Float[Array, ""]:
    """Return the log-likelihood of the rows of one part.

    The last row, an array of shape `(1, ...)` or None, is not in one array with the
    others: to cut it off takes a copy of these, where XLA passes them to a product of
    matrices.
    """

    def of(params: PyTree, rows: PyTree) -> Any:
        value = loglikelihood_fn(params, rows)
        check_likelihood(value)
        return value

    if last is None:
        return of(params, rows)
    guarded = jax.tree.map(
        lambda x: jnp.where(has_last, x, jax.lax.stop_gradient(x)), params
    )
    of_last = of(guarded, last)
    of_last = jnp.where(has_last, of_last, jnp.zeros_like(of_last))
    if jax.tree.leaves(rows)[0].shape[0] == 0:
        return of_last
    return of(params, rows) + of_last


def check_likelihood(value: Any) -> None:
    """Raise `TypeError` if a likelihood has not returned one real number."""
    if not _is_real(value):
        raise TypeError(
            "loglikelihood_fn(params, rows) must return one real number, a scalar, for "
            f"any number of rows; got {_kind_of(value)}. Sum over the rows, as in "
            "`jnp.sum(...)`."
        )


def check_logprior(value: Any) -> None:
    """Raise `TypeError` if a prior has not returned one real number."""
    # A flat prior may be a number of Python.
    if not isinstance(value, int | float) and not _is_real(value):
        raise TypeError(
            "logprior_fn(params) must return one real number, a scalar; got "
            f"{_kind_of(value)}. Sum over the parameters, as in `jnp.sum(...)`."
        )


def _is_real(value: Any) -> bool:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and shape == ()


def _kind_of(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{dtype} of shape {value.shape}"


def check_functions(owner: str, **functions: Any) -> None:
    """Raise `TypeError` if one of the functions is none."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"{owner}({name}={function!r}): {name} must be a function; got "
                f"{type(function).__name__}."
            )


def count_rows(owner: str, data: PyTree) -> int:
    """Return the number of rows of data; raise if they are not arrays of equal length.

    `owner` is the function that the data are an argument of.
    """
    check = functools.partial(_check_array, owner)
    count = common_length(owner, "data", data, "rows", check)
    if count == 0:
        raise ValueError(
            f"{owner}(data=...): there are 0 rows. Pass data with at least one."
        )
    return count


def _check_array(owner: str, name: str, leaf: Any) -> None:
    if isinstance(leaf, Tracer):
        raise TypeError(
            f"{owner}(data=...): {name} is an array that is being traced, and rows are "
            "assigned to their parts on the host. Do it outside of `jax.jit` and other "
            "transformations, and pass the result as an argument."
        )
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{owner}(data=...): {name} is masked in {np.ma.count_masked(leaf):,} "
            "places, and masks are ignored. Leave those rows out, or fill in the "
            "values and make the mask an array of the data."
        )
    dtype = getattr(leaf, "dtype", None)
    is_numeric = isinstance(dtype, np.dtype) and any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_)
    )
    # Sparse matrices have a shape and a dtype, but are no arrays.
    if not is_numeric or not hasattr(leaf, "shape") or not hasattr(leaf, "__array__"):
        got = dtype if isinstance(leaf, np.ndarray | jax.Array) else type(leaf).__name__
        raise TypeError(
            f"{owner}(data=...): {name} must be an array of numbers, of NumPy or "
            f"JAX; got {got}. Of a table take the values, as in "
            "`table.to_numpy()`, of a list make an array, as in "
            "`np.asarray(values)`, and give categories numbers."
        )
    if len(leaf.shape) == 0:
        raise ValueError(
            f"{owner}(data=...): {name} is a scalar, without an axis for the rows. "
            "What is the same for all rows, the functions can close over."
        )
