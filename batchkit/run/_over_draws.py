"""A function of one position, computed for all draws of a result, in chunks.

Under one `jax.vmap` all intermediate values would be in memory at once: pointwise
log-likelihoods of 10,000 draws and 10,000 observations are 400 MB in float32, and what
they are computed from is several times that.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import PyTree

from ._arguments import in_short, kind_of, noting_position


# What the results of one chunk may occupy.
_BYTES: Final = 16 * 2**20


def log_likelihood_over_draws(
    function: Callable[[PyTree], PyTree], samples: PyTree, caller: str
) -> PyTree:
    """Pointwise log-likelihoods of all draws.

    **Arguments:**

    - `function`: from one position to an array with one number for each observation,
        or a pytree of such.
    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `caller`: the function that the user called.

    **Returns:**

    What `function` returns, on the host, with arrays of shape `(chains, draws, ...)`;
    `{"y": array}` for a bare array.

    **Raises:**

    `TypeError` if `function` cannot be called, or returns anything but arrays of
    numbers for observations.
    """
    if not callable(function):
        raise TypeError(
            f"{caller}(log_likelihood={in_short(function)}): log_likelihood must be a "
            "function from one position to an array of log-likelihoods, one for each "
            f"observation; got {kind_of(function)}."
        )
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
    shape = jax.tree.leaves(samples)[0].shape[:2]
    # As jit sees them: without x64 an array of float64 becomes one of float32.
    row = jax.eval_shape(lambda: jax.tree.map(lambda x: jax.numpy.asarray(x[0]), rows))
    with noting_position(caller, "log_likelihood", row):
        out = jax.eval_shape(function, row)
    leaves = jax.tree.leaves(out)
    if not leaves or any(
        x.ndim == 0 or not jax.numpy.issubdtype(x.dtype, np.floating) for x in leaves
    ):
        raise TypeError(
            f"{caller}(log_likelihood=...): log_likelihood must return floating-point "
            "arrays with one log-likelihood for each observation, such as `jax.scipy."
            f"stats.norm.logpdf(y, model(position))`; got {in_short(out)}. Do not sum "
            "over observations."
        )
    found = _over_rows(function, rows, math.prod(shape), out)
    found = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)
    return {"y": found} if isinstance(found, np.ndarray) else found


def _over_rows(
    function: Callable[[PyTree], PyTree], rows: PyTree, count: int, out: PyTree
) -> PyTree:
    """The results for all rows, as arrays of NumPy."""
    each = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(out))
    size = max(1, min(count, _BYTES // max(each, 1)))
    size = math.ceil(count / math.ceil(count / size))
    mapped = jax.jit(jax.vmap(function))
    result = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype), out)

    def put(to: np.ndarray, first: int, found: Any) -> None:
        to[first : first + size] = np.asarray(found)[: count - first]

    for first in range(0, count, size):
        # The last chunk repeats the last row, so that one program does for all.
        chosen = np.minimum(np.arange(first, first + size), count - 1)
        found = mapped(jax.tree.map(lambda x, chosen=chosen: x[chosen], rows))
        jax.tree.map(lambda to, x, first=first: put(to, first, x), result, found)
    return result
