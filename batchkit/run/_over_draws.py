"""Functions of one position, mapped over the draws of a result.

Under one `jax.vmap` all intermediate values would be in memory at once: pointwise
log-likelihoods of 10,000 draws and 10,000 observations are 400 MB in float32, and the
intermediate values take several times that. So draws are mapped in chunks, and results
move to the host after each. `batchkit.Chunked` would keep them all on the device.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._checks import check_type
from .._util._formats import format_value
from ..batchers import AbstractBatcher, Vmap
from ._arguments import noting_position
from ._program import Program, program_cache


# The user's function from one position to what is shown in its place.
Transform = Callable[[PyTree], PyTree] | None

# For the results of one chunk.
_BYTES: Final = 16 * 2**20
_VMAP: Final = Vmap()


def transformed(
    transform: Transform,
    samples: PyTree,
    caller: str,
    dims: int = 2,
) -> PyTree:
    """Map the user's `transform` over draws; without one, return the draws.

    `samples` has arrays of `dims` axes, `(chains, draws)` or `(points,)`, and those of
    a position.
    """
    if transform is None:
        return samples

    def check(out: PyTree) -> None:
        leaves = jax.tree.leaves(out)
        real = jnp.floating, jnp.integer, jnp.bool_
        if not leaves or not all(
            any(jnp.issubdtype(x.dtype, kind) for kind in real) for x in leaves
        ):
            raise TypeError(
                f"{caller}(transform=...): transform must return real numbers, as an "
                "array or as a pytree of arrays, such as a dict by name; got "
                f"{format_value(out)}."
            )

    return _over_draws(transform, samples, caller, "transform", dims, check)


def log_likelihoods_of(
    function: Callable[[PyTree], PyTree], samples: PyTree, caller: str
) -> PyTree:
    """Map `log_likelihood` over draws; a bare array becomes `{"y": array}`."""

    def check(out: PyTree) -> None:
        leaves = jax.tree.leaves(out)
        if not leaves or any(
            x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating) for x in leaves
        ):
            raise TypeError(
                f"{caller}(log_likelihood=...): log_likelihood must return "
                "floating-point arrays with one log-likelihood for each observation, "
                "such as `jax.scipy.stats.norm.logpdf(y, model(position))`; got "
                f"{format_value(out)}. Do not sum over observations."
            )

    found = _over_draws(function, samples, caller, "log_likelihood", 2, check)
    return {"y": found} if isinstance(found, np.ndarray) else found


def with_derived(
    draws: PyTree, derived_fn: Callable[[PyTree], PyTree], batcher: AbstractBatcher
) -> Any:
    """Return draws with the quantities derived from them; see `NestedRun.posterior`."""
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
    return Program(batcher(function), program_cache("over draws", function, batcher))


def _over_draws(
    function: Callable[[PyTree], PyTree],
    samples: PyTree,
    caller: str,
    argument: str,
    dims: int,
    check: Callable[[PyTree], None],
) -> PyTree:
    """Map a function over all draws; `check` raises for the shapes of one result."""
    rule = "a function of one position"
    check_type(callable(function), caller, argument, function, rule)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[dims:]), samples)
    shape = jax.tree.leaves(samples)[0].shape[:dims]
    # Without x64, jit makes float32 of float64.
    row = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.asarray(x[0]), rows))
    with noting_position(caller, argument, row):
        out = jax.eval_shape(function, row)
    check(out)
    count = math.prod(shape)
    each = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(out))
    size = max(1, min(count, _BYTES // max(each, 1)))
    # As many chunks, but of equal sizes.
    size = math.ceil(count / math.ceil(count / size))
    mapped = _mapped(function, _VMAP)
    result = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype), out)
    for first in range(0, count, size):
        # The last chunk repeats the last row: all chunks have one shape, one program.
        places = np.minimum(np.arange(first, first + size), count - 1)
        found = mapped(jax.tree.map(lambda x, places=places: x[places], rows))
        for to, x in zip(jax.tree.leaves(result), jax.tree.leaves(found), strict=True):
            to[first : first + size] = np.asarray(x)[: count - first]
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), result)
