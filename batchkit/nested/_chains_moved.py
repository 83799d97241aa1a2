"""Whether the chains that make new points have moved."""

from typing import Any, NamedTuple, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


@final
class ChainCounts(NamedTuple):
    """How many chains have made a new point, and how many of them had trouble.

    ```python
    import jax.numpy as jnp
    from batchkit.nested import ChainCounts

    counts = ChainCounts(jnp.array(8), jnp.array(1), jnp.array(0))
    twice = ChainCounts(*(a + b for a, b in zip(counts, counts)))
    assert twice.chains == 16
    ```

    - `chains`: all chains, each of which has made one new point.
    - `exhausted`: those with a slice that found no point above the contour within
        `max_shrinkage` proposals. Zero where the inner kernel has no slices.
    - `unmoved`: those that ended where they had begun. The new point is a copy of one
        of the live points.
    """

    chains: Int[Array | np.ndarray, ""]
    exhausted: Int[Array | np.ndarray, ""]
    unmoved: Int[Array | np.ndarray, ""]


def chain_counts(update_info: Any) -> ChainCounts | None:
    """Counts the chains of some steps of a nested sampler, and those that had trouble.

    It works under `jax.jit`, and the counts of several steps add up. A sweep over the
    coordinates (`blackjax.nsswig`) counts as not moved where any of its slices failed,
    for no more is known of it.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    from batchkit.nested import chain_counts

    algorithm = blackjax.nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -jnp.sum((x - 1) ** 2),
        num_inner_steps=6,
        num_delete=4,
    )
    state = jax.jit(algorithm.init)(jax.random.normal(jax.random.key(0), (20, 2)))
    state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    counts = chain_counts(info.update_info)
    assert (counts.chains, counts.unmoved) == (4, 0)
    ```

    **Arguments:**

    - `update_info`: the `update_info` of an `NSInfo` of blackjax, whose last axis is
        that of the inner steps.

    **Returns:**

    The counts; None where the inner kernel does not tell.
    """
    if not hasattr(update_info, "is_accepted"):
        return None
    failed = ~jnp.asarray(update_info.is_accepted)
    exhausted = jnp.any(failed, axis=-1)
    if not hasattr(update_info, "num_shrink"):
        exhausted = jnp.zeros_like(exhausted)
    return ChainCounts(
        jnp.asarray(np.size(exhausted)),
        jnp.sum(exhausted),
        jnp.sum(jnp.all(failed, axis=-1)),
    )
