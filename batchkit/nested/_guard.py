"""Invalid likelihoods, NaN and plus infinity, made visible or rejected.

Samplers compare. Comparisons with NaN are false, so a proposal with NaN is rejected
without a word, and live points of NaN can never be replaced. Plus infinity is accepted
and then above everything.

Proposals that are rejected leave no trace in what a step returns, and a program that
called back to Python for each of them could not be kept in JAX's compilation cache. So
to find them they are accepted: a NaN becomes plus infinity, which is above every
contour. Where the prior is zero the sampler still does not go. A chain that has reached
such a point stays there (`stopping`) until the end of the step, where it is seen. The
run ends there, so that nothing has been built on it.

To go on and reject them, minus infinity takes their place, and a callback counts. It
calls back for those alone, from within the likelihood, where `Continuous` allows it.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..batchers import expensive
from ..batchers._marks import without_mark
from ..run._program import Kept


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
    """How many likelihoods were invalid, counted as they are rejected."""

    def __init__(self, count: int = 0) -> None:
        self._count = count
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """All so far, those of programs that still run included."""
        jax.effects_barrier()
        return self._count

    def restart(self) -> None:
        """Counts from 0 again."""
        jax.effects_barrier()
        self._count = 0

    def add(self, invalid: Any) -> None:
        """Called from compiled programs, by the threads of several devices at once."""
        more = int(np.count_nonzero(np.asarray(invalid)))
        with self._lock:
            self._count += more


@contextlib.contextmanager
def counter_of(kept: Kept) -> Iterator[tuple[Rejected, Kept]]:
    """Yields a counter, and what is kept of programs that call back to it.

    **Arguments:**

    - `kept`: what is kept for the functions. Two runs of them at the same time, in two
        threads, get two counters, with programs of their own.
    """
    free: list[Rejected] = kept.get("counters", list)
    rejected = free.pop() if free else Rejected()
    rejected.restart()
    try:
        yield rejected, kept.get(rejected, Kept)
    finally:
        free.append(rejected)


def is_invalid(loglikelihood: Any) -> Bool[Array, "..."]:
    """Where a log-likelihood is NaN or plus infinity."""
    return jnp.isnan(loglikelihood) | jnp.isposinf(loglikelihood)


def revealing(loglikelihood_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the log-likelihood with plus infinity for NaN, which is then seen."""

    def reveal(loglikelihood_fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(loglikelihood_fn)
        def revealed(position: PyTree) -> Any:
            value = jnp.asarray(loglikelihood_fn(position))
            return jnp.where(jnp.isnan(value), jnp.inf, value)

        return revealed

    return _marked_as(loglikelihood_fn, reveal)


def stopping(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the step of a chain, which does not leave a point that is invalid."""

    @functools.wraps(step)
    def stopped(rng_key: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        new, info = step(rng_key, state, *args, **kwargs)
        stays = is_invalid_point(state)
        return jax.tree.map(lambda x, y: jnp.where(stays, x, y), state, new), info

    return stopped


def rejecting(
    logprior_fn: Callable[..., Any],
    loglikelihood_fn: Callable[..., Any],
    rejected: Rejected,
) -> Callable[..., Any]:
    """Return the log-likelihood with minus infinity where it is invalid, counted."""
    prior = without_mark(logprior_fn)

    def reject(loglikelihood_fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(loglikelihood_fn)
        def valid(position: PyTree) -> Any:
            value = jnp.asarray(loglikelihood_fn(position))
            bad = is_invalid(value)
            _tell(rejected, bad & (prior(position) > -jnp.inf))
            return jnp.where(bad, -jnp.inf, value)

        return valid

    return _marked_as(loglikelihood_fn, reject)


def is_invalid_point(particle: Any) -> Bool[Array, "..."]:
    """Where a point of blackjax has an invalid log-likelihood or an infinite prior."""
    return is_invalid(particle.loglikelihood) | jnp.isposinf(particle.logdensity)


def _marked_as(
    fun: Callable[..., Any], change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """Change a function, with its mark around the change: lanes make it together."""
    bare = without_mark(fun)
    return change(bare) if bare is fun else expensive(change(bare))


def _tell(rejected: Rejected, bad: Any) -> None:
    """Calls back if something is bad, for however many points at once."""

    @jax.custom_batching.custom_vmap
    def tell(bad: Any) -> Any:
        jax.lax.cond(
            jnp.any(bad),
            lambda x: jax.debug.callback(rejected.add, x),
            lambda _: None,
            bad,
        )
        return jnp.zeros((), bool)

    @tell.def_vmap
    def of_many(size: int, batched: Any, bad: Any) -> Any:
        return tell(bad), False

    tell(jax.lax.stop_gradient(bad))
