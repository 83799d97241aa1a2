"""What users may hand in: whatever can be called, and what is no density."""

import functools
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from blackjax.mcmc.integrators import velocity_verlet
from blackjax.mcmc.random_walk import normal_random_walk
from blackjax.mcmc.slice import SliceState, build_kernel, init
from blackjax.smc import extend_params

import batchkit as bk

from ..helpers import assert_same
from .lanes import (
    LANES,
    Fun,
    built,
    loglikelihood,
    notes,
    notes_of_step,
    nss,
    places,
    positions,
    step,
)
from .problems import SMC


@final
class Gaussian(eqx.Module):
    """A log-likelihood with arrays of its own."""

    mean: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return -2.0 * jnp.sum((jnp.sin(x @ jnp.ones((2, 2))) - self.mean) ** 2)

    def method(self, x: jax.Array) -> jax.Array:
        return self(x)


@final
class Plain:
    """The same, but no pytree, and it can be neither hashed nor compared."""

    __hash__ = None  # pyright: ignore

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    def __call__(self, x: jax.Array) -> jax.Array:
        return loglikelihood(x)


def shifted(x: jax.Array, mean: Any) -> jax.Array:
    return Gaussian(mean)(x)


LIKELIHOODS: dict[str, Fun] = {
    "module": Gaussian(jnp.ones(2)),
    "bound method of a module": Gaussian(jnp.ones(2)).method,
    "object": Plain(),
    "bound method": Plain().__call__,
    "partial": functools.partial(shifted, mean=jnp.ones(2)),
    "jax.jit": jax.jit(loglikelihood),
    "eqx.filter_jit": eqx.filter_jit(loglikelihood),
    "vmap inside": lambda x: jnp.sum(jax.vmap(jnp.sin)(x) + x @ jnp.ones((2, 2))),
    "custom_jvp": jax.custom_jvp(loglikelihood),
    "checkpoint": jax.checkpoint(loglikelihood),
}
LIKELIHOODS["custom_jvp"].defjvps(lambda dx, _, x: jnp.sum(dx * x))  # pyright: ignore


@pytest.mark.parametrize("rebuilt_before", [True, False])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_whatever_can_be_called(name: str, rebuilt_before: bool):
    function = LIKELIHOODS[name]
    algorithm = built(loglikelihood_fn=function)
    if rebuilt_before:
        algorithm = nss(loglikelihood_fn=function)
    else:
        algorithm = bk.rebuild_sampler(algorithm, batcher=bk.Continuous(LANES))
    assert places(notes_of_step(algorithm)).startswith("pauses at loglikelihood_fn")


@pytest.mark.parametrize("name", ["module", "jax.jit", "custom_jvp"])
def test_whatever_can_be_called_gives_upstreams_numbers(name: str):
    function = LIKELIHOODS[name]
    expected = step(built(loglikelihood_fn=function))
    assert_same(step(nss(loglikelihood_fn=function)), expected, ulps=4)


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_functions_that_close_over_tracers(rebuilt_before: bool):
    def stepped(api: Any, after: Fun, mean: Any) -> Any:
        algorithm = after(built(api, loglikelihood_fn=lambda x: shifted(x, mean)))
        state = algorithm.init(positions())
        return algorithm.step(jax.random.key(1), state)[0].particles

    def rebuild(x: Any) -> Any:
        return bk.rebuild_sampler(x, batcher=bk.Continuous(LANES))

    before = (rebuild(blackjax.nss), lambda x: x)
    upstream = functools.partial(stepped, blackjax.nss, lambda x: x)
    rebuilt = functools.partial(
        stepped, *(before if rebuilt_before else (blackjax.nss, rebuild))
    )
    means = jnp.array([[0.3, 0.4], [0.5, 0.6]])
    assert_same(jax.jit(rebuilt)(means[0]), jax.jit(upstream)(means[0]), ulps=4)
    notes_there = notes(jax.vmap(rebuilt), means)
    assert any(x.startswith("pauses at loglikelihood_fn") for x in notes_there)


# Functions of other kinds than densities


@final
class Network(eqx.Module):
    """Parameters that are sampled, and that can be called."""

    weight: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight * x


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_positions_that_can_be_called_are_data(rebuilt_before: bool):
    def logdensity(network: Network) -> jax.Array:
        return -jnp.sum(network(jnp.arange(2.0)) ** 2)

    def walked(api: Any, after: Fun) -> Any:
        algorithm = after(api(logdensity, sigma=jnp.eye(2)))
        state = algorithm.init(Network(jnp.ones(2)))
        return algorithm.step(jax.random.key(0), state)

    def rebuild(x: Any) -> Any:
        return bk.rebuild_sampler(x, batcher=bk.Continuous(LANES))

    api = normal_random_walk
    expected = walked(api, lambda x: x)
    actual = (
        walked(rebuild(api), lambda x: x) if rebuilt_before else walked(api, rebuild)
    )
    assert_same(actual, expected, ulps=0)


