"""A shift of combined draws, found by Newton's method on the gradient of all data.

Combining draws is right for Gaussian factors. The bias for others grows with the number
of shards, and is soon as large as the posterior is wide: the mean of a shard and the
width that weighs it are not independent. The log-density of all data corrects the mean:
over draws of any density, the mean of the gradient of its logarithm is zero (Stein
1972; integrate by parts). So all draws are shifted by the same, until that holds, with
their covariance for the inverse of the curvature,

    shift += covariance @ mean over draws of gradient(draw + shift).

Where draws are much wider than the posterior, that step is too long, and repeated steps
would diverge. So the first steps are short, the inverse curvature is updated along the
way (Broyden, Fletcher, Goldfarb and Shanno: Nocedal and Wright 2006, Numerical
Optimization, 6.17), a step too far is taken back, and draws are only moved if in the
end the next step would be short.

Each step takes a gradient of all rows at two hundred draws, and there are mostly two to
four, where sampling takes many thousands. In the Gaussian case it also takes the noise
out of the mean. Widths stay as they are; `_gradients.py` checks them by the gradients
of the last step.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int, PyTree

from ._combine import as_matrix


# The draws over which gradients are averaged in each step, or in all without steps.
_DRAWS: Final = 200
_DRAWS_AT_ONCE: Final = 400
_STEPS: Final = 16
# The length of the next step, in standard deviations, at which the search ends, and
# above which it has failed.
_CLOSE: Final = 0.01
_SETTLED: Final = 0.05
# The longest step, in standard deviations: gradients far out in tails are no guide.
_LONGEST: Final = 2.0


@final
class Refined(NamedTuple):
    """Draws, and the gradients of all data at some of them.

    - `samples`, `draws`: the draws, as arrays of shape `(chains, draws, ...)`, and as
        one array, chain by chain.
    - `shift`: by how many standard deviations each number was moved, or None.
    - `some`, `places`: the positions where gradients were computed, draws shifted to
        have the mean of all, and the indices of these draws.
    - `gradients`: the gradients there.
    """

    samples: PyTree
    shift: Float[np.ndarray, " dim"] | None
    draws: Float[np.ndarray, "draws dim"]
    places: Int[np.ndarray, " few"]
    some: Float[np.ndarray, "few dim"]
    gradients: Float[np.ndarray, "few dim"]


def refined(
    samples: PyTree, gradients_fn: Callable[[PyTree], PyTree], refine: bool = True
) -> Refined:
    """Shift draws to where the mean gradient is zero, and return the gradients there.

    Draws stay, and `shift` is None, if `refine` is False, if a gradient is not finite
    at the draws, or if the search fails.

    **Arguments:**

    - `samples`: combined draws, arrays of shape `(chains, draws, ...)`.
    - `gradients_fn`: from positions, arrays of shape `(positions, ...)`, to the
        gradients of the log-density of all data at them, of the same shapes.
    - `refine`: whether draws are moved.
    """
    matrix, to_samples = as_matrix(samples, 2)
    x = matrix.reshape(-1, matrix.shape[-1])
    count = _DRAWS if refine else _DRAWS_AT_ONCE
    places = np.linspace(0, len(x) - 1, min(count, len(x))).astype(int)
    # With the mean of all draws, since that is what the shift corrects.
    some = x[places] - np.mean(x[places], axis=0) + np.mean(x, axis=0)

    def gradients_at(shift: np.ndarray | float) -> np.ndarray:
        return as_matrix(gradients_fn(to_samples(some + shift)), 1)[0]

    if not refine:
        return Refined(samples, None, x, places, some, gradients_at(0.0))
    root = np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))
    place, gradients = _search(root, gradients_at)
    if place is None:
        return Refined(samples, None, x, places, some, gradients)
    shift = root @ place
    return Refined(
        to_samples(matrix + shift),
        shift / np.std(x, axis=0, ddof=1),
        x + shift,
        places,
        some + shift,
        gradients,
    )


def _search(
    root: Float[np.ndarray, "dim dim"], gradients_at: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray | None, np.ndarray]:
    """Find the place where the mean gradient is zero, and the gradients there.

    In the units of `root @ place`, draws have unit covariance, so that the first step
    is the mean gradient. If the search fails, the place is None, and the gradients are
    those at the draws.
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
        new_gradients = gradients_at(root @ (place + step))
        new_slope = root.T @ np.mean(new_gradients, axis=0)
        if not np.all(np.isfinite(new_slope)):
            longest = min(length, longest) / 4
            continue
        inverse = _updated(inverse, step, slope - new_slope)
        # If more than half of the step would be taken back, it was too long.
        if new_slope @ step > -0.5 * (slope @ step):
            place, slope, gradients = place + step, new_slope, new_gradients
        else:
            longest = min(length, longest) / 2
    if np.linalg.norm(inverse @ slope) < _SETTLED:
        return place, gradients
    return None, first


def _updated(inverse: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Update the inverse curvature to map this change of slope to the step."""
    curvature = step @ change
    if not curvature > 0:
        return inverse
    other = np.eye(len(step)) - np.outer(step, change) / curvature
    return other @ inverse @ other.T + np.outer(step, step) / curvature
