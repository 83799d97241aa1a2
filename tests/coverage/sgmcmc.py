"""Cases for stochastic gradient MCMC, with blackjax's own gradient estimators."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp

from .cases import LANES, Case, Program, logprior, position


STEPS = 3
DATA = 21


def _loglikelihood(position: Any, datum: jax.Array) -> jax.Array:
    return -((datum - position["y"] - position["x"][0] * position["x"][1]) ** 2)


def _estimators() -> Any:
    # The vmap over a minibatch stands here, and not in the samplers.
    gradients = blackjax.sgmcmc.gradients  # pyright: ignore
    settings = (logprior, _loglikelihood, DATA)
    return gradients.logdensity_estimator(*settings), gradients.grad_estimator(
        *settings
    )


def _data() -> jax.Array:
    return jnp.sin(jnp.arange(STEPS * LANES, dtype=float)).reshape(STEPS, LANES)


def _run(algorithm: Any, *step_sizes: float) -> Program:
    def fun(key: jax.Array, start: Any, data: jax.Array) -> Any:
        key, init_key = jax.random.split(key)
        state = algorithm.init(start, init_key)

        def body(state: Any, xs: Any) -> Any:
            key, minibatch = xs
            state = algorithm.step(key, state, minibatch, *step_sizes)
            return state, state

        keys = jax.random.split(key, STEPS)
        return jax.lax.scan(body, state, (keys, data)), keys

    return fun, (jax.random.key(1), position(), _data())


def _sampler(**settings: Any) -> Any:
    def program(api: Any) -> Program:
        _, gradient = _estimators()
        return _run(api(gradient, **settings), 1e-3)

    return program


def _control_variates(api: Any) -> Program:
    _, gradient = _estimators()
    data = _data().reshape(-1)
    centre = position(seed=3)

    def fun(key: jax.Array, start: Any, minibatches: jax.Array) -> Any:
        controlled = blackjax.sgmcmc.gradients.control_variates(  # pyright: ignore
            gradient, centre, data
        )
        run, _ = _run(api(controlled), 1e-3)
        return run(key, start, minibatches)

    return fun, (jax.random.key(1), position(), _data())


def _contour(api: Any) -> Program:
    density, gradient = _estimators()
    algorithm = api(density, gradient, num_partitions=5, energy_gap=10.0)
    return _run(algorithm, 1e-3, 1e-3)


CASES = (
    Case("sgld", _sampler(), STEPS, 1e-13),
    Case("sgld", _control_variates, STEPS, 1e-13, variant="control_variates"),
    Case("sghmc", _sampler(num_integration_steps=2), STEPS, 1e-13),
    Case("sgnht", _sampler(), STEPS, 1e-13),
    Case("csgld", _contour, STEPS, 1e-13),
)
