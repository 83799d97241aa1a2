"""How often a nested sampler has evaluated the likelihood."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


def evaluations_of(update_info: Any) -> Int[Array, ""] | None:
    """Counts the likelihoods that were evaluated to replace the points of some steps.

    A slice of stepping out (Neal 2003, Annals of Statistics 31(3), 705-767, figures 3
    and 5) looks at both ends of its bracket, at each end it moves on to, and at each
    point it proposes: `2 + expansions + shrinks`. A sweep over the coordinates
    (`blackjax.nsswig`) is one slice a coordinate. An inner kernel that proposes and
    rejects evaluates one likelihood a step. It works under `jax.jit`.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    from batchkit.nested import evaluations_of

    algorithm = blackjax.nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -jnp.sum((x - 1) ** 2),
        num_inner_steps=6,
        num_delete=4,
    )
    state = jax.jit(algorithm.init)(jax.random.normal(jax.random.key(0), (20, 2)))
    state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    # At least one proposal and two ends in each of 4 x 6 slices.
    assert evaluations_of(info.update_info) >= 4 * 6 * 3
    ```

    **Arguments:**

    - `update_info`: the `update_info` of an `NSInfo` of blackjax, of one step or of
        several.

    **Returns:**

    The number; None where the inner kernel is not known.
    """
    if hasattr(update_info, "num_shrink") and hasattr(update_info, "num_expansions"):
        # A sweep adds up the counts of its slices, but has an end for each of them.
        slices = sum(
            np.size(leaf) for leaf in jax.tree.leaves(update_info.bracket_left)
        )
        counted = jnp.sum(update_info.num_expansions) + jnp.sum(update_info.num_shrink)
        return counted + 2 * slices
    if hasattr(update_info, "num_shrink") and hasattr(update_info, "num_steps"):
        # The fork of the Handley lab counts the ends of brackets with the expansions.
        return jnp.sum(update_info.num_steps) + jnp.sum(update_info.num_shrink)
    if hasattr(update_info, "is_accepted"):
        return jnp.asarray(np.size(update_info.is_accepted))
    return None
