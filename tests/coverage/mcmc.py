"""Cases for Markov chain Monte Carlo."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .cases import (
    DIM,
    LANES,
    Case,
    Program,
    chain,
    logdensity,
    loglikelihood,
    position,
    walk,
)


STEPS = 3

# Settings that differ only in how they are made inside a program, in its precision.
Settings = Callable[[], dict[str, Any]]


def _metric(**settings: Any) -> Settings:
    return lambda: {"inverse_mass_matrix": jnp.ones(DIM), **settings}


def _chain(settings: Settings = dict, of: Callable[[Any], Any] = lambda x: x) -> Any:
    """A chain of the top-level API, which `of` finds in what is public."""

    def program(api: Any) -> Program:
        return chain(of(api)(logdensity, **settings()), position(), STEPS)

    return program


def _functions(*arguments: Any, settings: Settings = dict) -> Any:
    """The same through `init` and `build_kernel`."""

    def program(api: Any) -> Program:
        def fun(key: jax.Array, start: Any) -> Any:
            kernel = api.build_kernel(*arguments)
            state = api.init(start, logdensity)

            def step(key: jax.Array, state: Any) -> Any:
                return kernel(key, state, logdensity, **settings())

            return walk(step, key, state, STEPS)

        return fun, (jax.random.key(1), position())

    return program


def _jump(key: jax.Array, position: dict[str, jax.Array]) -> dict[str, jax.Array]:
    # Keyed by the names in order, as pytrees are.
    x, y = jax.random.split(key)
    return {
        "x": position["x"] + 0.3 * jax.random.normal(x, (2,)),
        "y": position["y"] + 0.3 * jax.random.normal(y),
    }


def _independent(key: jax.Array) -> dict[str, jax.Array]:
    return _jump(key, {"x": jnp.zeros(2), "y": jnp.zeros(())})


def _random_walk_step(key: jax.Array, position: Any) -> Any:
    return jax.tree.map(lambda x, old: x - old, _jump(key, position), position)


def _random_walk_module(module: Any) -> Program:
    def fun(key: jax.Array, start: Any) -> Any:
        kernels = (
            (module.build_rmh(), _jump),
            (module.build_irmh(), _independent),
            (module.build_additive_step(), _random_walk_step),
        )
        state = module.init(start, logdensity)
        return [
            walk(lambda k, s: kernel(k, s, logdensity, move), key, state, STEPS)  # noqa: B023
            for kernel, move in kernels
        ]

    return fun, (jax.random.key(1), position())


def _latent_gaussian(of: Callable[[Any], Any] = lambda x: x) -> Any:
    def program(api: Any) -> Program:
        covariance = jnp.eye(DIM) + 0.3

        def data(x: jax.Array) -> jax.Array:
            return loglikelihood({"x": x[:2], "y": x[2]})

        algorithm = of(api)(data, covariance=covariance, step_size=0.4)
        return chain(algorithm, jnp.linspace(-0.5, 0.5, DIM), STEPS)

    return program


def _elliptical(api: Any) -> Program:
    covariance = jnp.eye(DIM) + 0.3

    def data(x: jax.Array) -> jax.Array:
        return loglikelihood({"x": x[:2], "y": x[2]})

    algorithm = api(data, mean=jnp.zeros(DIM), cov=covariance)
    return chain(algorithm, jnp.linspace(-0.5, 0.5, DIM), STEPS)


def _riemannian(api: Any) -> Program:
    def metric(position: jax.Array) -> jax.Array:
        return jnp.diag(1.0 + 0.1 * position**2)

    def density(x: jax.Array) -> jax.Array:
        return logdensity({"x": x[:2], "y": x[2]})

    algorithm = api(density, step_size=0.1, mass_matrix=metric, num_integration_steps=2)
    return chain(algorithm, jnp.linspace(-0.5, 0.5, DIM), STEPS)


def _log_joint(theta: dict[str, jax.Array], phi: dict[str, jax.Array]) -> jax.Array:
    return logdensity({"x": theta["x"], "y": phi["y"]}) - 0.1 * jnp.sum(phi["y"] ** 4)


def _laplace(**settings: Any) -> Any:
    def program(api: Any) -> Program:
        algorithm = api(
            _log_joint,
            {"x": jnp.zeros(2)},
            step_size=0.2,
            inverse_mass_matrix=jnp.ones(1),
            maxiter=LANES,
            **settings,
        )
        return chain(algorithm, {"y": jnp.array(0.3)}, steps=2)

    return program


def _module(module: Any) -> Any:
    return module.as_top_level_api


_HMC = _metric(step_size=0.2, num_integration_steps=3)
_DYNAMIC = _metric(step_size=0.2)
_ORBITAL = _metric(step_size=0.2, period=LANES)
_MCLMC: Settings = lambda: {"L": 1.0, "step_size": 0.2}
_SLICE = _chain(lambda: {"max_expansions": 3})
_EXACT = 0.0  # no vmap, so one program in every layout


def _plain(name: str, settings: Settings = dict) -> Case:
    return Case(name, _chain(settings), STEPS, _EXACT)


CASES = (
    _plain("hmc", _HMC),
    Case("hmc", _functions(settings=_HMC), STEPS, _EXACT, variant="functions"),
    _plain("nuts", _metric(step_size=0.2, max_num_doublings=3)),
    _plain("mhmc", _HMC),
    Case("hmc_family", _chain(_HMC, lambda x: x[0]), STEPS, _EXACT),
    _plain("multinomial_hmc", _HMC),
    _plain("dhmc", _DYNAMIC),
    _plain("dynamic_hmc", _DYNAMIC),
    _plain("dmhmc", _DYNAMIC),
    _plain("mala", lambda: {"step_size": 0.1}),
    Case("rmhmc", _riemannian, STEPS, _EXACT),
    _plain(
        "ghmc",
        lambda: {
            "step_size": 0.2,
            "momentum_inverse_scale": jnp.ones(DIM),
            "alpha": 0.5,
            "delta": 0.3,
        },
    ),
    _plain("barker", lambda: {"step_size": 0.3}),
    _plain("barker_proposal", lambda: {"step_size": 0.3}),
    Case("elliptical_slice", _elliptical, STEPS, _EXACT),
    Case("slice_sampling", _SLICE, STEPS, 1e-13),
    Case("coordinate_slice", _SLICE, STEPS, 1e-13),
    _plain("gist_step_size", _metric(initial_step_size=0.2, max_search_steps=3)),
    _plain("gist_trajectory_length", _metric(step_size=0.2, max_num_steps=16)),
    _plain("mclmc", _MCLMC),
    _plain(
        "adjusted_mclmc", lambda: {"step_size": 0.2, "integration_steps_params": (2,)}
    ),
    _plain("adjusted_mclmc_dynamic", lambda: {"step_size": 0.2}),
    Case("orbital_hmc", _chain(_ORBITAL), STEPS, 1e-13),
    Case("periodic_orbital", _chain(_ORBITAL, _module), STEPS, 1e-13),
    Case("mgrad_gaussian", _latent_gaussian(), STEPS, _EXACT),
    Case("marginal_latent_gaussian", _latent_gaussian(_module), STEPS, _EXACT),
    _plain("rmh", lambda: {"proposal_generator": _jump}),
    _plain("rmh_as_top_level_api", lambda: {"proposal_generator": _jump}),
    _plain("irmh", lambda: {"proposal_distribution": _independent}),
    _plain("irmh_as_top_level_api", lambda: {"proposal_distribution": _independent}),
    _plain("additive_step_random_walk", lambda: {"random_step": _random_walk_step}),
    Case(
        "additive_step_random_walk",
        _chain(lambda: {"sigma": jnp.full(DIM, 0.3)}, lambda x: x.normal_random_walk),
        STEPS,
        _EXACT,
        variant="normal",
    ),
    _plain("normal_random_walk", lambda: {"sigma": jnp.full(DIM, 0.3)}),
    Case("random_walk", _random_walk_module, STEPS, _EXACT),
    Case("laplace_hmc", _laplace(num_integration_steps=2), 2, 1e-13),
    Case("laplace_mhmc", _laplace(num_integration_steps=2), 2, 1e-13),
    Case("laplace_dhmc", _laplace(), 2, 1e-13),
    Case("laplace_dmhmc", _laplace(), 2, 1e-13),
)
