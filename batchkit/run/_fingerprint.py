"""What tells one problem from another: its functions, its data, and where it starts.

A function is known by its jaxpr for one position, with the values of the data that it
closes over. Neither its name nor its place in memory counts, and nothing of the layout,
so that a run may go on with another batcher, or after a restart.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers._digest import digest
from ._program import shapes_of


def of_function(fun: Callable[..., Any], *args: Any) -> str:
    """The digest of a function for arguments of some shapes."""
    return digest(jax.make_jaxpr(fun)(*shapes_of(args)), values=True)


def of_arrays(tree: PyTree) -> str:
    """The digest of a pytree of arrays: its structure, shapes, dtypes and values."""
    leaves, treedef = jax.tree.flatten(tree)
    found = hashlib.sha256(str(treedef).encode())
    for leaf in leaves:
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            found.update(str(jax.random.key_impl(leaf)).encode())
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def of_words(*words: Any) -> str:
    """The digest of values that are told by their `repr`."""
    return hashlib.sha256(repr(words).encode()).hexdigest()
