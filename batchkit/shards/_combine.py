"""Combination of subposterior draws, and their shift by the gradient of all data.

The posterior is the product of the densities of the shards, each with its own rows and
its part of the prior. Draws of the factors become draws of the product, under an
assumption that each way to combine states.

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
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from ..run._arguments import check_key
from ..run._names import join_few, parameter_names
from ._sharded_logdensity import generator


# Recommended by Iglewicz and Hoaglin (1993, How to Detect and Handle Outliers).
OUTLYING: Final = 3.5
# The median absolute deviation of a normal distribution, in standard deviations.
_MAD: Final = 0.6745
_FEWEST_TO_LEAVE_OUT: Final = 3
# The smallest eigenvalue of a correlation matrix of float32 draws that rounding leaves.
_SINGULAR: Final = 1e-9
# Draws of a factor in a product of kernel densities; all pairs take 32 MB of weights.
_KERNELS: Final = 2000
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
class CombinedShards(NamedTuple):
    """The draws of all shards combined, and the shards that were used.

    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `used`: the indices of the shards that were combined.
    - `left_out`: for each other shard, by its index, the reason.

    ```python
    import numpy as np
    import batchkit as bk

    draws = np.random.default_rng(0).normal(size=(5, 4, 500))
    draws[2] = 0.0
    combined = bk.combine_shards({"x": draws})
    assert combined.used == (0, 1, 3, 4)
    assert "variance" in combined.left_out[2]
    ```
    """

    samples: PyTree
    used: tuple[int, ...]
    left_out: dict[int, str]


def combine_shards(
    samples: PyTree, combine: str = "consensus", rng_key: Any = None
) -> CombinedShards:
    """Make draws of a posterior from draws of its factors, one factor a shard.

    - `"consensus"`: each draw is a weighted mean of one draw of every shard,
      `(sum_s W_s)^-1 sum_s W_s x_s`, with the inverse covariance of a shard's draws,
      the whole matrix, for its weight `W_s` (Scott et al. 2016, International Journal
      of Management Science and Engineering Management 11(2), 78-88). It is right if
      every factor is Gaussian. If not, it is biased: a mean of draws is more Gaussian
      than the product is, skewness shrinks, and between modes there are draws. Factors
      become Gaussian as shards grow, at the rate `1 / sqrt(rows)`.
    - `"robust"`: the same without outlying shards, which are those with some parameter
      for which `|m_s - median(m)|` is more than 3.5 times `MAD / 0.6745`: `m_s` is the
      mean of shard `s`, and `MAD` the median of those distances (Iglewicz and Hoaglin
      1993). Means of few shards may lie close together by chance, so the divisor is at
      least the median standard deviation of the shards. It takes three shards: of two,
      either may be the wrong one. The posterior is then that of the other rows, and
      wider.
    - `"kde"`: the product of kernel densities, two shards at a time (Neiswanger, Wang
      and Xing 2014, UAI, arXiv:1311.4780, whose sum over all pairs of draws is computed
      rather than sampled). Kernels have the shape of the shard's covariance and
      Silverman's width `h`, and draws are moved toward their mean by `sqrt(1 - h^2)`,
      so that every density has the mean and the covariance of its draws (West 1993,
      Journal of the Royal Statistical Society B 55, 409-422). It keeps skewness, and
      modes wider than a kernel. Finer shapes are smoothed, the more the more
      parameters there are: it is for up to about five. A draw is a weighted mean of
      draws of shards, plus noise of the width of the product of two kernels.

    Shards of which some parameter has a variance of zero or NaN are left out.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    rng = np.random.default_rng(0)
    draws = np.stack([rng.normal(0, 1, (4, 5000)), rng.normal(1, 2, (4, 5000))])
    for way in ("consensus", "robust", "kde"):
        x = bk.combine_shards(draws, way, jax.random.key(0)).samples
        assert abs(np.mean(x) - 0.2) < 0.05
        assert abs(np.std(x) - 0.8944) < 0.05
    ```

    **Arguments:**

    - `samples`: a pytree of arrays of shape `(shards, chains, draws, ...)`.
    - `combine`: `"consensus"`, the default, `"robust"` or `"kde"`.
    - `rng_key`: a key of JAX, which `"kde"` needs; None by default.

    **Returns:**

    `CombinedShards`: as many draws as one shard has, in the same dtype (float64 of
    integers), and the shards that were used. The same draws and the same key give the
    same result.

    **Raises:**

    `ValueError` if there is no such way to combine, no key where one is needed, if
    arrays differ in shards, chains or draws, and if no shard is left. `TypeError` if
    draws are no real numbers, or the key none of JAX.
    """
    way = way_to_combine(combine)
    if combine == "kde" and rng_key is None:
        raise ValueError(
            "combine_shards(combine='kde', rng_key=None): 'kde' draws random numbers. "
            "Pass a key, such as jax.random.key(0)."
        )
    if rng_key is not None:
        check_key(rng_key, "combine_shards")
    samples = jax.tree.map(np.asarray, samples)
    _check_draws(jax.tree.leaves(samples))
    names = parameter_names(jax.tree.map(lambda x: x[0, 0], samples))
    x, to_samples = as_matrix(samples, 3)
    shape = x.shape[1:]
    x = x.reshape(len(x), -1, shape[-1])
    # Squares of very large and very small numbers are not finite, or zero. Powers of
    # two are exact.
    power = np.frexp(np.max(np.where(np.isfinite(x), np.abs(x), 0.0), axis=(0, 1)))[1]
    x = np.ldexp(x, -power)
    left_out = _useless(x, names)
    if len(left_out) == len(x):
        reasons = "; ".join(f"shard {s}: {reason}" for s, reason in left_out.items())
        raise ValueError(
            f"combine_shards: none of {len(x)} shards can be used ({reasons}). Look at "
            "the draws of a shard: chains that never move, or a log-density that is "
            "NaN, are a matter of the model or the start."
        )
    rng = None if rng_key is None else generator(rng_key)
    good = [s for s in range(len(x)) if s not in left_out]
    # In units of the width, so that no parameter outweighs another in rounding.
    center = np.mean(x[good], axis=(0, 1))
    width = np.sqrt(np.mean(np.var(x[good], axis=1), axis=0))
    combined, outlying = way((x[good] - center) / width, rng, names)
    left_out |= {good[place]: reason for place, reason in outlying.items()}
    return CombinedShards(
        to_samples(np.ldexp(combined * width + center, power).reshape(shape)),
        tuple(s for s in range(len(x)) if s not in left_out),
        dict(sorted(left_out.items())),
    )


def as_matrix(
    samples: PyTree, num_axes: int
) -> tuple[np.ndarray, Callable[[np.ndarray], PyTree]]:
    """Return draws as one float64 array, and a function that makes a pytree of such.

    The last axis has all numbers of a draw. Integers stay float64: their means are
    none.
    """
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, samples))
    shapes = [x.shape[num_axes:] for x in leaves]
    dtypes = [
        x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else np.dtype(np.float64)
        for x in leaves
    ]
    flat = [x.reshape(*x.shape[:num_axes], -1).astype(np.float64) for x in leaves]
    edges = np.cumsum([x.shape[-1] for x in flat])[:-1]

    def to_samples(x: np.ndarray) -> PyTree:
        parts = zip(np.split(x, edges, axis=-1), shapes, dtypes, strict=True)
        return jax.tree.unflatten(
            treedef,
            [
                part.reshape(*x.shape[:-1], *shape).astype(dtype)
                for part, shape, dtype in parts
            ],
        )

    return np.concatenate(flat, axis=-1), to_samples


def _check_draws(leaves: list[np.ndarray]) -> None:
    shapes = {x.shape[:3] for x in leaves}
    if len(shapes) != 1 or len(min(shapes)) != 3 or sum(x.size for x in leaves) == 0:
        raise ValueError(
            "combine_shards(samples=...): every array must have the shape (shards, "
            "chains, draws, ...), with the same three and at least one of each; got "
            f"{sorted(x.shape for x in leaves)}."
        )
    for x in leaves:
        if not any(jnp.issubdtype(x.dtype, kind) for kind in (np.integer, np.floating)):
            raise TypeError(
                "combine_shards(samples=...): draws must be real numbers, since "
                f"weighted means are made of them; got {x.dtype}."
            )


def way_to_combine(combine: object) -> Callable[..., Any]:
    """Return the function that combines draws in a way that has a name, or raise."""
    if not isinstance(combine, str) or combine not in _WAYS:
        raise ValueError(
            f"combine={combine!r}: combine must be one of "
            f"{', '.join(map(repr, _WAYS))}."
        )
    return _WAYS[combine]


def _useless(x: np.ndarray, names: tuple[str, ...]) -> dict[int, str]:
    """Return the shards whose draws have no covariance, with the reasons."""
    reasons: dict[int, str] = {}
    for shard, draws in enumerate(x):
        is_finite = np.all(np.isfinite(draws), axis=0)
        is_constant = np.ptp(np.where(is_finite, draws, 0.0), axis=0) == 0
        if not np.all(is_finite):
            bad = [name for name, ok in zip(names, is_finite, strict=True) if not ok]
            reasons[shard] = (
                f"the variance of {join_few(bad)} is NaN: draws are not finite"
            )
        elif np.any(is_constant):
            bad = [name for name, same in zip(names, is_constant, strict=True) if same]
            reasons[shard] = (
                f"the variance of {join_few(bad)} is zero: all draws are equal"
            )
        elif np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(draws.T)))[0] < _SINGULAR:
            reasons[shard] = (
                f"the covariance of {len(names)} parameters from {len(draws)} draws "
                "has no inverse"
            )
    return reasons


def _consensus(
    x: Float[np.ndarray, "shards draws dim"], rng: Any, names: Any
) -> tuple[Float[np.ndarray, "draws dim"], dict[int, str]]:
    weights = np.array([np.linalg.inv(np.atleast_2d(np.cov(y.T))) for y in x])
    weighted = np.einsum("sij,snj->ni", weights, x)
    return np.linalg.solve(np.sum(weights, axis=0), weighted.T).T, {}


def _robust(
    x: Float[np.ndarray, "shards draws dim"], rng: Any, names: tuple[str, ...]
) -> tuple[Float[np.ndarray, "draws dim"], dict[int, str]]:
    far, outlying = distances(x), {}
    if len(x) >= _FEWEST_TO_LEAVE_OUT:
        for shard in map(int, np.flatnonzero(np.any(far > OUTLYING, axis=1))):
            worst = int(np.argmax(far[shard]))
            outlying[shard] = (
                f"its mean of {names[worst]} is {far[shard, worst]:.1f} deviations "
                f"from the median of the shards, more than {OUTLYING}"
            )
    kept = [s for s in range(len(x)) if s not in outlying]
    return _consensus(x[kept], rng, names)[0], outlying


def distances(
    x: Float[np.ndarray, "shards draws dim"],
) -> Float[np.ndarray, "shards dim"]:
    """Return the distance of the mean of each shard from the median of all means.

    It is in robust deviations: median absolute deviations over that of a normal
    distribution, but at least the median width of the shards.
    """
    means = np.mean(x, axis=1)
    away = np.abs(means - np.median(means, axis=0))
    scale = np.median(away, axis=0) / _MAD
    return away / np.maximum(scale, np.median(np.std(x, axis=1), axis=0))


def _kde(
    x: Float[np.ndarray, "shards draws dim"], rng: np.random.Generator, names: Any
) -> tuple[Float[np.ndarray, "draws dim"], dict[int, str]]:
    """Multiply kernel densities, two at a time.

    A kernel density is a mixture of as many Gaussians as there are draws, and the
    product of two of them a mixture of as many as there are pairs: that of draws `x`
    and `y` lies at their mean, weighted by the inverse covariances of the kernels, and
    its weight falls off with their distance. Of two shards all pairs can be computed,
    and one is drawn by its weight, so that no chain over indices has to converge.
    """
    factors = list(x)
    while len(factors) > 1:
        pairs = zip(factors[::2], factors[1::2], strict=False)
        odd = factors[len(factors) // 2 * 2 :]
        factors = [*odd, *(_product(*pair, x.shape[1], rng) for pair in pairs)]
    return factors[0], {}


def _product(
    x: np.ndarray, y: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    x, of_x = _kernels(x)
    y, of_y = _kernels(y)
    whiten = np.linalg.inv(np.linalg.cholesky(of_x + of_y))
    u, v = x @ whiten.T, y @ whiten.T
    distance = np.sum(u**2, 1)[:, None] + np.sum(v**2, 1) - 2 * u @ v.T
    # The nearest pair has a weight of one, so that not all underflow.
    total = np.cumsum(np.exp(-0.5 * (distance - np.min(distance))))
    # A grid with one random offset has less noise than independent numbers.
    chosen = np.searchsorted(
        total, (np.arange(count) + rng.random()) / count * total[-1]
    )
    i, j = np.divmod(rng.permutation(np.minimum(chosen, total.size - 1)), len(y))
    inverse_x, inverse_y = np.linalg.inv(of_x), np.linalg.inv(of_y)
    covariance = np.linalg.inv(inverse_x + inverse_y)
    means = (x[i] @ inverse_x + y[j] @ inverse_y) @ covariance
    noise = rng.standard_normal(means.shape) @ np.linalg.cholesky(covariance).T
    return means + noise


def _kernels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centres of kernels and their covariance, together with the moments of `x`.

    The width `h = (4 / (n (dim + 2)))^(1 / (dim + 4))` is the best one for a Gaussian
    (Silverman 1986, Density Estimation for Statistics and Data Analysis, 4.14).
    """
    if len(x) > _KERNELS:
        x = x[np.linspace(0, len(x) - 1, _KERNELS).astype(int)]
    count, dim = x.shape
    squared = min((4 / (count * (dim + 2))) ** (2 / (dim + 4)), 0.9)
    mean = np.mean(x, axis=0)
    covariance = np.atleast_2d(np.cov(x.T))
    return mean + np.sqrt(1 - squared) * (x - mean), squared * covariance


_WAYS: Final[dict[str, Callable[..., Any]]] = {
    "consensus": _consensus,
    "robust": _robust,
    "kde": _kde,
}


@final
class Refined(NamedTuple):
    """Draws, and the gradients of all data at some of them."""

    samples: PyTree  # arrays of shape `(chains, draws, ...)`
    # By how many standard deviations each number was moved.
    shift: Float[np.ndarray, " dim"] | None
    draws: Float[np.ndarray, "draws dim"]  # the samples as one array, chain by chain
    places: Int[np.ndarray, " few"]  # the indices of draws with a gradient
    some: Float[np.ndarray, "few dim"]  # these draws, with the mean of all
    gradients: Float[np.ndarray, "few dim"]


def refined(
    samples: PyTree, gradients_fn: Callable[[PyTree], PyTree], refine: bool = True
) -> Refined:
    """Shift draws to where the mean gradient is zero, and return the gradients there.

    `gradients_fn` maps arrays of shape `(positions, ...)` to the gradients of the
    log-density of all data, of the same shapes. Draws stay, and `shift` is None, if
    `refine` is False, if a gradient is not finite at the draws, or if the search fails.
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
