"""Combined draws moved to where the gradient of all data says that they belong.

Combining draws is right for Gaussian factors. The bias for others grows with the number
of shards, and is soon as large as the posterior is wide: the mean of a shard and the
width that weighs it are not independent. Where the posterior truly is, its log-density
tells: over draws of any density, the mean of the gradient of its logarithm is zero
(Stein 1972; integrate by parts). So the draws are shifted, all by the same, until that
holds, by Newton's method with their covariance for the inverse of the curvature,

    shift += covariance @ mean over draws of gradient(draw + shift).

Where the draws are much wider than the posterior that step is too long, and repeated it
would lead ever farther away. So steps are short enough at first, what the gradients
tell of the curvature along the way goes into the next one (the update of Broyden,
Fletcher, Goldfarb and Shanno: Nocedal and Wright 2006, Numerical Optimization, 6.17), a
step beyond the place is taken back, and draws are only moved if in the end the next
step would be short.

Each step takes a gradient of all rows at two hundred draws, and there are mostly two to
four, where sampling takes many thousands. In the Gaussian case it also takes the noise
out of the mean. Widths stay as they are; the gradients of the last step say what they
should be (`_gradients.py`).
"""

from collections.abc import Callable
from typing import Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import Float, PyTree


# Draws over which gradients are averaged, in every step or where there are no steps,
# and how often at most.
_DRAWS: Final = 200
_DRAWS_AT_ONCE: Final = 400
_STEPS: Final = 16
# The length of the next step, in standard deviations, at which it is good enough, and
# above which no place has been found.
_CLOSE: Final = 0.01
_SETTLED: Final = 0.05
# The longest step, in standard deviations: gradients far out in tails tell little.
_LONGEST: Final = 2.0


@final
class Refined(NamedTuple):
    """Draws, and the gradients of all data at some of them.

    - `samples`: the draws, arrays of shape `(chains, draws, ...)`.
    - `shift`: by how many standard deviations each number has been moved, or None.
    - `draws`: the same draws as one array, chain by chain.
    - `places`: the indices of those near which gradients were computed.
    - `some`: where that was, with the mean of all draws.
    - `gradients`: the gradients there.
    """

    samples: PyTree
    shift: Float[np.ndarray, " dim"] | None
    draws: Float[np.ndarray, "draws dim"]
    places: np.ndarray
    some: Float[np.ndarray, "few dim"]
    gradients: Float[np.ndarray, "few dim"]


def refined(
    samples: PyTree, gradients_fn: Callable[[PyTree], PyTree], refine: bool = True
) -> Refined:
    """Move draws to where they belong, and return the gradients there.

    **Arguments:**

    - `samples`: combined draws, arrays of shape `(chains, draws, ...)`.
    - `gradients_fn`: from positions, arrays of shape `(positions, ...)`, to the
        gradients of the log-density of all data at them, of the same shapes.
    - `refine`: whether draws are moved; otherwise only gradients are computed.

    **Returns:**

    A `Refined`. The draws are as they were, and `shift` is None, if they are not to be
    moved, if a gradient is not finite where they are, or if no place is found where the
    mean gradient is zero.
    """
    leaves, treedef = jax.tree.flatten(samples)
    count = leaves[0].shape[0] * leaves[0].shape[1]
    flat = [np.reshape(x, (count, -1)).astype(np.float64) for x in leaves]
    sizes = np.cumsum([x.shape[1] for x in flat])[:-1]
    x = np.concatenate(flat, axis=1)
    # Moved as a whole, draws have the mean of all; some have one of their own.
    most = _DRAWS if refine else _DRAWS_AT_ONCE
    places = np.linspace(0, count - 1, min(most, count)).astype(int)
    some = x[places] - np.mean(x[places], axis=0) + np.mean(x, axis=0)

    def as_positions(y: np.ndarray) -> PyTree:
        parts = np.split(y, sizes, axis=1)
        made = [
            part.reshape(len(y), *leaf.shape[2:]).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, made)

    def gradients_at(y: np.ndarray) -> np.ndarray:
        found = jax.tree.leaves(gradients_fn(as_positions(y)))
        return np.concatenate(
            [np.asarray(g, np.float64).reshape(len(y), -1) for g in found], axis=1
        )

    if not refine:
        return Refined(samples, None, x, places, some, gradients_at(some))
    root = np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))
    place, gradients, is_settled = _search(root, lambda y: gradients_at(some + y))
    if not is_settled:
        return Refined(samples, None, x, places, some, gradients)
    away = root @ place
    moved = as_positions(x + away)
    moved = jax.tree.map(lambda a, b: a.reshape(b.shape), moved, samples)
    shift = away / np.std(x, axis=0, ddof=1)
    return Refined(moved, shift, x + away, places, some + away, gradients)


def _search(
    root: np.ndarray, gradients_at: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Newton's method for where the mean gradient is zero.

    **Arguments:**

    - `root`: of the covariance of the draws. Where draws have unit covariance, so do
        steps: the first is the mean gradient.
    - `gradients_at`: the gradients at the draws, all moved by the same.

    **Returns:**

    The place before `root`, the gradients at the draws there, and whether the next step
    would be short. If not, the gradients are those at the draws that were not moved.
    """
    place = np.zeros(len(root))
    gradients = first = gradients_at(root @ place)
    slope = root.T @ np.mean(gradients, axis=0)
    inverse = np.eye(len(place))  # of the negative second derivative
    longest = _LONGEST
    for _ in range(_STEPS - 1):
        step = inverse @ slope
        length = np.linalg.norm(step)
        if not length > _CLOSE:
            break
        step = step * min(1.0, longest / length)
        there = gradients_at(root @ (place + step))
        found = root.T @ np.mean(there, axis=0)
        if not np.all(np.isfinite(found)):
            longest = min(length, longest) / 4
            continue
        inverse = _updated(inverse, step, slope - found)
        # Farther than half way back from the end of the step, it was too long.
        if found @ step > -0.5 * (slope @ step):
            place, slope, gradients = place + step, found, there
        else:
            longest = min(length, longest) / 2
    if np.linalg.norm(inverse @ slope) < _SETTLED:
        return place, gradients, True
    return np.zeros(len(root)), first, False


def _updated(inverse: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The inverse, such that it takes the change of the slope for that of the place."""
    curvature = step @ change
    if not curvature > 0:
        return inverse
    other = np.eye(len(step)) - np.outer(step, change) / curvature
    return other @ inverse @ other.T + np.outer(step, step) / curvature
