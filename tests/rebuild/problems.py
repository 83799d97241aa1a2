"""The problems of these tests, with what is known about them."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import blackjax.smc.resampling
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.ns.utils import finalise, log_weights
from jax.scipy.special import logsumexp


class Problem(NamedTuple):
    """A prior, a likelihood, and the logarithm of the evidence where it is known."""

    logprior_fn: Callable[..., Any]
    loglikelihood_fn: Callable[..., Any]
    half_width: float
    dim: int
    log_evidence: float | None = None

    def positions(self, seed: int, n_live: int) -> jax.Array:
        return jax.random.uniform(
            jax.random.key(seed),
            (n_live, self.dim),
            minval=-self.half_width,
            maxval=self.half_width,
        )

    def settings(self, **settings: Any) -> dict[str, Any]:
        return {
            "logprior_fn": self.logprior_fn,
            "loglikelihood_fn": self.loglikelihood_fn,
            **settings,
        }


def uniform_logprior(half_width: float) -> Callable[..., Any]:
    def logprior_fn(x: jax.Array) -> jax.Array:
        inside = jnp.all(jnp.abs(x) < half_width)
        return jnp.where(inside, -x.size * math.log(2 * half_width), -jnp.inf)

    return logprior_fn


def gaussian_loglikelihood(x: jax.Array) -> jax.Array:
    scaled = x / 0.5
    return -0.5 * jnp.sum(scaled**2) - x.size * math.log(0.5 * math.sqrt(2 * math.pi))


def plateau_loglikelihood(x: jax.Array) -> jax.Array:
    return -2.0 * jnp.floor(4.0 * jnp.sum(jnp.abs(x)))


# The likelihood integrates to one, so the evidence is the prior's density.
GAUSSIAN = Problem(
    uniform_logprior(5.0), gaussian_loglikelihood, 5.0, 5, -5 * math.log(10.0)
)
PLATEAU = Problem(uniform_logprior(2.0), plateau_loglikelihood, 2.0, 2)

# For `blackjax.tempered_smc` and its relatives.
SMC: dict[str, Any] = {
    "logprior_fn": lambda x: -0.5 * jnp.sum(x**2),
    "loglikelihood_fn": lambda x: -2.0 * jnp.sum((x - 1.0) ** 2),
    "mcmc_step_fn": functools.partial(
        blackjax.additive_step_random_walk.build_kernel(),
        random_step=blackjax.mcmc.random_walk.normal(jnp.array(0.3)),
    ),
    "mcmc_init_fn": blackjax.additive_step_random_walk.init,
    "mcmc_parameters": {},
    "resampling_fn": blackjax.smc.resampling.systematic,
    "num_mcmc_steps": 3,
}


def run(algorithm: Any, positions: jax.Array, seed: int, num_steps: int) -> Any:
    """The final state and the infos of all steps, as one jitted program each."""
    state = jax.jit(algorithm.init)(positions)

    @jax.jit
    def steps(state: Any, key: jax.Array) -> Any:
        def body(state: Any, key: jax.Array) -> Any:
            return algorithm.step(key, state)

        return jax.lax.scan(body, state, jax.random.split(key, num_steps))

    return steps(state, jax.random.key(seed))


def log_evidence(state: Any, infos: Any, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over simulated prior volumes of the dead points."""
    dead = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), infos.particles)
    info = blackjax.ns.base.NSInfo(dead, None)  # pyright: ignore
    final = finalise(state, [info], update_info=False)
    per_volume = logsumexp(log_weights(jax.random.key(seed), final, 200), axis=0)
    return float(np.mean(per_volume)), float(np.std(per_volume))
