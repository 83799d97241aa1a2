"""Cases for sequential Monte Carlo."""

import functools
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from blackjax.smc import extend_params, resampling
from blackjax.smc.pretuning import build_pretune
from blackjax.smc.tuning.from_particles import inverse_mass_matrix_from_particles
from blackjax.smc.waste_free import waste_free_smc

from .cases import (
    DIM,
    LANES,
    Case,
    Program,
    loglikelihood,
    logprior,
    positions,
    walk,
)


STEPS = 2


def _parameters(kernel: str = "hmc") -> dict[str, Any]:
    parameters = {"step_size": 0.2, "inverse_mass_matrix": jnp.eye(DIM)}
    if kernel == "hmc":
        parameters["num_integration_steps"] = 3
    return extend_params(parameters)  # pyright: ignore


def _kernel(name: str = "hmc") -> dict[str, Any]:
    """An inner kernel of blackjax's, handed in as users do."""
    api = getattr(blackjax, name)
    return {
        "mcmc_step_fn": api.build_kernel(),
        "mcmc_init_fn": api.init,
        "resampling_fn": resampling.systematic,
    }


def _model() -> dict[str, Any]:
    return {"logprior_fn": logprior, "loglikelihood_fn": loglikelihood}


def _schedule(algorithm: Any, settings: list[Any], particles: Any = None) -> Program:
    """One step for each setting: a temperature, or which data are in."""
    particles = positions() if particles is None else particles

    def fun(key: jax.Array, particles: Any) -> Any:
        state = algorithm.init(particles)
        keys = jax.random.split(key, len(settings))
        steps = []
        for step_key, setting in zip(keys, settings, strict=True):
            state, info = algorithm.step(step_key, state, setting)
            steps.append((state, info))
        return steps, keys

    return fun, (jax.random.key(2), particles)


def _adaptive(algorithm: Any) -> Program:
    def fun(key: jax.Array, particles: Any) -> Any:
        return walk(algorithm.step, key, algorithm.init(particles), STEPS)

    return fun, (jax.random.key(2), positions())


def _tempered(top_level: Callable[[Any], Any], kernel: str = "hmc") -> Any:
    def program(api: Any) -> Program:
        algorithm = top_level(api)(
            **_model(),
            **_kernel(kernel),
            mcmc_parameters=_parameters(kernel),
            num_mcmc_steps=2,
        )
        return _schedule(algorithm, [0.3, 1.0])

    return program


def _waste_free(api: Any) -> Program:
    algorithm = api(
        **_model(),
        **_kernel(),
        mcmc_parameters=_parameters(),
        num_mcmc_steps=None,
        update_strategy=waste_free_smc(2 * LANES, 2),
    )
    return _schedule(algorithm, [0.3, 1.0], positions(2 * LANES))


def _unshared(api: Any) -> Program:
    """A step size for each particle, which is mapped beside the positions."""
    parameters = _parameters() | {"step_size": jnp.linspace(0.1, 0.3, LANES)}
    algorithm = api(
        **_model(), **_kernel(), mcmc_parameters=parameters, num_mcmc_steps=2
    )
    return _schedule(algorithm, [0.3, 1.0])


def _adaptive_tempered(top_level: Callable[[Any], Any]) -> Any:
    def program(api: Any) -> Program:
        algorithm = top_level(api)(
            **_model(),
            **_kernel(),
            mcmc_parameters=_parameters(),
            num_mcmc_steps=2,
            target_ess=0.6,
        )
        return _adaptive(algorithm)

    return program


def _persistent(top_level: Callable[[Any], Any]) -> Any:
    def program(api: Any) -> Program:
        algorithm = top_level(api)(
            **_model(),
            **_kernel(),
            n_schedule=STEPS,
            mcmc_parameters=_parameters(),
            num_mcmc_steps=2,
        )
        return _schedule(algorithm, [0.3, 1.0])

    return program


def _adaptive_persistent(top_level: Callable[[Any], Any]) -> Any:
    def program(api: Any) -> Program:
        algorithm = top_level(api)(
            **_model(),
            **_kernel(),
            max_iterations=3,
            mcmc_parameters=_parameters(),
            num_mcmc_steps=2,
            target_ess=1.5,
        )
        return _adaptive(algorithm)

    return program


