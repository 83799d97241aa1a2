"""Likelihoods evaluated, slices exhausted, and distances moved by the inner chains.

A chain begins at a live point above the contour, and its kernel leaves the distribution
of such points invariant. So its end has the right distribution after any number of
steps, and no test of where new points lie, such as that of their ranks, detects too few
of them. Too few correlate a new point with the one it began at, which only a comparison
of start and end shows.

blackjax returns neither. So `run_nested` wraps the function that makes one step of a
chain, and the wrapper returns where the step began and ended beside its info.

Distances are relative to those between independent points, as in the diagnostic of
UltraNest's step samplers (Buchner 2024, arXiv:2402.11936; UltraNest 4.5,
`ultranest.stepsampler`). It divides the distance from start to end, in coordinates
whitened by the live points, by the radius that joins neighbouring live points, takes
the geometric mean, and requires half of the ratios to be above one. Here the squared
distance is divided by that between independent points, twice the variance, one
parameter at a time, and the mean is arithmetic. For `E (x_j - x_0)^2 = 2 var(x) (1 -
rho_j)`, the expected squared jump distance of Pasarica and Gelman (2010, Statistica
Sinica 20, 343-364), the ratio after `j` steps is one minus the autocorrelation at lag
`j`, which means the same in any number of dimensions: neighbours are nearly as far
apart as independent points in 10 dimensions, and much closer in 2.
"""

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree


# At most so many numbers of a position are recorded: the records of all chains and
# inner steps stay in memory until the step of the nested sampler ends.
_MAX_NUMBERS: Final = 64


def evaluations_of(update_info: Any) -> Int[Array, ""] | None:
    """Count the likelihoods that were evaluated to replace the points of some steps.

    A slice of stepping out (Neal 2003, Annals of Statistics 31(3), 705-767, figures 3
    and 5) evaluates both ends of its bracket, each end that it moves to, and each point
    that it proposes: `2 + expansions + shrinks`. A sweep over the coordinates
    (`blackjax.nsswig`) is one slice a coordinate. An inner kernel that proposes and
    rejects evaluates one likelihood a step. Of an unknown kernel the result is None.
    `update_info` is that of an `NSInfo` of blackjax. It works under `jax.jit`.
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


@final
class ChainCounts(NamedTuple):
    """The number of chains that made a new point, and sums over how they moved.

    - `chains`: all chains, each of which has made one new point.
    - `exhausted`: those with a slice that found no point above the contour within
        `max_shrinkage` proposals. Zero if the inner kernel has no slices.
    - `distances`: for each inner step, the squared distance from the start of the chain
        to where that step ended, divided by twice the variance of the live points; the
        mean over parameters, summed over chains. Empty if that is not recorded.
    - `products`: for each parameter, the start of the chain times its end, both in
        standard deviations of the live points from their mean, summed over chains. Of
        positions of more than 64 numbers, 64 evenly spread.
    """

    chains: Int[Array | np.ndarray, ""]
    exhausted: Int[Array | np.ndarray, ""]
    distances: Float[Array | np.ndarray, " steps"]
    products: Float[Array | np.ndarray, " numbers"]

    @property
    def moved(self) -> Any:
        """The mean squared distance from the start after each inner step.

        In units of that between independent points: one minus the autocorrelation.
        """
        return self.distances / self.chains

    @property
    def correlations(self) -> Any:
        """The correlation between start and end of a chain, for each parameter."""
        return self.products / self.chains

    @property
    def has_moves(self) -> bool:
        """True if there are chains whose moves were recorded."""
        return int(self.chains) > 0 and len(self.products) > 0


@final
class Recorded(NamedTuple):
    """Info of one step of a chain, with the points before and after it.

    It has the attributes of the kernel's own info, which a user's function may read,
    such as one that adapts the kernel.
    """

    kernel_info: Any
    before: Float[Array, "*chains numbers"]
    after: Float[Array, "*chains numbers"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel_info, name)


def recorded(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the step of a chain to return `Recorded` as its info."""

    @functools.wraps(step)
    def recorded_step(rng_key: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        new, info = step(rng_key, state, *args, **kwargs)
        return new, Recorded(info, _numbers(state.position), _numbers(new.position))

    return recorded_step


def update_info_of(info: Any) -> Any:
    """Return the infos of the chains from the info of a step, in either layout."""
    if hasattr(info, "update_info"):
        return info.update_info
    # The fork has the infos of its slices beside the positions that they made.
    inner = getattr(info, "inner_kernel_info", ())
    return getattr(inner, "info", inner)


def chain_counts(update_info: Any, live: PyTree = ()) -> ChainCounts | None:
    """Count the chains of a step of a nested sampler, and sum how they moved.

    `update_info` is that of an `NSInfo` of blackjax, whose last axis is that of the
    inner steps, and `live` has the positions of the live points after the step. Only
    `run_nested` records where chains begin and end; otherwise the sums have no entries.
    Of an unknown kernel the result is None. It works under `jax.jit`, and the counts of
    several steps add up.
    """
    if not hasattr(update_info, "is_accepted"):
        return None
    exhausted = jnp.any(~jnp.asarray(update_info.is_accepted), axis=-1)
    if not hasattr(update_info, "num_shrink"):
        exhausted = jnp.zeros_like(exhausted)
    sums = jnp.zeros(0), jnp.zeros(0)
    if isinstance(update_info, Recorded):
        sums = _sums(update_info, live)
    return ChainCounts(
        jnp.asarray(np.size(exhausted), jnp.int32),
        jnp.sum(exhausted, dtype=jnp.int32),
        *sums,
    )


def describe_moves(counts: ChainCounts) -> str:
    """Format how far chains have moved, after a few of their steps, in one line."""
    moved = np.sqrt(np.maximum(np.asarray(counts.moved, float), 0.0))
    last = len(moved)
    steps = [2**i for i in range(last.bit_length()) if 2**i < last] + [last]
    distances = ", ".join(f"{moved[step - 1]:.2f} after {step}" for step in steps)
    return (
        f"chains move {distances} inner steps, in units of the distance between "
        "independent points; the correlation between their start and end is "
        f"{np.mean(counts.correlations):.2f}"
    )


def compared_numbers(size: int) -> np.ndarray:
    """Return the indices of the numbers of a position that are compared, of `size`."""
    return np.linspace(0, size - 1, min(size, _MAX_NUMBERS)).astype(int)


def _sums(chains: Recorded, live: PyTree) -> tuple[Any, Any]:
    points = jax.vmap(_numbers)(live)
    mean, variance = jnp.mean(points, axis=0), jnp.var(points, axis=0, ddof=1)
    # A parameter that is equal in all live points has no scale, and is left out.
    varies = variance > 0
    inverse = jnp.where(varies, 1 / variance, 0.0)
    start, end = chains.before[:, 0], chains.after[:, -1]
    squares = (chains.after - start[:, None]) ** 2 * inverse / 2
    products = (start - mean) * (end - mean) * inverse
    distances = jnp.mean(squares, axis=-1, where=varies)  # NaN if none varies
    return jnp.sum(jnp.nan_to_num(distances), axis=0), jnp.sum(products, axis=0)


def _numbers(position: PyTree) -> Float[Array, " numbers"]:
    flat, _ = jax.flatten_util.ravel_pytree(position)
    return flat[compared_numbers(flat.size)]
