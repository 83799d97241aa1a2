"""Cases for variational inference."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import optax

from .cases import LANES, Case, Program, logdensity, position, positions, walk


# Few iterations: each is a task of its own, and they are compiled as a batch.
LBFGS = {"maxiter": 5, "maxcor": 3, "maxls": 20}


def _gaussian(api: Any) -> Program:
    algorithm = api(logdensity, optax.sgd(0.01), num_samples=LANES)

    def fun(key: jax.Array, start: Any) -> Any:
        _, (state, history), keys = walk(
            algorithm.step, key, algorithm.init(start), steps=2
        )
        return state, history, keys, algorithm.sample(key, state, LANES)

    return fun, (jax.random.key(0), position())


def _renyi(api: Any) -> Program:
    objective = blackjax.vi.meanfield_vi.RenyiAlpha(0.5)  # pyright: ignore
    algorithm = api(
        logdensity,
        optax.adam(0.05),
        num_samples=LANES,
        objective=objective,
        stl_estimator=False,
    )

    def fun(key: jax.Array, start: Any) -> Any:
        return walk(algorithm.step, key, algorithm.init(start), steps=2)

    return fun, (jax.random.key(0), position())


def _pathfinder(api: Any) -> Program:
    algorithm = api(logdensity)

    def fun(key: jax.Array, start: Any) -> Any:
        state, info = algorithm.init(key, start, num_samples=5, **LBFGS)
        return state, info, algorithm.sample(key, state, LANES)

    return fun, (jax.random.key(0), position())


def _pathfinder_functions(api: Any) -> Program:
    def fun(key: jax.Array, start: Any) -> Any:
        state, info = api.approximate(key, logdensity, start, num_samples=5, **LBFGS)
        return state, info, api.sample(key, state)

    return fun, (jax.random.key(0), position())


def _multipathfinder(api: Any) -> Program:
    algorithm = api(logdensity)

    def fun(key: jax.Array, starts: Any) -> Any:
        state, info = algorithm.init(key, starts, num_samples=5, **LBFGS)
        return state, info, algorithm.sample(key, state, 4)

    return fun, (jax.random.key(0), positions())


def _schrodinger_follmer(api: Any) -> Program:
    algorithm = api(logdensity, n_steps=4, n_inner_samples=5)

    def fun(key: jax.Array, start: Any) -> Any:
        state = algorithm.init(start)
        steps = walk(algorithm.step, key, state, steps=2)
        return steps, algorithm.sample(key, state, LANES)

    return fun, (jax.random.key(0), position())


def _svgd(api: Any) -> Program:
    algorithm = api(jax.grad(logdensity), optax.sgd(0.1))

    def fun(particles: Any) -> Any:
        state = algorithm.init(particles, {"length_scale": jnp.asarray(1.0)})
        return jax.lax.scan(
            lambda state, _: (algorithm.step(state),) * 2, state, length=3
        )

    return fun, (positions(),)


CASES = (
    Case("meanfield_vi", _gaussian, steps=2, tolerance=1e-13),
    Case("meanfield_vi", _renyi, steps=2, tolerance=1e-13, variant="renyi"),
    Case("fullrank_vi", _gaussian, steps=2, tolerance=1e-13),
    Case("pathfinder", _pathfinder, steps=1, tolerance=1e-12),
    Case("pathfinder", _pathfinder_functions, 1, 1e-12, "functions"),
    Case("multipathfinder", _multipathfinder, 1, 1e-12),
    Case("schrodinger_follmer", _schrodinger_follmer, steps=2, tolerance=1e-13),
    Case("svgd", _svgd, steps=3, tolerance=1e-13),
)
