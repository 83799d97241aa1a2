"""The points of a nested sampling run, each from its birth to its death.

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
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PyTree, Shaped


_OF_FORK: Final = ("particles", "loglikelihood", "loglikelihood_birth", "logprior")


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

    **Raises:**

    `TypeError` if it has neither layout.
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
    """Collect the points that died in a run and those that are still alive.

    Points that do not lie above the contour of their birth are left out. blackjax
    returns such points when all live points have the same, highest likelihood: it then
    copies them.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    from batchkit.nested import finalise

    algorithm = blackjax.nss(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, -jnp.inf),
        loglikelihood_fn=lambda x: -10 * jnp.sum(x**2),
        num_inner_steps=4,
        num_delete=5,
    )
    key, prior_key = jax.random.split(jax.random.key(0))
    positions = jax.random.uniform(prior_key, (20, 2), minval=-1.0, maxval=1.0)
    state = jax.jit(algorithm.init)(positions)
    state, infos = jax.lax.scan(
        lambda state, key: algorithm.step(key, state), state, jax.random.split(key, 8)
    )
    dead = finalise(state, infos)
    assert len(dead) == 20 + 8 * 5
    ```

    **Arguments:**

    - `state`: the last state of a nested sampler of blackjax.
    - `infos`: what its steps have returned: a list of `NSInfo`, or one `NSInfo` of all
        steps, as `jax.lax.scan` stacks them, or a list of such.

    **Returns:**

    All points, sorted.

    **Raises:**

    What `DeadPoints` raises.
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
