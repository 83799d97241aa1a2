"""Likelihoods that are no numbers, made visible.

A sampler compares. NaN compares as false, so a proposal with NaN is rejected without a
word, and live points of NaN can never be replaced, for ever. Plus infinity is accepted
and then above everything.

Proposals that are rejected leave no trace in what a step returns, and a program that
called back to Python for each of them could not be kept in JAX's compilation cache. So
to find them they are accepted: where the likelihood is NaN or plus infinity, and the
prior is not zero, a point gets a log-likelihood *and* a log-prior of plus infinity.
That is above every contour and, where a chain draws a level below its density, above
every level: the chain stays with such points until the end of the step, where they are
seen. The run ends there, so that nothing has been built on them.

To go on and reject them, minus infinity takes the place of what is no number, and a
callback counts. It calls back for those alone, from within the likelihood, where
`Continuous` allows it.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..batchers._marks import SUPPOSED, mark, without_mark
from ..rebuild._bound import bound_names, exchanged
from ..rebuild._ownership import Packages
from ..run._kept import Kept


PACKAGES: Final = Packages(("blackjax",))

_PRIOR: Final = "logprior_fn"
_LIKELIHOOD: Final = "loglikelihood_fn"


@final
class InvalidLikelihoodError(ValueError):
    """A log-likelihood is NaN or plus infinity where the prior is not zero.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import pytest
    import batchkit as bk

    algorithm = blackjax.nss(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, -jnp.inf),
        loglikelihood_fn=lambda x: jnp.log(x[0]),  # NaN below zero
        num_inner_steps=5,
    )
    positions = jax.random.uniform(jax.random.key(0), (50, 2), minval=-1.0)
    with pytest.raises(bk.InvalidLikelihoodError, match="NaN") as info:
        bk.run_nested(algorithm, jax.random.key(1), positions, progress=False)
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
    """How many likelihoods were no numbers, counted as they are rejected."""

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

    - `kept`: what is kept for the algorithm. Two runs of it at the same time, in two
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
    """Where a log-likelihood is no number to be compared with."""
    return jnp.isnan(loglikelihood) | jnp.isposinf(loglikelihood)


def revealing(algorithm: Any) -> Any:
    """The algorithm with points of invalid likelihood accepted, to be seen.

    An algorithm that does not make its points by blackjax's `init_state_strategy`, or
    something like it, comes back as it is: there such proposals are rejected.
    """

    def reveal(make_point: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make_point)
        def revealed(*args: Any, **kwargs: Any) -> Any:
            point = make_point(*args, **kwargs)
            bad = is_invalid(point.loglikelihood) | jnp.isposinf(point.logdensity)
            # Where the prior is zero, or NaN, the sampler never goes.
            bad &= point.logdensity > -jnp.inf
            return point._replace(
                loglikelihood=jnp.where(bad, jnp.inf, point.loglikelihood),
                logdensity=jnp.where(bad, jnp.inf, point.logdensity),
            )

        return revealed

    return exchanged(algorithm, lambda x: reveal(x) if _binds(x) else x, PACKAGES)[0]


def rejecting(algorithm: Any, rejected: Rejected) -> Any:
    """The algorithm with minus infinity for likelihoods that are no numbers.

    **Raises:**

    `ValueError` if the likelihood is out of reach, because the algorithm does not bind
    it by the name `loglikelihood_fn` together with `logprior_fn`.
    """

    def reject(make_point: Any) -> Any:
        bound = make_point.keywords
        # The new function is marked as a whole, since lanes make it together.
        prior, likelihood = map(without_mark, (bound[_PRIOR], bound[_LIKELIHOOD]))

        def valid(position: PyTree) -> Any:
            value = jnp.asarray(likelihood(position))
            bad = is_invalid(value)
            _tell(rejected, bad & (prior(position) > -jnp.inf))
            return jnp.where(bad, -jnp.inf, value)

        changed = {**bound, _LIKELIHOOD: mark(valid, SUPPOSED, _LIKELIHOOD)}
        return functools.partial(make_point.func, *make_point.args, **changed)

    new, count = exchanged(algorithm, lambda x: reject(x) if _binds(x) else x, PACKAGES)
    if count == 0:
        raise ValueError(
            "run_nested(on_invalid='reject'): the likelihood is out of reach in this "
            "algorithm. Pass the algorithm as the API returns it, with `init` and "
            "`step` not jitted; or make your likelihood return minus infinity where "
            "it is no number, and use on_invalid='raise'."
        )
    return new


def users_functions(algorithm: Any) -> dict[str, Callable[..., Any]]:
    """The prior and the likelihood of an algorithm, by name, as far as it has them."""
    found: dict[str, Any] = {}
    for name, value in bound_names(algorithm, PACKAGES):
        if name in (_PRIOR, _LIKELIHOOD) and callable(value):
            found.setdefault(name, value)
    return found


def settings_of(algorithm: Any) -> dict[str, Any]:
    """The numbers and texts, by name, that an algorithm was built with."""
    found: dict[str, list[Any]] = {}
    for name, value in bound_names(algorithm, PACKAGES):
        if isinstance(value, bool | int | float | str):
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    # The order in which an algorithm is walked through does not count.
    return {
        name: values[0] if len(values) == 1 else sorted(values, key=repr)
        for name, values in sorted(found.items())
    }


def _binds(x: Any) -> bool:
    return isinstance(x, functools.partial) and {_PRIOR, _LIKELIHOOD} <= set(x.keywords)


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
