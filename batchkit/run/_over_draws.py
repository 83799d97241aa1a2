"""A function of one position, mapped over the draws of a result.

Under one `jax.vmap` all intermediate values would be in memory at once: pointwise
log-likelihoods of 10,000 draws and 10,000 observations are 400 MB in float32, and what
they are computed from is several times that. So draws are mapped in chunks, unless a
batcher says how.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Vmap
from ._arguments import in_short, kind_of, noting_position
from ._kept import kept_for
from ._program import Program


# What the results of one chunk may occupy.
_BYTES: Final = 16 * 2**20
_VMAP: Final = Vmap()


def _check_numbers(out: PyTree, begin: str) -> None:
    leaves = jax.tree.leaves(out)
    real = jnp.floating, jnp.integer, jnp.bool_
    if not leaves or not all(
        any(jnp.issubdtype(x.dtype, kind) for kind in real) for x in leaves
    ):
        raise TypeError(
            f"{begin} real numbers, as an array or as a pytree of arrays, such as a "
            f"dict by name; got {in_short(out)}."
        )


def _check_observations(out: PyTree, begin: str) -> None:
    leaves = jax.tree.leaves(out)
    if not leaves or any(
        x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating) for x in leaves
    ):
        raise TypeError(
            f"{begin} floating-point arrays with one log-likelihood for each "
            "observation, such as `jax.scipy.stats.norm.logpdf(y, model(position))`; "
            f"got {in_short(out)}. Do not sum over observations."
        )


def over_draws(
    function: Callable[[PyTree], PyTree],
    samples: PyTree,
    caller: str,
    argument: str = "transform",
    *,
    dims: int = 2,
    check: Callable[[PyTree, str], None] = _check_numbers,
) -> PyTree:
    """Return the results of a function for all draws, as arrays of NumPy.

    **Arguments:**

    - `function`: from one position to a pytree of arrays of real numbers.
    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `caller`: the function that the user called.
    - `argument`: its argument that the function was given as.
    - `dims`: the number of axes in front of those of a position: two by default, or
        one of points.
    - `check`: a function of the shapes of one result and the beginning of a message,
        which raises if they are wrong; by default they must be real numbers.

    **Returns:**

    What `function` returns, with the same axes in front.

    **Raises:**

    `TypeError` if `function` cannot be called, or returns anything but arrays of real
    numbers.
    """
    if not callable(function):
        raise TypeError(
            f"{caller}({argument}={in_short(function)}): {argument} must be a function "
            f"of one position; got {kind_of(function)}."
        )
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[dims:]), samples)
    shape = jax.tree.leaves(samples)[0].shape[:dims]
    # As jit sees them: without x64 an array of float64 becomes one of float32.
    row = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.asarray(x[0]), rows))
    with noting_position(caller, argument, row):
        out = jax.eval_shape(function, row)
    check(out, f"{caller}({argument}=...): {argument} must return")
    found = _over_rows(function, rows, math.prod(shape), out)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)


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
    found = over_draws(
        function, samples, caller, "log_likelihood", check=_check_observations
    )
    return {"y": found} if isinstance(found, np.ndarray) else found


def with_derived(
    draws: PyTree, derived_fn: Callable[[PyTree], PyTree], batcher: AbstractBatcher
) -> Any:
    """Positions and what is derived from them; see `NestedRun.posterior`."""
    derived = _mapped(derived_fn, batcher)(draws)
    if not (isinstance(draws, dict) and isinstance(derived, dict)):
        return draws, derived
    if twice := sorted(str(name) for name in draws.keys() & derived.keys()):
        raise ValueError(
            f"posterior(derived_fn=...): {', '.join(twice)} would replace the "
            "parameters of that name. Return the derived quantities under other "
            "names."
        )
    return {**draws, **derived}


def _mapped(function: Callable[[PyTree], PyTree], batcher: AbstractBatcher) -> Program:
    """Return a function over rows, which a second call does not compile again."""
    kept = kept_for("over draws", function, batcher)
    return Program(batcher(function), kept)


def _over_rows(
    function: Callable[[PyTree], PyTree], rows: PyTree, count: int, out: PyTree
) -> PyTree:
    """The results for all rows, as arrays of NumPy."""
    each = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(out))
    size = max(1, min(count, _BYTES // max(each, 1)))
    size = math.ceil(count / math.ceil(count / size))
    mapped = _mapped(function, _VMAP)
    result = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype), out)

    def put(to: np.ndarray, first: int, found: Any) -> None:
        to[first : first + size] = np.asarray(found)[: count - first]

    for first in range(0, count, size):
        # The last chunk repeats the last row, so that one program does for all.
        chosen = np.minimum(np.arange(first, first + size), count - 1)
        found = mapped(jax.tree.map(lambda x, chosen=chosen: x[chosen], rows))
        jax.tree.map(lambda to, x, first=first: put(to, first, x), result, found)
    return result