def test_arguments_and_results_that_are_no_arrays():
    """An integrator takes and returns functions, and is called inside of the tasks."""

    def integrator(logdensity_fn: Fun, kinetic_energy_fn: Fun) -> Fun:
        half = jnp.full(2, 0.5)

        def one_step(state: Any, step_size: Any) -> Any:
            verlet = velocity_verlet(logdensity_fn, kinetic_energy_fn)
            new: Any = verlet(state, step_size)
            return new._replace(momentum=new.momentum * half * 2)

        return one_step

    parameters = {
        "step_size": 0.1,
        "inverse_mass_matrix": jnp.ones(2),
        "num_integration_steps": 2,
    }

    def smc(api: Any) -> Any:
        settings = {
            **SMC,
            "loglikelihood_fn": loglikelihood,
            "mcmc_step_fn": blackjax.hmc.build_kernel(integrator=integrator),
            "mcmc_init_fn": blackjax.hmc.init,
            "mcmc_parameters": extend_params(parameters),  # pyright: ignore
            "num_mcmc_steps": 1,
        }
        return api(**settings)

    rebuilt = smc(
        bk.rebuild_sampler(blackjax.tempered_smc, batcher=bk.Continuous(LANES))
    )
    expected, actual = (
        jax.jit(x.step)(jax.random.key(0), x.init(positions()), 0.5)
        for x in (smc(blackjax.tempered_smc), rebuilt)
    )
    assert_same(actual, expected, ulps=64)


def test_results_that_close_over_arrays_of_the_task():
    """A slice sampler takes a line, a function over a direction that is drawn."""

    def line(key: jax.Array, position: jax.Array, logdensity_fn: Fun) -> Fun:
        direction = jax.random.normal(key, position.shape)

        def at(t: jax.Array) -> Any:
            new = position + t * direction
            return SliceState(new, logdensity_fn(new)), jnp.array(True)

        return at

    kernel = functools.partial(build_kernel(max_expansions=2), proposal_generator=line)
    settings = {
        **SMC,
        "loglikelihood_fn": loglikelihood,
        "mcmc_step_fn": kernel,
        "mcmc_init_fn": init,
        "num_mcmc_steps": 1,
    }
    api: Any = bk.rebuild_sampler(blackjax.tempered_smc, batcher=bk.Continuous(LANES))
    algorithm: Any = api(**settings)
    upstream: Any = blackjax.tempered_smc(**settings)
    state = upstream.init(positions())
    found = notes(lambda: algorithm.step(jax.random.key(0), state, 0.5))
    assert any(x.startswith("pauses at loglikelihood_fn") for x in found)
    expected, actual = (
        jax.jit(x.step)(jax.random.key(0), state, 0.5) for x in (upstream, algorithm)
    )
    assert_same(actual, expected, ulps=64)


def users_kernel(key: jax.Array, state: Any, logdensity_fn: Fun) -> Any:
    """Proposes until one is accepted: as many calls as it takes."""

    def turn(carry: Any) -> Any:
        key, _, _ = carry
        key, move, accept = jax.random.split(key, 3)
        new = state.position + 0.3 * jax.random.normal(move, state.position.shape)
        threshold = jnp.log(jax.random.uniform(accept))
        return key, new, logdensity_fn(new) - state.logdensity > threshold

    start = (key, state.position, jnp.array(False))
    _, new, _ = jax.lax.while_loop(lambda c: ~c[2], turn, start)
    return state._replace(position=new, logdensity=logdensity_fn(new)), ()


def test_a_kernel_of_the_users_is_not_what_lanes_wait_for():
    """It costs more than the densities that it calls, which are what lanes share."""
    settings = {
        **SMC,
        "loglikelihood_fn": loglikelihood,
        "mcmc_step_fn": users_kernel,
        "num_mcmc_steps": 2,
    }
    api: Any = bk.rebuild_sampler(blackjax.tempered_smc, batcher=bk.Continuous(LANES))
    algorithm: Any = api(**settings)
    upstream: Any = blackjax.tempered_smc(**settings)
    state = upstream.init(positions())
    found = notes(lambda: algorithm.step(jax.random.key(0), state, 0.5))
    (note,) = (x for x in found if x.startswith("pauses at"))
    assert note.startswith("pauses at loglikelihood_fn, not at ")
    expected, actual = (
        jax.jit(x.step)(jax.random.key(0), state, 0.5) for x in (upstream, algorithm)
    )
    assert_same(actual, expected, ulps=64)
