"""Checks of the arguments of `run_nested`, and the guard of its likelihood.

Samplers compare. Comparisons with NaN are false, so a proposal with NaN is silently
rejected, and live points of NaN are never replaced. Plus infinity is accepted, and then
lies above every contour.

Rejected proposals leave no trace in what a step returns, and a program with a callback
for each of them cannot be stored in JAX's compilation cache. So to find them they are
accepted: NaN becomes plus infinity, which is above every contour. Where the prior is
zero the sampler still does not go. A chain that has reached such a point stays there
until the end of the step, where the point is found. The run ends there, before any
other point is made from it.

To continue and reject them, they become minus infinity.

All of that goes through arguments of the API, in which nothing is changed: the user's
functions, and `update_strategy`, the function by which chains make new points. The
strategy is given one step of a chain, which is wrapped on its way.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from .._util._checks import check_type
from .._util._formats import format_value
from ..batchers import expensive
from ..batchers._marks import without_mark
from ..rebuild import rebuild_sampler
from ..run._arguments import (
    StartError,
    check_scalar,
    checked_starts,
    named_leaves,
    row_of,
)
from ..run._names import columns, join_few
from ..run._program import Program, ProgramCache
from ._chain_counts import recorded
from ._dead import Points
from ._stop import AbstractStop


_STRATEGY: Final = "update_strategy"
_FUNCTIONS: Final = ("logprior_fn", "loglikelihood_fn")
_ORDER: Final = (
    "The order is run_nested(api, logprior_fn, loglikelihood_fn, rng_key, positions)."
)


@final
class InvalidLikelihoodError(ValueError):
    """A log-likelihood is NaN or plus infinity where the prior is not zero.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import pytest
    import batchkit as bk

    positions = jax.random.uniform(jax.random.key(0), (50, 2), minval=-1.0)
    with pytest.raises(bk.InvalidLikelihoodError, match="NaN") as info:
        bk.run_nested(
            blackjax.nss,
            lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, -jnp.inf),
            lambda x: jnp.log(x[0]),  # NaN below zero
            jax.random.key(1),
            positions,
            num_inner_steps=5,
        )
    assert jnp.all(info.value.positions[:, 0] < 0)
    ```
    """

    def __init__(self, message: str, positions: PyTree) -> None:
        """**Arguments:**

        - `message`: what is wrong and what to do; a text.
        - `positions`: where it happened, a pytree of arrays with a row for each place.
        """
        super().__init__(message, positions)
        self.positions = positions

    def __str__(self) -> str:
        return str(self.args[0])


def built(
    api: Any,
    functions: Mapping[str, Callable[..., Any]],
    settings: Mapping[str, Any],
    batcher: Any,
    rejects: bool,
) -> Any:
    """Call an API with functions that reveal invalid values, or reject them."""
    if batcher is not None:
        api = rebuild_sampler(api, batcher=batcher)
    guarded = guarded_loglikelihood(functions["loglikelihood_fn"], rejects)
    arguments = {**functions, "loglikelihood_fn": guarded, **settings}
    parameters = parameters_of(api) or {}
    if _STRATEGY in parameters:
        strategy = settings.get(_STRATEGY, parameters[_STRATEGY].default)

        @functools.wraps(strategy)
        def guarded_strategy(
            step: Callable[..., Any], *args: Any, **kwargs: Any
        ) -> Any:
            return strategy(recorded(stopping(step)), *args, **kwargs)

        arguments[_STRATEGY] = guarded_strategy
    return api(**arguments)


def parameters_of(api: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of an API; None if they are unknown or unlimited."""
    try:
        parameters = inspect.signature(getattr(api, "differentiable", api)).parameters
    except (TypeError, ValueError):
        return None
    kinds = {x.kind for x in parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else parameters


def guarded_loglikelihood(
    loglikelihood_fn: Callable[..., Any], rejects: bool
) -> Callable[..., Any]:
    """Wrap a log-likelihood to reject invalid values, or to accept them."""
    bare = without_mark(loglikelihood_fn)
    instead = -jnp.inf if rejects else jnp.inf

    @functools.wraps(bare)
    def guarded(position: PyTree) -> Any:
        value = jnp.asarray(bare(position))
        return jnp.where(jnp.isnan(value) | jnp.isposinf(value), instead, value)

    # A mark goes around the guard, so that lanes evaluate both together.
    return guarded if bare is loglikelihood_fn else expensive(guarded)


def stopping(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the step of a chain to stay at a point that is invalid."""

    @functools.wraps(step)
    def stopped(rng_key: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        new, info = step(rng_key, state, *args, **kwargs)
        stays = is_invalid(state.loglikelihood, state.logdensity)
        return jax.tree.map(lambda x, y: jnp.where(stays, x, y), state, new), info

    return stopped


def is_invalid(loglikelihood: Any, logprior: Any) -> Bool[Array, "..."]:
    """Return True where a likelihood is NaN or infinite, or a prior infinite."""
    invalid = jnp.isnan(loglikelihood) | jnp.isposinf(loglikelihood)
    return invalid | jnp.isposinf(logprior)


def check_api(api: Any, settings: Mapping[str, Any]) -> None:
    """Raise unless `api` is that of a nested sampler that takes the settings."""
    rule = "a nested sampler such as blackjax.nss"
    check_type(callable(api), "run_nested", "api", api, rule, _ORDER)
    parameters = parameters_of(api)
    if parameters is None:
        return
    if not parameters.keys() >= set(_FUNCTIONS):
        raise TypeError(
            f"run_nested(api={format_value(api)}): api must be a nested sampler, which "
            f"takes logprior_fn and loglikelihood_fn, such as blackjax.nss; this takes "
            f"{', '.join(parameters)}. For Markov chains use `run_chains`."
        )
    taken = {name: x for name, x in parameters.items() if name not in _FUNCTIONS}
    for name, value in settings.items():
        if name not in taken:
            raise TypeError(
                f"run_nested({name}={format_value(value)}): the sampler has no setting "
                f"{name}. It takes {', '.join(taken)}."
            )
    for name, parameter in taken.items():
        if parameter.default is inspect.Parameter.empty and name not in settings:
            raise TypeError(
                f"run_nested: the sampler needs {name}. Pass {name}=... by name."
            )


def check_options(stop: Any, on_invalid: Any) -> None:
    """Raise unless `stop` is a rule and `on_invalid` a choice."""
    rule = "a rule such as bk.RemainingEvidence(1e-3)"
    check_type(isinstance(stop, AbstractStop), "run_nested", "stop", stop, rule)
    if on_invalid not in ("raise", "reject"):
        raise ValueError(
            f"run_nested(on_invalid={format_value(on_invalid)}): on_invalid must be "
            "'raise' or 'reject', for likelihoods that are NaN or plus infinity."
        )


def live_points(positions: PyTree) -> PyTree:
    """Return the positions as arrays of JAX with a common leading axis, all finite."""
    remedy = "Draw every live point from the prior; some hundreds are usual."
    live = checked_starts(
        "run_nested", positions, "live points", least=2, remedy=remedy
    )
    for name, leaf in named_leaves("positions", live):
        if leaf.size == 0:
            raise ValueError(
                f"run_nested(positions=...): {name} has no elements, its shape is "
                f"{leaf.shape}. Leave it out, there is nothing to sample in it."
            )
    return live


def check_functions(
    functions: Mapping[str, Callable], positions: PyTree, kept: ProgramCache
) -> None:
    """Raise unless both functions return a real number, and the prior a finite one."""
    row, rule = row_of(positions), "a function of one position"
    for name, function in functions.items():
        check_type(callable(function), "run_nested", name, function, rule, _ORDER)
        check_scalar("run_nested", name, function, row)
    prior = Program(jax.vmap(functions["logprior_fn"]), kept, "prior")
    logprior = np.asarray(prior(positions))
    bad = np.flatnonzero(~np.isfinite(logprior))
    if bad.size:
        raise StartError(
            f"run_nested(positions=...): {bad.size} of {logprior.size} live points are "
            f"not in the prior: its log-density is {logprior[bad[0]]:g} at row "
            f"{bad[0]}{_at_row(positions, bad[0])}. Draw every live point from the "
            "prior that `logprior_fn` describes.",
            bad.tolist(),
        )


def check_counts(positions: PyTree, num_delete: int) -> None:
    """Raise if there are too few live points to replace `num_delete` of them."""
    rows = np.stack([column for _, column in columns(positions)], axis=1)
    count, dim = rows.shape
    if num_delete >= count:
        raise ValueError(
            f"run_nested(positions=...): there are {count} live points, and the "
            f"algorithm replaces {num_delete} at once; some must stay, from which new "
            "ones begin. Use more live points, or a `num_delete` of at most half of "
            "them."
        )
    distinct = len(np.unique(rows, axis=0))
    needed = max(num_delete, dim) + 1
    if distinct < needed:
        raise ValueError(
            f"run_nested(positions=...): {distinct} of {count} live points are "
            f"distinct, and at least {needed} are needed, more than {dim} dimensions "
            f"and than the {num_delete} that are replaced at once. Draw each live "
            "point from the prior, with a key of its own."
        )


def refuse_zero_likelihood(loglikelihood: np.ndarray) -> None:
    """Raise if the likelihood is zero at all of the first live points."""
    if np.all(np.isneginf(loglikelihood)):
        raise ValueError(
            "run_nested(positions=...): the log-likelihood is minus infinity at all "
            f"{loglikelihood.size} live points, so there is nothing to begin with. Use "
            "more live points, or a prior that is closer to the likelihood."
        )


def refuse_invalid(points: Points, which: str, advice: str = "") -> None:
    """Raise `InvalidLikelihoodError` if a likelihood or prior of points is invalid."""
    loglikelihood, logprior = points.loglikelihood, points.logprior
    # Not `is_invalid`, which would be compiled for each number of points.
    is_infinite = np.isposinf(loglikelihood) | np.isposinf(logprior)
    bad = np.flatnonzero(np.isnan(loglikelihood) | is_infinite)
    if not bad.size:
        return
    positions = jax.tree.map(lambda x: x[bad], points.positions)
    what = "log-prior" if np.any(np.isposinf(logprior)) else "log-likelihood"
    raise InvalidLikelihoodError(
        f"run_nested: the {what} of {bad.size} of {loglikelihood.size} {which} "
        f"is NaN or plus infinity, the first{_at_row(positions, 0)}. The exception has "
        "all of them as `.positions`. Make the likelihood return minus infinity where "
        f"it cannot be computed, or use on_invalid='reject', which does that.{advice}",
        positions,
    )


def _at_row(positions: PyTree, row: Any) -> str:
    """Format one position, as in ` at x[0] = 1, x[1] = 2`."""
    values = [f"{name} = {column[row]:.6g}" for name, column in columns(positions)]
    return f" at {join_few(values)}"