def _partial_posteriors(api: Any) -> Program:
    data = jnp.linspace(-1.0, 1.0, 4)

    def factory(mask: jax.Array) -> Callable[..., Any]:
        def logposterior(position: Any) -> jax.Array:
            residuals = data - position["y"] - position["x"][0] * position["x"][1]
            return logprior(position) - jnp.sum(mask * residuals**2)

        return logposterior

    algorithm = api(
        **_kernel(),
        mcmc_parameters=_parameters(),
        num_mcmc_steps=2,
        partial_logposterior_factory=factory,
    )
    masks = [jnp.array([1.0, 1.0, 0.0, 0.0]), jnp.ones(4)]
    settled = algorithm._replace(
        init=functools.partial(algorithm.init, num_observations=4)
    )
    return _schedule(settled, masks)


def _tuned(api: Any) -> Program:
    def tune(key: jax.Array, state: Any, info: Any) -> dict[str, Any]:
        del key, info
        scale = inverse_mass_matrix_from_particles(state.particles)
        return _parameters() | extend_params({"inverse_mass_matrix": scale})  # pyright: ignore

    algorithm = api(
        blackjax.adaptive_tempered_smc,
        **_model(),
        **_kernel(),
        mcmc_parameter_update_fn=tune,
        initial_parameter_value=_parameters(),
        num_mcmc_steps=2,
        target_ess=0.6,
    )
    return _adaptive(algorithm)


def _pretuned(api: Any) -> Program:
    kernel = _kernel()
    # How well a chain mixes is measured under a vmap of its own, in a function that a
    # user builds by upstream's and hands in.
    pretune = build_pretune(
        kernel["mcmc_init_fn"],
        kernel["mcmc_step_fn"],
        alpha=1.0,
        sigma_parameters={"step_size": 0.01},
        n_particles=LANES,
        positive_parameters=["step_size"],
    )
    parameters = _parameters() | {
        "step_size": jnp.linspace(0.1, 0.3, LANES),
    }
    algorithm = api(
        blackjax.tempered_smc,
        **_model(),
        **kernel,
        num_mcmc_steps=2,
        initial_parameter_value=parameters,
        pretune_fn=pretune,
    )

    def fun(key: jax.Array, particles: Any) -> Any:
        state = algorithm.init(particles)
        return algorithm.step(key, state, tempering_param=0.5)

    return fun, (jax.random.key(2), positions())


def _whole(api: Any) -> Any:
    return api


def _of_module(module: Any) -> Any:
    return module.as_top_level_api


def _first(family: Any) -> Any:
    return family[0]


def _from_module(generate: Any) -> Any:
    """An API made from upstream's module by a rebuilt function."""
    return generate(blackjax.tempered)


CASES = (
    Case("tempered_smc", _tempered(_whole), steps=2, tolerance=1e-13),
    Case("tempered_smc", _tempered(_whole, "nuts"), 2, 1e-13, "nuts"),
    Case("tempered_smc", _waste_free, 2, 1e-13, "waste_free"),
    Case("tempered_smc", _unshared, 2, 1e-13, "unshared"),
    Case("tempered", _tempered(_of_module), steps=2, tolerance=1e-13),
    Case("smc_family", _tempered(_first), steps=2, tolerance=1e-13),
    Case("generate_top_level_api_from", _tempered(_from_module), 2, 1e-13),
    Case("adaptive_tempered_smc", _adaptive_tempered(_whole), 2, 1e-13),
    Case("adaptive_tempered", _adaptive_tempered(_of_module), 2, 1e-13),
    Case("persistent_sampling_smc", _persistent(_whole), 2, 1e-13),
    Case("persistent_sampling", _persistent(_of_module), 2, 1e-13),
    Case("adaptive_persistent_sampling_smc", _adaptive_persistent(_whole), 2, 1e-13),
    Case("adaptive_persistent_sampling", _adaptive_persistent(_of_module), 2, 1e-13),
    Case("partial_posteriors_smc", _partial_posteriors, steps=2, tolerance=1e-13),
    Case("inner_kernel_tuning", _tuned, steps=2, tolerance=1e-13),
    Case("pretuning", _pretuned, steps=1, tolerance=1e-13),
)
