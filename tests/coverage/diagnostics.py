"""Cases for diagnostics, optimizers and the functions around a sampler."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp

from .cases import LANES, Case, Program, logdensity, position


def _draws() -> jax.Array:
    key = jax.random.key(0)
    return jnp.cumsum(jax.random.normal(key, (5, 20, 3)), 1) * 0.3


def _of_draws(api: Any) -> Program:
    return lambda draws: api(draws), (_draws(),)


def _of_vector(api: Any) -> Program:
    return lambda draws: api(draws.reshape(-1)), (_draws(),)


def _split_r(module: Any) -> Program:
    def fun(draws: jax.Array) -> Any:
        return module.splitR(draws, 10, 5), module.psis_weights(draws[:, 0])

    return fun, (_draws().reshape(10, 10, 3)[:, 0],)


def _lbfgs(module: Any) -> Program:
    def fun(start: Any) -> Any:
        return module.minimize_lbfgs(
            lambda x: -logdensity(x), start, maxiter=LANES, maxcor=5
        )

    return fun, (position(),)


def _dual_averaging(module: Any) -> Program:
    init, update, final = module.dual_averaging()

    def fun(errors: jax.Array) -> Any:
        state = init(1.0)
        for error in errors:
            state = update(state, error)
        return state, final(state)

    return fun, (jnp.array([0.3, -0.2, 0.1]),)


def _inference(module: Any) -> Program:
    algorithm = blackjax.nuts(
        logdensity, step_size=0.2, inverse_mass_matrix=jnp.ones(3)
    )

    def fun(key: jax.Array, start: Any) -> Any:
        return module.run_inference_algorithm(
            key, algorithm, num_steps=2, initial_position=start
        )

    return fun, (jax.random.key(0), position())


CASES = (
    Case("ess", _of_draws, 1, 0.0),
    Case("ess_bulk", _of_draws, 1, 0.0),
    Case("ess_tail", _of_draws, 1, 0.0),
    Case("rhat", _of_draws, 1, 0.0),
    Case("pareto_khat", _of_vector, 1, 0.0),
    Case("diagnostics", _split_r, 1, 1e-12),
    Case("lbfgs", _lbfgs, LANES, 1e-12),
    Case("dual_averaging", _dual_averaging, 3, 0.0),
    Case("util", _inference, 2, 0.0),
)
