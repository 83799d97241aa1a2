"""Starts of shards at which a density is not finite, or no sum over rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..chains import StartError
from ..chains._draws import named_numbers
from ..run._names import columns
from ._rows import check_likelihood


# Of the likelihoods of single rows, which are sums over many numbers themselves.
_ROUNDING = 1e-3


def check_starts(
    found: tuple[Any, PyTree],
    positions: PyTree,
    chains: int,
    logprior_fn: Callable[[PyTree], Any],
) -> None:
    """Raises if a log-density, or its gradient, is not finite where a chain starts.

    **Arguments:**

    - `found`: the log-densities of all tasks and their gradients.
    - `positions`: where they start, arrays of shape `(tasks, ...)`.
    - `chains`: how many chains a shard has.
    - `logprior_fn`: the logarithm of the prior.
    """
    values = np.asarray(found[0])
    slopes = dict(columns(found[1]))
    bad_slopes = np.any([~np.isfinite(x) for x in slopes.values()], axis=0)
    bad = np.flatnonzero(~np.isfinite(values) | bad_slopes)
    if not bad.size:
        return
    first = int(bad[0])
    shard, chain = divmod(first, chains)
    position = jax.tree.map(lambda x: x[first], positions)
    named = dict(named_numbers(position))
    names = [name for name, x in slopes.items() if not np.isfinite(x[first])]
    names = [x for x in named if not np.isfinite(named[x])] or names or list(named)
    told = ", ".join(f"{name} = {named[name]:.4g}" for name in names[:5])
    told += f" and {len(names) - 5} more" if len(names) > 5 else ""
    if np.isfinite(values[first]):
        what = "the gradient of the log-density is not finite"
    else:
        prior = float(logprior_fn(position))
        which = "the prior is" if not np.isfinite(prior) else "the likelihood is"
        what = f"the log-density is {values[first]:g} ({which} not finite)"
    shards = sorted({int(x) // chains for x in bad})
    others = f" So it is in shards {', '.join(map(str, shards[:10]))}."
    raise StartError(
        f"run_shards: in shard {shard}, where chain {chain} starts, {what}: look at "
        f"{told}.{others if len(shards) > 1 else ''} Start inside of the support of "
        "the prior and of every row of the shard, and look for a `jnp.where` whose "
        "branch not taken divides by zero.",
        sorted({int(x) % chains for x in bad}),
        names,
    )


def check_additive(
    loglikelihood_fn: Callable[[PyTree, PyTree], Any], position: PyTree, rows: PyTree
) -> None:
    """Raises if the likelihood of two rows is not the sum of theirs."""
    if jax.tree.leaves(rows)[0].shape[0] < 2:
        return
    position = jax.tree.map(jnp.asarray, position)

    def of(begin: int, end: int) -> float:
        some = jax.tree.map(lambda x: jnp.asarray(x[begin:end]), rows)
        value = loglikelihood_fn(position, some)
        check_likelihood(value)
        return float(value)

    both, first, second = of(0, 2), of(0, 1), of(1, 2)
    rounding = _ROUNDING * (1 + abs(first) + abs(second))
    if abs(both - first - second) > rounding:
        raise ValueError(
            f"run_shards(loglikelihood_fn=...): the log-likelihood of two rows, "
            f"{both:.6g}, is not the sum of those of each, {first:.6g} and "
            f"{second:.6g}. Shards need a sum over rows: no mean, nothing that is "
            "counted once for all rows (that belongs in the prior), and nothing that "
            "rows have in common."
        )
