"""Which rows belong to which shard."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int


def generator(rng_key: Any) -> np.random.Generator:
    """A generator of NumPy from a key of JAX."""
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(rng_key) if typed else rng_key
    return np.random.default_rng(np.asarray(data).ravel().tolist())


def order_of_rows(
    count: int, num_shards: int, strata: Any, rng: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """An order of the rows in which each shard is a contiguous part.

    At random, every row is as likely in one shard as in another. With strata, the rows
    of each are dealt out like cards, one to each shard in turn, and the next stratum is
    dealt on from where the one before has ended: shards differ by at most one row of
    any stratum, and by at most one in all.

    **Arguments:**

    - `count`: the number of rows.
    - `num_shards`: the number of shards.
    - `strata`: of each row the label of its stratum, or None.
    - `rng`: what is random comes from it.
    """
    mixed = rng.permutation(count)
    if strata is None:
        return mixed
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    dealt = mixed[np.argsort(labels[mixed], kind="stable")]
    # Which rows of a stratum come first, and so to which shard, the mixing decides.
    return np.concatenate([dealt[s::num_shards] for s in range(num_shards)])
