"""One set of draws from those of all shards.

The posterior is the product of the densities of the shards, each with its own rows and
its part of the prior. What is made here of draws of the factors are draws of the
product, under an assumption that each way states.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ..run._keys import check_key
from ..run._names import few, parameter_names
from ._kde import product_of_densities
from ._split import generator


# Iglewicz and Hoaglin (1993, How to Detect and Handle Outliers) recommend it.
OUTLYING: Final = 3.5
# The median absolute deviation of a normal distribution, in standard deviations.
_MAD: Final = 0.6745
_FEWEST_TO_LEAVE_OUT: Final = 3
# Below it, a correlation matrix of float32 draws has no inverse to speak of.
_SINGULAR: Final = 1e-9


@final
class CombinedShards(NamedTuple):
    """The draws of all shards as one, and which shards they are of.

    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `used`: the indices of the shards that the draws are made of.
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
    """Makes draws of a posterior from draws of its factors, one factor a shard.

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
      1993). Means of few shards may lie close together by chance, so what they are
      divided by is at least the median width (standard deviation) of the shards. It
      takes three shards; of two nobody can say which is wrong. What is left out is
      missing: the posterior is that of the other rows, and wider.
    - `"kde"`: the product of kernel densities, two shards at a time (Neiswanger, Wang
      and Xing 2014, UAI, arXiv:1311.4780, whose sum over all pairs of draws is computed
      rather than sampled). Kernels have the shape of the shard's covariance and
      Silverman's width `h`, and draws are drawn in by `sqrt(1 - h^2)`, so that every
      density has just the mean and the covariance of its draws (West 1993, Journal of
      the Royal Statistical Society B 55, 409-422). It sees skewness, and modes wider
      than a kernel; finer shapes are smoothed, the more the more parameters there are:
      it is for up to about five. A draw is a weighted mean of actual draws, plus noise
      of the width of the product of two kernels.

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
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, samples))
    shards, chains, draws = _check_draws(leaves)
    flat = [x.reshape(shards, chains * draws, -1).astype(np.float64) for x in leaves]
    names = parameter_names(jax.tree.map(lambda x: x[0, 0], samples))
    x = np.concatenate(flat, axis=2)
    # Squares of the largest and the smallest numbers are none; powers of two are exact.
    power = np.frexp(np.max(np.where(np.isfinite(x), np.abs(x), 0.0), axis=(0, 1)))[1]
    x = np.ldexp(x, -power)
    left_out = _useless(x, names)
    _refuse_none_left(left_out, shards)
    rng = None if rng_key is None else generator(rng_key)
    # In units of the width, so that no parameter outweighs another in rounding.
    good = [s for s in range(shards) if s not in left_out]
    center = np.mean(x[good], axis=(0, 1))
    width = np.sqrt(np.mean(np.var(x[good], axis=1), axis=0))
    scaled = (x[good] - center) / width
    found, outlying = way(scaled, rng, names)
    for place, reason in outlying.items():
        left_out[good[place]] = reason
    sizes = [y.shape[2] for y in flat]
    found = np.ldexp(found * width + center, power)
    parts = np.split(found, np.cumsum(sizes)[:-1], axis=1)
    combined = [
        part.reshape(leaf.shape[1:]).astype(_dtype(leaf))
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return CombinedShards(
        jax.tree.unflatten(treedef, combined),
        tuple(s for s in range(shards) if s not in left_out),
        dict(sorted(left_out.items())),
    )


def _check_draws(leaves: list[np.ndarray]) -> tuple[int, int, int]:
    """The numbers of shards, chains and draws, which all arrays agree about."""
    shapes = {x.shape[:3] for x in leaves}
    if len(shapes) != 1 or len(min(shapes)) != 3 or sum(x.size for x in leaves) == 0:
        raise ValueError(
            "combine_shards(samples=...): every array must have the shape (shards, "
            "chains, draws, ...), with the same three and at least one of each; got "
            f"{sorted(x.shape for x in leaves)}."
        )
    for x in leaves:
        if not _is_real(x):
            raise TypeError(
                "combine_shards(samples=...): draws must be real numbers, since "
                f"weighted means are made of them; got {x.dtype}."
            )
    (found,) = shapes
    return found


def _is_real(x: np.ndarray) -> bool:
    return jnp.issubdtype(x.dtype, np.integer) or _is_floating(x)


def _is_floating(x: np.ndarray) -> bool:
    return jnp.issubdtype(x.dtype, np.floating)


def _dtype(x: np.ndarray) -> np.dtype:
    """Of means of such numbers."""
    return x.dtype if _is_floating(x) else np.dtype(np.float64)


def way_to_combine(combine: object) -> Callable[..., Any]:
    """The function that combines draws in a way that has a name, or an error."""
    if not isinstance(combine, str) or combine not in _WAYS:
        raise ValueError(
            f"combine={combine!r}: combine must be one of "
            f"{', '.join(map(repr, _WAYS))}."
        )
    return _WAYS[combine]


def _useless(x: np.ndarray, names: tuple[str, ...]) -> dict[int, str]:
    """The shards whose draws have no covariance to weigh them by."""
    found: dict[int, str] = {}
    for shard, draws in enumerate(x):
        finite = np.all(np.isfinite(draws), axis=0)
        spread = np.ptp(np.where(finite, draws, 0.0), axis=0)
        bad = [n for n, f, s in zip(names, finite, spread, strict=True) if not f]
        if bad:
            found[shard] = f"the variance of {few(bad)} is NaN: draws are not finite"
            continue
        bad = [n for n, s in zip(names, spread, strict=True) if s == 0]
        if bad:
            found[shard] = f"the variance of {few(bad)} is zero: all draws are equal"
            continue
        correlation = np.atleast_2d(np.corrcoef(draws, rowvar=False))
        if np.linalg.eigvalsh(correlation)[0] < _SINGULAR:
            found[shard] = (
                f"the covariance of {len(names)} parameters from {len(draws)} draws "
                "has no inverse"
            )
    return found


def _refuse_none_left(left_out: dict[int, str], shards: int) -> None:
    if len(left_out) == shards:
        told = "; ".join(f"shard {s}: {reason}" for s, reason in left_out.items())
        raise ValueError(
            f"combine_shards: none of {shards} shards can be used ({told}). Look at "
            "the draws of a shard: chains that never move, or a log-density that is "
            "NaN, are a matter of the model or the start."
        )


def _consensus(
    x: Float[np.ndarray, "shards draws dim"], rng: Any, names: Any
) -> tuple[Float[np.ndarray, "draws dim"], dict[int, str]]:
    weights = np.array([np.linalg.inv(np.atleast_2d(np.cov(y.T))) for y in x])
    summed = np.einsum("sij,snj->ni", weights, x)
    return np.linalg.solve(np.sum(weights, axis=0), summed.T).T, {}


def _robust(
    x: Float[np.ndarray, "shards draws dim"], rng: Any, names: tuple[str, ...]
) -> tuple[Float[np.ndarray, "draws dim"], dict[int, str]]:
    outlying: dict[int, str] = {}
    if len(x) >= _FEWEST_TO_LEAVE_OUT:
        far = distances(x)
        for shard in np.flatnonzero(np.any(far > OUTLYING, axis=1)):
            worst = int(np.argmax(far[shard]))
            outlying[int(shard)] = (
                f"its mean of {names[worst]} is {far[shard, worst]:.1f} deviations "
                f"from the median of the shards, more than {OUTLYING}"
            )
    kept = np.array([s not in outlying for s in range(len(x))])
    return _consensus(x[kept], rng, names)[0], outlying


def distances(
    x: Float[np.ndarray, "shards draws dim"],
) -> Float[np.ndarray, "shards dim"]:
    """How far the mean of each shard lies from the median, in robust deviations."""
    means = np.mean(x, axis=1)
    away = np.abs(means - np.median(means, axis=0))
    scale = np.median(away, axis=0) / _MAD
    return away / np.maximum(scale, np.median(np.std(x, axis=1), axis=0))


def _kde(
    x: Float[np.ndarray, "shards draws dim"], rng: np.random.Generator, names: Any
) -> tuple[Float[np.ndarray, "draws dim"], dict[int, str]]:
    return product_of_densities(list(x), rng), {}


_WAYS: Final[dict[str, Callable[..., Any]]] = {
    "consensus": _consensus,
    "robust": _robust,
    "kde": _kde,
}
