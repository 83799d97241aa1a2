"""Invalid likelihoods, NaN and plus infinity, revealed or rejected.

Samplers compare. Comparisons with NaN are false, so a proposal with NaN is silently
rejected, and live points of NaN are never replaced. Plus infinity is accepted, and then
lies above every contour.

Rejected proposals leave no trace in what a step returns, and a program with a callback
for each of them cannot be stored in JAX's compilation cache. So to find them they are
accepted: NaN becomes plus infinity, which is above every contour. Where the prior is
zero the sampler still does not go. A chain that has reached such a point stays there
until the end of the step, where the point is found. The run ends there, before any
other point is made from it.

To continue and reject them, they become minus infinity, and a callback counts them. It
is called for those alone, from within the likelihood, where `Continuous` allows it.

All of that goes through arguments of the API, in which nothing is changed: the user's
functions, and `update_strategy`, the function by which chains make new points. The
strategy is given one step of a chain, which is wrapped on its way.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..batchers import expensive
from ..batchers._marks import without_mark
from ..rebuild import rebuild_sampler
from ..run._program import ProgramCache
from ._chain_counts import recorded


_STRATEGY: Final = "update_strategy"


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


@final
class Rejected:
    """Thread-safe count of the invalid likelihoods that were rejected."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """The count so far, once all running programs have called back."""
        jax.effects_barrier()
        return self._count

    def restart(self) -> None:
        jax.effects_barrier()
        self._count = 0

    def add(self, invalid: Any) -> None:
        # Compiled programs call back from the threads of several devices at once.
        more = int(np.count_nonzero(np.asarray(invalid)))
        with self._lock:
            self._count += more


@contextlib.contextmanager
def counter_of(kept: ProgramCache) -> Iterator[tuple[Rejected, ProgramCache]]:
    """Yield a counter, and the cache of the programs that call back to it.

    Two runs of the same functions at the same time, in two threads, get two counters,
    with programs of their own.
    """
    free: list[Rejected] = kept.get("counters", list)
    rejected = free.pop() if free else Rejected()
    rejected.restart()
    try:
        yield rejected, kept.get(rejected, ProgramCache)
    finally:
        free.append(rejected)


def built(
    api: Any,
    functions: Mapping[str, Callable[..., Any]],
    settings: Mapping[str, Any],
    batcher: Any,
    rejected: Rejected | None,
) -> Any:
    """Call an API with guarded functions, and return the algorithm.

    Invalid likelihoods are rejected and counted; revealed if `rejected` is None.
    """
    if batcher is not None:
        api = rebuild_sampler(api, batcher=batcher)
    arguments = {
        **functions,
        "loglikelihood_fn": guarded_loglikelihood(**functions, rejected=rejected),
        **settings,
    }
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
    logprior_fn: Callable[..., Any],
    loglikelihood_fn: Callable[..., Any],
    rejected: Rejected | None,
) -> Callable[..., Any]:
    """Wrap a log-likelihood to reveal invalid values, or to reject and count them."""
    bare, prior = without_mark(loglikelihood_fn), without_mark(logprior_fn)

    @functools.wraps(bare)
    def guarded(position: PyTree) -> Any:
        value = jnp.asarray(bare(position))
        if rejected is None:
            return jnp.where(jnp.isnan(value), jnp.inf, value)
        bad = jnp.isnan(value) | jnp.isposinf(value)
        _count_invalid(rejected, bad & (prior(position) > -jnp.inf))
        return jnp.where(bad, -jnp.inf, value)

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


def _count_invalid(rejected: Rejected, bad: Any) -> None:
    """Call back if something is bad, once for any number of mapped points."""

    @jax.custom_batching.custom_vmap
    def call_back(bad: Any) -> Any:
        jax.lax.cond(
            jnp.any(bad),
            lambda x: jax.debug.callback(rejected.add, x),
            lambda _: None,
            bad,
        )
        return jnp.zeros((), bool)

    # Under `jax.vmap` the condition would become a select, which always calls back.
    @call_back.def_vmap
    def call_back_for_all(size: int, batched: Any, bad: Any) -> Any:
        return call_back(bad), False

    call_back(jax.lax.stop_gradient(bad))
