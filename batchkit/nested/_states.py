"""One layout for the states and infos of nested samplers.

blackjax keeps points as `particles`, with a position, a log-density, a log-likelihood
and a birth each. The fork of the Handley lab, from which its nested sampling came, has
these as fields of the state and of the info, where `particles` are the bare positions.
Its states and infos are wrapped here, so that nothing else sees a difference.
"""

import functools
from typing import Any, Final, NamedTuple, final


_FIELDS: Final = ("particles", "loglikelihood", "loglikelihood_birth", "logprior")


@final
class Points(NamedTuple):
    """Points with the names of blackjax's particles; arrays of any leading shape."""

    position: Any
    logdensity: Any
    loglikelihood: Any
    loglikelihood_birth: Any


@final
class ForkState(NamedTuple):
    """A state of the fork."""

    state: Any

    @property
    def particles(self) -> Points:
        return _points(self.state)


@final
class ForkInfo(NamedTuple):
    """An info of the fork."""

    info: Any

    @property
    def particles(self) -> Points:
        return _points(self.info)

    @property
    def update_info(self) -> Any:
        """Infos of the slices, without the positions beside them."""
        inner = getattr(self.info, "inner_kernel_info", ())
        return getattr(inner, "info", inner)


@final
class NestedSampler(NamedTuple):
    """A nested sampler whose states and infos have `particles` as blackjax's do."""

    init: Any
    step: Any


def with_particles(algorithm: Any) -> NestedSampler:
    """The algorithm with states and infos in blackjax's layout.

    **Raises:**

    `TypeError`, when `init` is called, if its states are not those of a nested sampler.
    """

    @functools.wraps(algorithm.init)
    def init(*args: Any) -> Any:
        state = algorithm.init(*args)
        if is_of_fork(state):
            return ForkState(state)
        if not hasattr(getattr(state, "particles", None), "loglikelihood"):
            raise TypeError(_not_nested(state))
        return state

    def step(rng_key: Any, state: Any) -> Any:
        if not isinstance(state, ForkState):
            return algorithm.step(rng_key, state)
        new, info = algorithm.step(rng_key, state.state)
        return ForkState(new), ForkInfo(info)

    return NestedSampler(init, step)


def particles_of(x: Any) -> Any:
    """The points of a state or an info of either layout."""
    return _points(x) if is_of_fork(x) else x.particles


def is_of_fork(x: Any) -> bool:
    """Return True if a state or an info has the layout of the fork."""
    return all(hasattr(x, name) for name in _FIELDS)


def _points(x: Any) -> Points:
    return Points(x.particles, x.logprior, x.loglikelihood, x.loglikelihood_birth)


def _not_nested(state: Any) -> str:
    names = ", ".join(getattr(state, "_fields", ())) or "no named fields"
    return (
        "run_nested(api=...): api must be a nested sampler, such as blackjax.nss, "
        "whose states have the log-likelihoods of their points in `particles`; `init` "
        f"returned a {type(state).__name__} with {names}. For Markov chains use "
        "`run_chains`."
    )
