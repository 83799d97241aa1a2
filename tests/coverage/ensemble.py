"""Cases for ensembles of chains that blackjax itself spreads over devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .cases import DIM, LANES, Case, Program, logdensity


STEPS = 3


def _mesh() -> Mesh:
    # blackjax's own name for the axis.
    return Mesh(np.array(jax.devices()[:2]), ("chains",))


class _Chain(NamedTuple):
    position: jax.Array
    logdensity: jax.Array


def _density(x: jax.Array) -> jax.Array:
    return logdensity({"x": x[:2], "y": x[2]})


def _kernel(key: jax.Array, chain: _Chain, scale: jax.Array) -> Any:
    # A Metropolis step: a kernel is mapped by blackjax, so any will do.
    jump, accept = jax.random.split(key)
    proposal = chain.position + scale * jax.random.normal(jump, (DIM,))
    value = _density(proposal)
    log_ratio = value - chain.logdensity
    accepted = jnp.log(jax.random.uniform(accept)) < log_ratio
    new = jax.tree.map(
        lambda a, b: jnp.where(accepted, a, b), _Chain(proposal, value), chain
    )
    return new, log_ratio


class _Adaptation:
    """A step size that follows the acceptance rate."""

    initial_state = 0.5

    def summary_statistics_fn(self, state: _Chain, info: Any, key: jax.Array) -> Any:
        del key
        return {"rate": jnp.exp(jnp.minimum(info, 0.0)), "x": state.position}

    def update(self, scale: Any, expected: Any) -> Any:
        return scale * jnp.exp(expected["rate"] - 0.3), expected


def _start(chains: int) -> _Chain:
    positions = jax.random.normal(jax.random.key(0), (chains, DIM))
    return _Chain(positions, jax.vmap(_density)(positions))


def _execute(api: Any) -> Program:
    chains = 2 * LANES

    def fun(key: jax.Array, chain: _Chain) -> Any:
        return api.ensemble_execute_fn(
            _kernel,
            key,
            chains,
            _mesh(),
            chain,
            jnp.asarray(0.5),
            lambda chain: chain.position**2,
        )

    return fun, (jax.random.key(1), _start(chains))


def _run(api: Any) -> Program:
    chains = 2 * LANES

    def fun(key: jax.Array, chain: _Chain) -> Any:
        return api.run_eca(
            key,
            chain,
            _kernel,
            _Adaptation(),
            STEPS,
            chains,
            _mesh(),
            all_chains_info=_all_chains,
        )

    return fun, (jax.random.key(1), _start(chains))


def _all_chains(position: jax.Array) -> jax.Array:
    # blackjax returns it as the same on every device, so it has to be.
    return jax.lax.pmean(position**2, "chains")


CASES = (
    Case("eca", _execute, 1, 1e-13, "execute"),
    # It reads the number of steps back to Python, which cannot be jitted.
    Case("eca", _run, STEPS, 1e-13, "run", eager=True),
)
