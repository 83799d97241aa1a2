"""Pytrees as arrays with names, the form in which files hold them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._processes import on_host, several


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


def tree_of(name: str, arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    """The pytree that `named_arrays` took apart.

    **Arguments:**

    - `name`: the name that it had.
    - `arrays`: all arrays.
    - `like`: a pytree of the same structure, of anything.

    **Raises:**

    `KeyError` if an array is missing.
    """
    treedef = jax.tree.structure(like)
    leaves = [arrays[f"{name}/{i}"] for i in range(treedef.num_leaves)]
    return jax.tree.unflatten(treedef, leaves)


def _is_key(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
