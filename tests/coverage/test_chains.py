"""Samplers that pause: chains that a user maps, and kernels inside of SMC.

Most samplers have no vmap of their own, so their chains are mapped here by `Continuous`
and, as the oracle, by `jax.vmap`. With a lane for every chain the batches have the same
shape, so the bits are the same where XLA compiles the parts as it does the whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import pytest
from blackjax.smc import extend_params, resampling

import batchkit as bk
from batchkit.batchers._trace_log import LogEntry, leave, start_log

from ..helpers import is_optimized
from . import mcmc
from .cases import DIM, LANES, Case, loglikelihood, logprior, positions
from .harness import assert_close


TOLERANCE = 1e-13

# Steps whose number of evaluations differs from chain to chain.
PAUSING = {
    "nuts": 0.0,
    "dhmc": TOLERANCE,
    "dmhmc": TOLERANCE,
    "rmhmc": 0.0,
    "elliptical_slice": TOLERANCE,  # the same bits up to JAX 0.10
    "slice_sampling": 0.0,
    "coordinate_slice": 0.0,
    "gist_step_size": 0.0,
    "gist_trajectory_length": TOLERANCE,
    "adjusted_mclmc_dynamic": 0.0,
    "orbital_hmc": TOLERANCE,
}
# Steps that are the same for every chain.
STEADY = {
    "hmc": 0.0,
    "mhmc": 0.0,
    "multinomial_hmc": 0.0,
    "mala": 0.0,
    "ghmc": TOLERANCE,
    "barker": 0.0,
    "mclmc": 0.0,
    "adjusted_mclmc": 0.0,
    "mgrad_gaussian": 0.0,
    "rmh": 0.0,
    "irmh": 0.0,
    "additive_step_random_walk": 0.0,
    "normal_random_walk": 0.0,
}
# What `make test` compiles: fewer lanes than chains, and a lane for each.
QUICK = {(LANES, "elliptical_slice"), (3, "rmh")}

_CASES = {str(case): case for case in mcmc.CASES if hasattr(blackjax, case.name)}


def chain(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One chain whose log-density is marked, and a key and a start for each of some."""
    api = getattr(blackjax, case.name)

    def marked(density: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return api(bk.expensive(density), *args, **kwargs)

    fun, (key, start) = case.program(marked)

    def around(x: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.key(5), (LANES, *jnp.shape(x)))
        return x + 0.5 * noise

    return fun, (jax.random.split(key, LANES), jax.tree.map(around, start))


def traced(fun: Callable[..., Any], *args: Any) -> tuple[Any, list[str]]:
    """The traced program, and what the batchers in it have to say."""
    root = LogEntry(None)
    token = start_log(root)
    try:
        program = jax.jit(fun).trace(*args)
    finally:
        leave(token)
    return program, [reached.note for reached in root.inside]


@functools.cache
def expected(name: str) -> Any:
    fun, args = chain(_CASES[name])
    return jax.jit(jax.vmap(fun))(*args)


def chains() -> Any:
    for lanes in (3, LANES):
        for name, difference in (PAUSING | STEADY).items():
            tolerance = TOLERANCE if lanes < LANES else difference
            yield pytest.param(
                name,
                lanes,
                tolerance,
                id=f"{lanes}-{name}",
                marks=[] if (lanes, name) in QUICK else [pytest.mark.slow],
            )


@pytest.mark.parametrize(("name", "lanes", "tolerance"), list(chains()))
def test_chains_are_those_of_vmap(name: str, lanes: int, tolerance: float):
    if name not in _CASES:
        pytest.skip("not in this release of blackjax")
    with jax.enable_x64(True):
        fun, args = chain(_CASES[name])
        program, (note, *_) = traced(bk.Continuous(lanes)(fun), *args)
        assert note.startswith("pauses at ") == (name in PAUSING)
        # Without optimization XLA rounds the parts otherwise than the whole.
        tolerance = tolerance if is_optimized() else max(tolerance, TOLERANCE)
        assert_close(program.lower().compile()(*args), expected(name), tolerance)


def test_every_sampler_is_here():
    aliases = {
        "hmc[functions]",
        "hmc_family",
        "dynamic_hmc",
        "barker_proposal",
        "periodic_orbital",
        "marginal_latent_gaussian",
        "rmh_as_top_level_api",
        "irmh_as_top_level_api",
        "additive_step_random_walk[normal]",
        "random_walk",
    }
    inside = {name for name in _CASES if name.startswith("laplace_")}
    assert _CASES.keys() - aliases - inside <= PAUSING.keys() | STEADY.keys()


# Kernels inside of SMC


def _nuts() -> dict[str, Any]:
    kernel = blackjax.nuts.build_kernel()
    parameters = {
        "step_size": 0.2,
        "inverse_mass_matrix": jnp.eye(DIM),
    }
    return {
        "mcmc_step_fn": functools.partial(kernel, max_num_doublings=3),
        "mcmc_init_fn": blackjax.nuts.init,
        "mcmc_parameters": extend_params(parameters),  # pyright: ignore
    }


def _dhmc() -> dict[str, Any]:
    def start(position: Any, logdensity_fn: Callable[..., Any]) -> Any:
        seed = jnp.asarray(1000 * position["y"] ** 2, int)
        return blackjax.dhmc.init(position, logdensity_fn, jax.random.key(seed))

    parameters = {"step_size": 0.2, "inverse_mass_matrix": jnp.eye(DIM)}
    return {
        "mcmc_step_fn": blackjax.dhmc.build_kernel(),
        "mcmc_init_fn": start,
        "mcmc_parameters": extend_params(parameters),  # pyright: ignore
    }


def _slice() -> dict[str, Any]:
    kernel = blackjax.slice_sampling.build_kernel(max_expansions=3)
    direction = blackjax.mcmc.slice.direction_proposal()
    return {
        "mcmc_step_fn": functools.partial(kernel, proposal_generator=direction),
        "mcmc_init_fn": blackjax.slice_sampling.init,
        "mcmc_parameters": {},
    }


def _coordinate_slice() -> dict[str, Any]:
    return {
        "mcmc_step_fn": blackjax.mcmc.slice.build_coordinate_kernel(max_expansions=3),
        "mcmc_init_fn": blackjax.mcmc.slice.init,
        "mcmc_parameters": {},
    }


def _elliptical_slice() -> dict[str, Any]:
    covariance, mean = jnp.eye(DIM) + 0.3, jnp.zeros(DIM)

    def flat(density: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: density({"x": x[:2], "y": x[2]})

    kernel = blackjax.elliptical_slice.build_kernel(covariance, mean)
    return {
        "mcmc_step_fn": kernel,
        "mcmc_init_fn": blackjax.elliptical_slice.init,
        "mcmc_parameters": {},
        "logprior_fn": flat(logprior),
        "loglikelihood_fn": flat(loglikelihood),
    }


KERNELS = {
    "nuts": _nuts,
    "dhmc": _dhmc,
    "slice_sampling": _slice,
    "coordinate_slice": _coordinate_slice,
    "elliptical_slice": _elliptical_slice,
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "tempered_smc": {},
    "adaptive_tempered_smc": {"target_ess": 0.6},
    "persistent_sampling_smc": {"n_schedule": 2},
    "adaptive_persistent_sampling_smc": {"target_ess": 1.5, "max_iterations": 3},
}


def kernels() -> Any:
    for lanes in (3, LANES):
        for sampler in SAMPLERS:
            for kernel in KERNELS:
                quick = (lanes, sampler, kernel) == QUICK_IN_SMC
                yield pytest.param(
                    sampler,
                    kernel,
                    lanes,
                    id=f"{lanes}-{sampler}-{kernel}",
                    marks=[] if quick else [pytest.mark.slow],
                )


QUICK_IN_SMC = (3, "tempered_smc", "elliptical_slice")


def step_in_smc(
    sampler: str, kernel: str, batcher: bk.AbstractBatcher | None
) -> Callable[[], Any]:
    """One step of a sampler, upstream's without a batcher."""
    api = getattr(blackjax, sampler)
    if batcher is not None:
        api = bk.rebuild_sampler(api, batcher=batcher)
    settings: dict[str, Any] = {
        "logprior_fn": logprior,
        "loglikelihood_fn": loglikelihood,
        "resampling_fn": resampling.systematic,
        "num_mcmc_steps": 2,
        **SAMPLERS[sampler],
        **KERNELS[kernel](),
    }
    algorithm = api(**settings)
    particles = positions()
    if kernel == "elliptical_slice":
        particles = jnp.column_stack([particles["x"], particles["y"]])
    temperature = () if sampler.startswith("adaptive") else (0.3,)
    return lambda: algorithm.step(
        jax.random.key(2), algorithm.init(particles), *temperature
    )


@functools.cache
def expected_in_smc(sampler: str, kernel: str) -> Any:
    return jax.jit(step_in_smc(sampler, kernel, None))()


@pytest.mark.parametrize(("sampler", "kernel", "lanes"), list(kernels()))
def test_kernels_in_smc_pause_at_the_likelihood(sampler: str, kernel: str, lanes: int):
    with jax.enable_x64(True):
        program, notes = traced(step_in_smc(sampler, kernel, bk.Continuous(lanes)))
        (note,) = (x for x in notes if x.startswith("pauses at "))
        assert note.startswith("pauses at loglikelihood_fn, not at ")
        expected = expected_in_smc(sampler, kernel)
        assert_close(program.lower().compile()(), expected, TOLERANCE)
