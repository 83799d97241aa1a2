"""The points of a nested sampling run, each from its birth to its death.

A nested sampling run is a set of lives. A point is drawn from the prior above a contour
of the likelihood, its *birth*, and is replaced when the contour reaches its own
likelihood, its *death*. All the rest follows from these two numbers, for they tell how
many points are alive at any contour:

    alive when point i dies = #{births below L_i} - #{deaths before i},

where points that die at the same likelihood die one after the other, and whoever is
born at that likelihood is born after them. So the number falls while a batch or a
plateau dies and rises when it has been replaced, which is how both have to be counted
(Fowlie, Handley and Su 2020, arXiv:2010.13884), and two runs are merged by putting
their points together (Higson et al. 2018, arXiv:1704.03459).

A birth needs care at minus infinity, a legal log-likelihood. A point drawn from the
prior as a whole, which may itself have a likelihood of zero, differs from one that was
drawn from where the likelihood is above zero: the second is born after all points of
zero likelihood have died. blackjax marks the first by NaN and the second by minus
infinity. NaN cannot be compared, so here the first is minus infinity, and the second
the lowest finite number, which asks the same of a likelihood.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PyTree, Shaped

from ._states import particles_of


@final
@dataclass(frozen=True, eq=False, repr=False)
class DeadPoints:
    """The points of a nested sampling run, those alive at the end among them.

    They are sorted by likelihood, the order in which they die. The arrays are those of
    NumPy: they stay in the memory of the host.

    ```python
    import numpy as np
    import batchkit as bk

    # Three points of the prior; two die, and one new point takes their place.
    dead = bk.DeadPoints(
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
        values = {
            "loglikelihood": np.asarray(loglikelihood),
            "loglikelihood_birth": np.asarray(loglikelihood_birth),
            "logprior": np.asarray(logprior),
        }
        positions = jax.tree.map(np.asarray, positions)
        _check(positions, values)
        order = np.argsort(values["loglikelihood"], kind="stable")
        rows = jax.tree.map(lambda leaf: leaf[order], (positions, values))
        object.__setattr__(self, "positions", rows[0])
        for name, value in rows[1].items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.loglikelihood)

    def __repr__(self) -> str:
        return f"DeadPoints({len(self):,} points, {self.num_prior:,} of the prior)"

    @property
    def num_prior(self) -> int:
        """How many of the points were drawn from the whole prior."""
        return int(np.sum(np.isneginf(self.loglikelihood_birth)))

    @functools.cached_property
    def num_live(self) -> Int[np.ndarray, " n"]:
        """How many points were alive when each point died, itself included.

        See Fowlie, Handley and Su 2020 (arXiv:2010.13884).
        """
        births = np.sort(self.loglikelihood_birth)
        born = np.searchsorted(births, self.loglikelihood, side="left")
        # A point of the prior is alive when others die at minus infinity.
        return np.maximum(born, self.num_prior) - np.arange(len(self))


def finalise(state: Any, infos: Any) -> DeadPoints:
    """Puts together the points that died in a run and those that are still alive.

    A point that does not lie above the contour it was asked to lie above is left out.
    blackjax returns one where it has found nothing above: when all live points have the
    same, highest likelihood, it hands out copies of them.

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
    # `blackjax.ns.utils.finalise` does the first part on the device, where putting
    # together the arrays of thousands of steps is compiled anew for each number of
    # them. It neither sorts nor leaves out.
    return dead_points([_rows(particles_of(x)) for x in (*infos, state)])


def dead_points(parts: Sequence[tuple[Any, ...]]) -> DeadPoints:
    """Puts points together, as blackjax marks their births.

    **Arguments:**

    - `parts`: of each part the positions and, of shape `(n,)`, their log-densities,
        log-likelihoods and births.
    """
    positions, logprior, loglikelihood, birth = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *parts
    )
    of_prior = np.isnan(birth)
    if of_prior.any():
        lowest = np.asarray(jnp.finfo(birth.dtype).min, birth.dtype)
        above_zero = np.maximum(birth, lowest)
        birth = np.where(of_prior, np.asarray(-np.inf, birth.dtype), above_zero)
    else:  # An algorithm that begins from minus infinity instead of NaN.
        of_prior = np.isneginf(birth)
    # What is NaN stays, to be refused.
    kept = of_prior | ~(loglikelihood <= birth)
    positions = jax.tree.map(lambda leaf: leaf[kept], positions)
    return DeadPoints(positions, loglikelihood[kept], birth[kept], logprior[kept])


def _rows(particles: Any) -> tuple[Any, ...]:
    """The arrays of blackjax's particles, with all points along the first axis."""
    points = (
        particles.position,
        particles.logdensity,
        particles.loglikelihood,
        particles.loglikelihood_birth,
    )
    steps = np.ndim(particles.loglikelihood) - 1

    def rows(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.reshape(-1, *array.shape[steps + 1 :])

    return jax.tree.map(rows, points)


def concatenate(points: Sequence[DeadPoints]) -> DeadPoints:
    """The points of several runs as those of one."""
    parts = [
        (x.positions, x.loglikelihood, x.loglikelihood_birth, x.logprior)
        for x in points
    ]
    return DeadPoints(*jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def _check(positions: PyTree, values: dict[str, np.ndarray]) -> None:
    loglikelihood, birth = values["loglikelihood"], values["loglikelihood_birth"]
    if loglikelihood.ndim != 1 or len(loglikelihood) == 0:
        raise ValueError(
            "DeadPoints: loglikelihood must have one entry a point and at least one "
            f"point; got an array of shape {loglikelihood.shape}."
        )
    for name, value in values.items():
        if value.shape != loglikelihood.shape:
            raise ValueError(
                f"DeadPoints: {name} must have the shape of loglikelihood, "
                f"{loglikelihood.shape}; got {value.shape}."
            )
    leaves = jax.tree_util.tree_leaves_with_path(positions)
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
        value = values[name]
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
