"""A nested sampler by lanes, and what they say about where they pause."""

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp

import batchkit as bk
from batchkit.batchers._trace_log import LogEntry, leave, start_log


LANES = 3
STEP_OF_NSS = "blackjax.ns.from_mcmc:*"

Fun = Callable[..., Any]


def logprior(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def loglikelihood(x: jax.Array) -> jax.Array:
    return -2.0 * jnp.sum((jnp.sin(x @ jnp.ones((2, 2))) - 1.0) ** 2)


def positions(count: int = 8) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, 2))


def built(api: Any = blackjax.nss, **settings: Any) -> Any:
    model = {"logprior_fn": logprior, "loglikelihood_fn": loglikelihood, **settings}
    return api(num_inner_steps=1, num_delete=4, **model)


def nss(batcher: Any = None, **settings: Any) -> Any:
    """A nested sampler, rebuilt before its functions are handed in."""
    batcher = bk.Continuous(LANES) if batcher is None else batcher
    return built(bk.rebuild_sampler(blackjax.nss, batcher=batcher), **settings)


def notes(fun: Fun, *args: Any) -> list[str]:
    """What the batchers say in one trace, which is neither compiled nor profiled."""
    root = LogEntry(None)
    token = start_log(root)
    try:
        jax.make_jaxpr(fun)(*args)
    finally:
        leave(token)
    pending, found = list(root.inside), []
    while pending:
        reached = pending.pop(0)
        found.append(reached.note)
        pending = reached.inside + pending
    return found


def notes_of_step(algorithm: Any, upstream: Any = None) -> str:
    """The note of the site where points move, in one step."""
    state = jax.eval_shape((upstream or algorithm).init, positions())
    found = notes(algorithm.step, jax.random.key(1), state)
    (note,) = (x for x in found if x.startswith("pauses at"))
    return note


def places(note: str) -> str:
    return note.split("; ")[0]


def step(algorithm: Any) -> Any:
    state = jax.jit(algorithm.init)(positions())
    return jax.jit(algorithm.step)(jax.random.key(1), state)
