"""The names of parameters, from the pytree of their positions, and of functions."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey
from jaxtyping import PyTree

from .._util._formats import format_value


def parameter_names(positions: PyTree) -> tuple[str, ...]:
    """Name each number of a position, from arrays of shape `(n, ...)`, one row a point.

    The names are in the order of `jax.tree.leaves`, such as `lens.mass` and
    `lens.shear[0]`. An array without a name of its own is `x`.
    """
    return tuple(name for name, _ in columns(positions))


def count_numbers(positions: PyTree) -> str:
    """Format the number and the dtypes of the numbers of a position."""
    dtypes = sorted({str(x.dtype) for x in jax.tree.leaves(positions)})
    return f"{len(parameter_names(positions))} numbers ({', '.join(dtypes)})"


def leaves(positions: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each array of the positions with its name."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(positions):
        yield path_name(path), np.asarray(leaf)


def columns(positions: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each number of a position, and its values at all points."""
    for name, array in leaves(positions):
        for index in np.ndindex(array.shape[1:]):
            place = f"[{', '.join(map(str, index))}]" if index else ""
            yield name + place, array[(slice(None), *index)]


def pooled(samples: PyTree) -> PyTree:
    """Return the draws of all chains together, as arrays of shape `(draws, ...)`."""
    return jax.tree.map(lambda x: np.reshape(x, (-1, *np.shape(x)[2:])), samples)


def named_numbers(tree: PyTree) -> list[tuple[str, float]]:
    """Return the numbers of a pytree like one position, with their names."""
    rows = jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return [(name, float(x[0])) for name, x in columns(rows)]


def join_few(words: Sequence[str], most: int = 5) -> str:
    """Join words by commas, with a count of those beyond the first few."""
    hidden = len(words) - most
    text = ", ".join(words[:most])
    return f"{text} and {hidden} more" if hidden > 0 else text


def path_name(path: tuple[Any, ...]) -> str:
    """Return the name of a leaf or a node of a pytree; `x` for the whole of it."""
    name = ""
    for entry in path:
        match entry:
            case DictKey(key=str() as part) | GetAttrKey(name=part):
                name += f".{part}" if name else part
            case (
                DictKey(key=part) | FlattenedIndexKey(key=part) | SequenceKey(idx=part)
            ):
                name = f"{name or 'x'}[{part}]"
            case _:
                name = f"{name or 'x'}{entry}"
    return name or "x"


def qualified_name(function: Any) -> str:
    """Return the module and qualified name of a function, equal if it was rebuilt."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def setting_as_json(value: Any) -> Any:
    """Return a setting for JSON: a function by its name, an array by its shape."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if hasattr(value, "shape"):
        return f"an array of shape {value.shape}"
    return format_value(value)
