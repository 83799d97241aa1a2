"""The key of a run."""

from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import in_short, kind_of


def check_key(rng_key: Any, caller: str, name: str = "rng_key") -> None:
    """Raises if it is not one key of JAX.

    **Arguments:**

    - `rng_key`: what was given for it.
    - `caller`: the function that it was given to.
    - `name`: the name of the argument.
    """
    dtype, shape = getattr(rng_key, "dtype", None), getattr(rng_key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and dtype != jnp.uint32:
        raise TypeError(
            f"{caller}({name}={in_short(rng_key)}): {name} must be a key of JAX, "
            f"such as jax.random.key(0); got {kind_of(rng_key)}."
        )
    assert shape is not None
    if len(shape) != (0 if typed else 1):
        raise ValueError(
            f"{caller}({name}=...): {name} must be one key; got an array of shape "
            f"{shape}. The keys that are needed are made from it."
        )
