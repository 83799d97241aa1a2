"""Statistics of transitions, and of the draws at their ends."""

from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp


# The fields of blackjax's `HMCInfo`. GIST samplers have fewer, and an acceptance rate
# that is not that of the energies alone.
_OF_HMC: Final = {
    "momentum",
    "acceptance_rate",
    "is_accepted",
    "is_divergent",
    "energy",
    "proposal",
    "num_integration_steps",
}


@final
class Statistics(NamedTuple):
    """Scalars of one transition, or of all on the way to one draw; None if unknown.

    - `diverging`: how many transitions diverged.
    - `acceptance`: the mean acceptance rate.
    - `num_integration_steps`: all integration steps.
    - `tree_depth`: the depth of the deepest tree.
    - `energy`: the energy of the last transition, at the state that it drew.
    """

    diverging: Any
    acceptance: Any
    num_integration_steps: Any
    tree_depth: Any
    energy: Any

    def mean_over(self, turns: Any) -> "Statistics":
        """Return the statistics of a draw from the sums over its transitions."""
        rate = self.acceptance
        return self._replace(acceptance=None if rate is None else rate / turns)


def statistics_of(info: Any) -> Statistics:
    """Return the statistics of a transition, from the info that blackjax returns."""

    def scalar(name: str, dtype: Any) -> Any:
        value = getattr(info, name, None)
        if value is None or jnp.ndim(value) > 0:
            return None
        return jnp.asarray(value, dtype)

    return Statistics(
        scalar("is_divergent", jnp.int32),
        scalar("acceptance_rate", None),
        scalar("num_integration_steps", jnp.int32),
        scalar("num_trajectory_expansions", jnp.int32),
        _energy(info, scalar("energy", None)),
    )


def no_statistics(like: Statistics) -> Statistics:
    """Return the statistics of no transition, with the shapes of others."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def added(before: Statistics, last: Statistics) -> Statistics:
    """Return the sum of statistics: the greater tree depth, the last energy."""

    def plus(one: Any, other: Any) -> Any:
        return None if one is None else one + other

    depths = before.tree_depth, last.tree_depth
    return Statistics(
        plus(before.diverging, last.diverging),
        plus(before.acceptance, last.acceptance),
        plus(before.num_integration_steps, last.num_integration_steps),
        None if None in depths else jnp.maximum(*depths),
        last.energy,
    )


def _energy(info: Any, energy: Any) -> Any:
    """Compute the energy at the state that was drawn.

    NUTS reports it. Samplers that accept or reject report the energy of the proposal,
    also if it was rejected. At the state before it the energy is smaller by
    `-log(acceptance rate)`; if the rate underflowed to zero, it is unknown.
    """
    accepted = getattr(info, "is_accepted", None)
    if energy is None or accepted is None:
        return energy
    if set(getattr(info, "_fields", ())) != _OF_HMC or jnp.ndim(accepted) > 0:
        return None
    rate = info.acceptance_rate
    before = jnp.where(rate > 0, energy + jnp.log(rate), jnp.nan)
    return jax.lax.select(jnp.asarray(accepted), energy, before.astype(energy.dtype))
