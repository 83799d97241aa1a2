"""The points of a nested run from birth to death, and the evidence that follows.

A point is drawn from the prior above a contour of the likelihood, its *birth*, and is
replaced when the contour reaches its own likelihood, its *death*. Births and deaths
give the number of live points at any contour:

    alive when point i dies = #{births below L_i} - #{deaths before i},

where points with equal likelihoods die one after the other, and a point that is born at
that likelihood is born after their deaths. So the number falls while a batch or a
plateau dies and rises when it has been replaced, which is the correct count for both
(Fowlie, Handley and Su 2020, arXiv:2010.13884). Two runs are merged by concatenating
their points (Higson et al. 2018, arXiv:1704.03459).

A log-likelihood of minus infinity is legal, so births there need care. A point drawn
from the whole prior may itself have a likelihood of zero. A point drawn from where the
likelihood is above zero is born after all points of zero likelihood have died. blackjax
marks the first by NaN and the second by minus infinity. Since NaN cannot be compared,
the first is minus infinity here, and the second the lowest finite number, which puts
the same constraint on a likelihood.

The evidence is the integral of the likelihood over the prior, Z = int L dX, where X(L)
is the share of the prior whose likelihood is above L (Skilling 2006, Bayesian Analysis
1(4), 833-859). A run has the likelihoods, but not X; with n points alive, X shrinks by
a factor that is distributed as the largest of n uniform numbers. So histories of the
volume are simulated, the evidence is computed in each, and mean and spread of its
logarithm are the estimate and its error (ibid.).

Within a history the integral is a sum over points of L_i dX_i, where point i represents
the volume between the midpoints to its neighbours. The first one represents all the
volume up to 1, and the last one all down to 0:

    dX_1 = 1 - (X_1 + X_2) / 2,   dX_i = (X_(i-1) - X_(i+1)) / 2,
    dX_n = (X_(n-1) + X_n) / 2,

so that the dX sum to one and the evidence of a constant is that constant.
`blackjax.ns.utils.log_weights` counts only half of the volume before the first point
and half of that after the last one, and it subtracts long sums in the precision of JAX.
Here all is double precision, and a difference is computed from the shrinkages at its
two ends.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped, UInt32


_OF_FORK: Final = ("particles", "loglikelihood", "loglikelihood_birth", "logprior")
# With so many simulated histories the error has an error of 3 %.
HISTORIES: Final = 500
# The most numbers of an array, for 32 MB.
_MAX_NUMBERS: Final = 4_000_000


@final
class Points(NamedTuple):
    """Points of a nested sampler; arrays of any leading shape."""

    positions: PyTree
    loglikelihood: Any
    loglikelihood_birth: Any
    logprior: Any


def points_of(x: Any) -> Points:
    """Return the live points of a state, or the dead points of an info.

    blackjax keeps them as `particles`. In the fork of the Handley lab, from which its
    nested sampling came, `particles` are the bare positions, and their likelihoods and
    priors are fields beside it.
    """
    if all(hasattr(x, name) for name in _OF_FORK):
        return Points(x.particles, x.loglikelihood, x.loglikelihood_birth, x.logprior)
    particles: Any = getattr(x, "particles", None)
    if not hasattr(particles, "loglikelihood"):
        names = ", ".join(getattr(x, "_fields", ())) or "no named fields"
        raise TypeError(
            "run_nested(api=...): api must be a nested sampler, such as blackjax.nss, "
            "whose states have the log-likelihoods of their points in `particles`; it "
            f"returned a {type(x).__name__} with {names}. For Markov chains use "
            "`run_chains`."
        )
    return Points(
        particles.position,
        particles.loglikelihood,
        particles.loglikelihood_birth,
        particles.logdensity,
    )


@final
@dataclass(frozen=True, eq=False, repr=False)
class DeadPoints:
    """The points of a nested sampling run, those alive at the end among them.

    They are sorted by likelihood, the order in which they die. The arrays are those of
    NumPy: they stay in the memory of the host.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.nested import DeadPoints

    # Three points of the prior; two die, and one new point takes their place.
    dead = DeadPoints(
        positions={"x": np.array([0.5, -3.0, 0.1, 2.0])},
        loglikelihood=np.array([-0.1, -4.5, 0.0, -2.0]),
        loglikelihood_birth=np.array([-np.inf, -np.inf, -2.0, -np.inf]),
        logprior=np.zeros(4),
    )
    assert dead.positions["x"].tolist() == [-3.0, 2.0, 0.5, 0.1]
    assert dead.num_live.tolist() == [3, 2, 2, 1]
    ```
    """

    positions: PyTree[Shaped[np.ndarray, "n ..."]]
    loglikelihood: Float[np.ndarray, " n"]
    loglikelihood_birth: Float[np.ndarray, " n"]
    logprior: Float[np.ndarray, " n"]

    def __init__(
        self,
        positions: PyTree,
        loglikelihood: ArrayLike,
        loglikelihood_birth: ArrayLike,
        logprior: ArrayLike,
    ) -> None:
        """**Arguments:**

        - `positions`: a pytree of arrays of shape `(n, ...)`, one row a point.
        - `loglikelihood`: the log-likelihood of each point, of shape `(n,)`. Minus
            infinity is legal, NaN and plus infinity are not.
        - `loglikelihood_birth`: the contour above which each point was drawn, of shape
            `(n,)`; minus infinity for the points drawn from the whole prior. A point
            drawn from where the likelihood is above zero has the lowest finite number.
        - `logprior`: the log-density of the prior at each point, of shape `(n,)`.

        **Raises:**

        `ValueError` if shapes do not fit, if a log-likelihood or a birth is NaN or plus
        infinity, or if a point does not lie above its birth.
        """
        numbers = map(np.asarray, (loglikelihood, loglikelihood_birth, logprior))
        points = Points(jax.tree.map(np.asarray, positions), *numbers)
        _check(points)
        order = np.argsort(points.loglikelihood, kind="stable")
        ordered: Points = jax.tree.map(lambda leaf: leaf[order], points)
        for name, value in ordered._asdict().items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.loglikelihood)

    def __repr__(self) -> str:
        return f"DeadPoints({len(self):,} points, {self.num_prior:,} of the prior)"

    @property
    def num_prior(self) -> int:
        """The number of points that were drawn from the whole prior."""
        return int(np.sum(np.isneginf(self.loglikelihood_birth)))

    @functools.cached_property
    def num_live(self) -> Int[np.ndarray, " n"]:
        """The number of points alive when each point died, itself included.

        See Fowlie, Handley and Su 2020 (arXiv:2010.13884).
        """
        births = np.sort(self.loglikelihood_birth)
        born = np.searchsorted(births, self.loglikelihood, side="left")
        # Points of the prior are alive at minus infinity too, where nothing is below.
        return np.maximum(born, self.num_prior) - np.arange(len(self))


def finalise(state: Any, infos: Any) -> DeadPoints:
    """Collect the points that died in a run and those that are still alive, sorted.

    `state` is the last state of a nested sampler of blackjax, and `infos` what its
    steps have returned: a list of `NSInfo`, or one `NSInfo` of all steps, as
    `jax.lax.scan` stacks them, or a list of such. Points that do not lie above the
    contour of their birth are left out: where all live points have the same, highest
    likelihood, blackjax returns copies of them.
    """
    infos = [infos] if hasattr(infos, "particles") else list(infos)
    # `blackjax.ns.utils.finalise` concatenates on the device, which is compiled anew
    # for each number of steps. It neither sorts nor leaves out copies.
    return dead_points([flat_points(points_of(x)) for x in (*infos, state)])


def flat_points(points: Points) -> Points:
    """Return points as arrays of NumPy, with all of them along the first axis."""
    dims = np.ndim(points.loglikelihood)

    def flat(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.reshape(-1, *array.shape[dims:])

    return jax.tree.map(flat, points)


def concatenated(parts: Sequence[Any]) -> Any:
    """Concatenate pytrees of arrays along the first axis, on the host."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def dead_points(parts: Sequence[Points]) -> DeadPoints:
    """Collect points whose births are marked as blackjax marks them."""
    points: Points = concatenated(parts)
    loglikelihood, birth = points.loglikelihood, points.loglikelihood_birth
    of_prior = np.isnan(birth)
    if of_prior.any():
        lowest = np.asarray(jnp.finfo(birth.dtype).min, birth.dtype)
        infinity = np.asarray(-np.inf, birth.dtype)
        birth = np.where(of_prior, infinity, np.maximum(birth, lowest))
    else:  # An algorithm that begins from minus infinity instead of NaN.
        of_prior = np.isneginf(birth)
    # Negated, so that NaN is kept here and refused by `DeadPoints`.
    kept = of_prior | ~(loglikelihood <= birth)
    points = points._replace(loglikelihood_birth=birth)
    return DeadPoints(*jax.tree.map(lambda leaf: leaf[kept], points))


def concatenate(points: Sequence[DeadPoints]) -> DeadPoints:
    """Combine the points of several runs."""
    fields = Points._fields
    return DeadPoints(
        *concatenated([[getattr(x, name) for name in fields] for x in points])
    )


def _check(points: Points) -> None:
    loglikelihood, birth = points.loglikelihood, points.loglikelihood_birth
    if loglikelihood.ndim != 1 or len(loglikelihood) == 0:
        raise ValueError(
            "DeadPoints: loglikelihood must have one entry a point and at least one "
            f"point; got an array of shape {loglikelihood.shape}."
        )
    for name in ("loglikelihood_birth", "logprior"):
        value = getattr(points, name)
        if value.shape != loglikelihood.shape:
            raise ValueError(
                f"DeadPoints: {name} must have the shape of loglikelihood, "
                f"{loglikelihood.shape}; got {value.shape}."
            )
    leaves = jax.tree_util.tree_leaves_with_path(points.positions)
    if not leaves:
        raise ValueError("DeadPoints: positions must hold at least one array.")
    for path, leaf in leaves:
        if leaf.shape[:1] != loglikelihood.shape:
            raise ValueError(
                f"DeadPoints: positions{jax.tree_util.keystr(path)} must have a row "
                f"for each of the {len(loglikelihood)} points; got an array of shape "
                f"{leaf.shape}."
            )
    for name in ("loglikelihood", "loglikelihood_birth"):
        value = getattr(points, name)
        bad = np.isnan(value) | np.isposinf(value)
        if bad.any():
            raise ValueError(
                f"DeadPoints: {name} must be finite or minus infinity; "
                f"{np.sum(bad)} of {len(value)} entries are NaN or plus infinity, the "
                f"first at index {np.argmax(bad)}. A likelihood that cannot be "
                "computed somewhere should return -inf there."
            )
    below = ~(birth < loglikelihood) & ~np.isneginf(birth)
    if below.any():
        first = np.argmax(below)
        raise ValueError(
            "DeadPoints: a point must lie above its birth; "
            f"{np.sum(below)} of {len(birth)} do not, the first at index {first}: its "
            f"log-likelihood is {loglikelihood[first]} and its birth {birth[first]}. "
            "Leave such points out, as `finalise` does."
        )


@final
class Volumes(NamedTuple):
    """Evidence and weights of a run from simulated histories of the prior volume."""

    log_evidence: Float[np.ndarray, " histories"]
    information: Float[np.ndarray, " histories"]  # in nats
    weights: Float[np.ndarray, " n"]  # `L_i dX_i / Z`, the mean over histories


def generator(key: Key[Array, ""] | UInt32[Array, " words"]) -> np.random.Generator:
    """Seed NumPy's generator by a key of JAX."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return np.random.default_rng([int(word) for word in words])


def simulate(
    dead: DeadPoints, rng: np.random.Generator, histories: int = HISTORIES
) -> Volumes:
    """Simulate histories of the prior volume, and integrate over each.

    The volume shrinks by `log(X_(i-1) / X_i) ~ Exponential(n_i)` when one of `n_i` live
    points dies (Skilling 2006; with plateaus Fowlie, Handley and Su 2020,
    arXiv:2010.13884). The information is `H = sum_i p_i log(L_i / Z)`, where
    `p_i = L_i dX_i / Z` (Skilling 2006).
    """
    n = len(dead)
    logl = dead.loglikelihood.astype(np.float64)
    # Zero times minus infinity would be NaN in the information.
    finite = np.where(np.isneginf(logl), 0.0, logl)
    chunk = max(1, _MAX_NUMBERS // n)
    log_evidence, information, weights = [], [], np.zeros(n)
    for start in range(0, histories, chunk):
        shape = (min(chunk, histories - start), n)
        shrinkage = rng.standard_exponential(shape) / dead.num_live
        # Relative to the largest of `L_i X_i`, since either factor may underflow.
        log_terms = logl - np.cumsum(shrinkage, axis=1)
        scale = log_terms.max(axis=1, keepdims=True)
        terms = np.exp(log_terms - scale) * _relative_elements(shrinkage)
        total = terms.sum(axis=1, keepdims=True)
        log_z = (scale + np.log(total))[:, 0]
        terms /= total
        log_evidence.append(log_z)
        information.append(terms @ finite - log_z)
        weights += terms.sum(axis=0)
    return Volumes(
        np.concatenate(log_evidence), np.concatenate(information), weights / histories
    )


def _relative_elements(
    shrinkage: Float[np.ndarray, "histories n"],
) -> Float[np.ndarray, "histories n"]:
    """Return `dX_i / X_i`, from the differences of log-volumes between neighbours."""
    before = np.expm1(shrinkage)  # (X_(i-1) - X_i) / X_i
    after = np.ones_like(shrinkage)  # (X_i - X_(i+1)) / X_i, where X_(n+1) is 0
    after[:, :-1] = -np.expm1(-shrinkage[:, 1:])
    elements = (before + after) / 2
    elements[:, 0] += before[:, 0] / 2
    elements[:, -1] += 1 / 2
    return elements


def resample(
    weights: Float[np.ndarray, " n"], draws: int, rng: np.random.Generator
) -> Int[np.ndarray, " draws"]:
    """Draw indices in proportion to weights that sum to one, in random order.

    Systematic resampling (Kitagawa 1996, Journal of Computational and Graphical
    Statistics 5(1), 1-25): an index is drawn `draws` times its weight, rounded up or
    down.
    """
    ends = np.cumsum(weights)
    places = (np.arange(draws) + rng.random()) / draws * ends[-1]
    # Rounding may bring the last place to the very end.
    places = np.minimum(places, np.nextafter(ends[-1], 0.0))
    return rng.permutation(np.searchsorted(ends, places, side="right"))
