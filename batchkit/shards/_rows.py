"""Rows of data, and the log-likelihood of those that are real.

Data are cut into parts of equal shape, though their numbers of rows differ by one: the
shorter ones repeat a real row at their end. The rows that every part has are given to
the likelihood together. The last one, which not all have, is given alone, and where it
is a repetition its value is left out by `where`.

That alone would not keep it out of the gradient: in reverse mode the cotangent of what
is left out is zero, and zero times an infinite derivative is NaN. So the parameters go
through a `where` of their own, whose derivative leaves out whatever comes back.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree


def count_rows(owner: str, data: PyTree) -> int:
    """The number of rows of data, or an error.

    **Arguments:**

    - `owner`: what the data are an argument of, such as `"ShardedData"`.
    - `data`: a pytree of arrays of shape `(rows, ...)`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError(
            f"{owner}(data={data!r}): there is no array in data. Pass a pytree of "
            "arrays of shape (rows, ...)."
        )
    sizes: dict[str, int] = {}
    for path, leaf in leaves:
        name = f"data{jax.tree_util.keystr(path)}"
        dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
        _check_whole(owner, name, leaf)
        # Sparse matrices have both, and are no arrays.
        if shape is None or not hasattr(leaf, "__array__") or not _is_numeric(dtype):
            kind = type(leaf).__name__
            got = dtype if isinstance(leaf, np.ndarray | jax.Array) else kind
            raise TypeError(
                f"{owner}(data=...): {name} must be an array of numbers, of NumPy or "
                f"JAX; got {got}. Of a table take the values, as in "
                "`table.to_numpy()`, of a list make an array, as in "
                "`np.asarray(values)`, and give categories numbers."
            )
        if len(shape) == 0:
            raise ValueError(
                f"{owner}(data=...): {name} is a scalar, without an axis for the rows. "
                "What is the same for all rows, the functions can close over."
            )
        sizes[name] = shape[0]
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(
            f"{owner}(data=...): all arrays must have the same number of rows, but "
            f"{told}. Rows are counted along axis 0."
        )
    count = next(iter(sizes.values()))
    if count == 0:
        raise ValueError(
            f"{owner}(data=...): there are 0 rows. Pass data with at least one."
        )
    return count


def _check_whole(owner: str, name: str, leaf: Any) -> None:
    """Raises if the values of an array, or some of them, are not there."""
    if isinstance(leaf, Tracer):
        raise TypeError(
            f"{owner}(data=...): {name} is an array that is being traced, and the rows "
            "of data are dealt out on the host. Do it outside of `jax.jit` and other "
            "transformations, and pass what comes out as an argument."
        )
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{owner}(data=...): {name} is masked in {np.ma.count_masked(leaf):,} "
            "places, and masks are not looked at. Leave those rows out, or fill in the "
            "values and make the mask an array of the data."
        )


def as_array(leaf: Any) -> np.ndarray:
    """The leaf on the host, in the dtype that it has on a device."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def take(data: PyTree, index: np.ndarray) -> PyTree:
    """The rows of each array with these numbers, on the host."""
    return jax.tree.map(lambda x: as_array(x)[index], data)


def starts_of_parts(rows: int, parts: int) -> Int[np.ndarray, " edges"]:
    """Where each part begins, the longer ones first, and where the last one ends."""
    full, longer = divmod(rows, parts)
    place = np.arange(parts + 1)
    return place * full + np.minimum(place, longer)


def table_of_parts(rows: int, parts: int) -> Int[np.ndarray, "parts share"]:
    """The number of each row of each part; shorter parts repeat a row at their end."""
    starts = starts_of_parts(rows, parts)
    share = -(-rows // parts)
    table = starts[:-1, None] + np.arange(share)
    last = np.maximum(starts[1:, None] - 1, 0)
    return np.minimum(table, last)


def sum_over_rows(
    loglikelihood_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    rows: PyTree,
    last: PyTree,
    is_real: Bool[Array, ""] | bool,
) -> Float[Array, ""]:
    """The log-likelihood of the rows of one part.

    The last row lies apart from the others: to cut it off takes a copy of these, where
    XLA hands them to a product of matrices.

    **Arguments:**

    - `loglikelihood_fn`: a function of parameters and rows, additive over rows.
    - `params`: the parameters.
    - `rows`: those that all parts have, arrays of shape `(rows, ...)`, maybe without
        any.
    - `last`: the row that not all parts have, arrays of shape `(1, ...)`, or None.
    - `is_real`: whether it is there.
    """

    def of(params: PyTree, rows: PyTree) -> Any:
        value = loglikelihood_fn(params, rows)
        check_likelihood(value)
        return value

    if last is None:
        return of(params, rows)
    held = jax.tree.map(
        lambda x: jnp.where(is_real, x, jax.lax.stop_gradient(x)), params
    )
    alone = of(held, last)
    alone = jnp.where(is_real, alone, jnp.zeros_like(alone))
    if jax.tree.leaves(rows)[0].shape[0] == 0:
        return alone
    return of(params, rows) + alone


def apart(data: PyTree, full: int) -> tuple[PyTree, PyTree]:
    """The rows that all parts have, and the one that not all have; None without one.

    **Arguments:**

    - `data`: arrays of shape `(parts, full, ...)` or `(parts, full + 1, ...)`.
    - `full`: how many rows all parts have.
    """
    first = jax.tree.map(lambda x: x[:, :full], data)
    if jax.tree.leaves(data)[0].shape[1] == full:
        return first, None
    return first, jax.tree.map(lambda x: x[:, full:], data)


def check_likelihood(value: Any) -> None:
    """Raises if it is not one real number."""
    if not _is_real(value):
        raise TypeError(
            "loglikelihood_fn(params, rows) must return one real number, a scalar, for "
            f"any number of rows; got {_told(value)}. Sum over the rows, as in "
            "`jnp.sum(...)`."
        )


def check_logprior(value: Any) -> None:
    """Raises if it is not one real number; that of a flat prior may be Python's."""
    if not isinstance(value, int | float) and not _is_real(value):
        raise TypeError(
            "logprior_fn(params) must return one real number, a scalar; got "
            f"{_told(value)}. Sum over the parameters, as in `jnp.sum(...)`."
        )


def _is_real(value: Any) -> bool:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and shape == ()


def _told(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{dtype} of shape {value.shape}"


def check_functions(owner: str, **functions: Any) -> None:
    """Raises if one of them is no function."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"{owner}({name}={function!r}): {name} must be a function; got "
                f"{type(function).__name__}."
            )


def _is_numeric(dtype: Any) -> bool:
    if dtype is None or not isinstance(dtype, np.dtype):
        return False
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
