"""Pytrees as arrays with names, the form in which files hold them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._processes import on_host, several
from ._structure import take_apart


def to_host(tree: PyTree) -> PyTree:
    """A pytree of arrays as arrays of NumPy; keys stay keys.

    Of arrays that are spread over several processes, each of them gets the whole; all
    have to ask for it.
    """
    if several():
        tree = on_host(tree)
    return jax.tree.map(lambda x: x if _is_key(x) else np.asarray(x), tree)


def named_arrays(name: str, tree: PyTree) -> dict[str, Any]:
    """The arrays of a pytree under names made of one name and a number."""
    leaves = jax.tree.leaves(to_host(tree))
    return {f"{name}/{i}": leaf for i, leaf in enumerate(leaves)}


def array_names(name: str, tree: PyTree) -> PyTree:
    """The names that `named_arrays` gives, in place of the arrays of a pytree."""
    treedef = jax.tree.structure(tree)
    names = [f"{name}/{i}" for i in range(treedef.num_leaves)]
    return jax.tree.unflatten(treedef, names)


def names_to_save(tree: PyTree) -> Any:
    """A pytree of names of arrays as JSON has it; None if it has no such form.

    With it a file can be read by those who do not have the sampler. `put_together` and
    a look at the arrays make the pytree again.
    """
    try:
        return take_apart("names", tree, {})
    except (TypeError, ValueError):
        return None


def tree_of(name: str, arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    """The pytree that `named_arrays` took apart.

    **Arguments:**

    - `name`: the name that it had.
    - `arrays`: all arrays.
    - `like`: a pytree of the same structure, of shapes and dtypes.

    **Raises:**

    `KeyError` if an array is missing, `ValueError` if one is of another shape or dtype.
    """
    leaves, treedef = jax.tree.flatten(like)
    found = []
    for i, leaf in enumerate(leaves):
        array = arrays[f"{name}/{i}"]
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"its array {name}/{i} is {array.dtype} of shape {array.shape} and not "
                f"{leaf.dtype} of shape {leaf.shape}"
            )
        found.append(array)
    return jax.tree.unflatten(treedef, found)


def _is_key(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
