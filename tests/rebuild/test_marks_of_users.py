"""The user's functions in a rebuilt sampler: which of them lanes call together."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any, final

import blackjax
import jax
import jax.numpy as jnp
import pytest
from blackjax.mcmc.integrators import velocity_verlet

import batchkit as bk

from ..helpers import assert_same
from .lanes import (
    LANES,
    STEP_OF_NSS,
    Fun,
    built,
    loglikelihood,
    logprior,
    notes_of_step,
    nss,
    places,
    step,
)


def test_functions_go_by_the_name_of_their_argument():
    assert (
        places(notes_of_step(nss())) == "pauses at loglikelihood_fn, not at logprior_fn"
    )


def test_a_position_argument_has_a_name_too():
    api = bk.rebuild_sampler(blackjax.nss, batcher=bk.Continuous(LANES))
    algorithm = api(logprior, loglikelihood, 1, num_delete=4)
    assert places(notes_of_step(algorithm)).startswith("pauses at loglikelihood_fn")


def test_an_algorithm_that_upstream_built_pauses_at_them_too():
    algorithm = bk.rebuild_sampler(built(), batcher=bk.Continuous(LANES))
    assert (
        places(notes_of_step(algorithm))
        == "pauses at loglikelihood_fn, not at logprior_fn"
    )
    assert_same(step(algorithm), step(built()), ulps=4)


@pytest.mark.parametrize("name", ["logprior_fn", "loglikelihood_fn"])
def test_one_can_be_named(name: str):
    note = notes_of_step(nss(bk.Continuous(LANES, expensive=name)))
    assert note.startswith(f"pauses at {name}, not at ")


def test_a_name_that_is_none_says_which_there_are():
    with pytest.raises(ValueError, match="'loglikelihood_fn', 'logprior_fn'"):
        notes_of_step(nss(bk.Continuous(LANES, expensive="likelihood")))


def test_one_function_under_two_names_has_both():
    api = blackjax.nss
    for name in ("logprior_fn", "loglikelihood_fn"):
        batcher = bk.Continuous(LANES, expensive=name)
        algorithm = nss(batcher, logprior_fn=loglikelihood)
        assert notes_of_step(algorithm).startswith(f"pauses at {name}")
        built_before = bk.rebuild_sampler(
            built(api, logprior_fn=loglikelihood), batcher=batcher
        )
        assert notes_of_step(built_before).startswith(f"pauses at {name}")


def test_two_lambdas_are_two_functions():
    one, other = (lambda x: -jnp.sum(x**2)), (lambda x: -2.0 * jnp.sum(x**4))
    algorithm = nss(logprior_fn=one, loglikelihood_fn=other)
    note = notes_of_step(algorithm)
    assert "logprior_fn" in note
    assert "loglikelihood_fn" in note
    upstream = built(logprior_fn=one, loglikelihood_fn=other)
    assert_same(step(algorithm), step(upstream), ulps=4)


def test_the_users_own_mark_wins():
    heavy = bk.expensive(lambda x: -jnp.sum(x**2))
    heavy.__name__ = "heavy"

    @bk.expensive
    def inside(x: jax.Array) -> jax.Array:
        return jnp.sum(x)

    def around(x: jax.Array) -> jax.Array:
        return inside(x) - 2.0 * jnp.sum((x @ jnp.ones((2, 2))) ** 2)

    note = notes_of_step(nss(loglikelihood_fn=around))
    assert places(note) == "pauses at inside, not at loglikelihood_fn, logprior_fn"


# Policies


@final
class Moves(bk.AbstractPolicy):
    """A policy of a user's own, whose batchers nobody can see from outside."""

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        moves = site.module == "blackjax.ns.from_mcmc"
        return bk.Continuous(LANES) if moves else bk.Vmap()


WITH_CONTINUOUS = {
    "ByPhase": bk.ByPhase(step=bk.Continuous(LANES)),
    "BySite": bk.BySite({STEP_OF_NSS: bk.Continuous(LANES)}),
    "BySite, default": bk.BySite(
        {"blackjax.ns.nss:*": bk.Chunked(2)}, default=bk.Continuous(LANES)
    ),
    "nested": bk.ByPhase(
        default=bk.BySite({STEP_OF_NSS: bk.Continuous(LANES)}, default=bk.Vmap())
    ),
    "mapping": {"step": bk.Continuous(LANES), "init": bk.Chunked(2)},
    "mapping of sites": {STEP_OF_NSS: bk.Continuous(LANES)},
    "custom": Moves(),
    "custom inside": bk.ByPhase(init=bk.Chunked(2), default=Moves()),
}


@pytest.mark.parametrize("policy", WITH_CONTINUOUS.values(), ids=list(WITH_CONTINUOUS))
def test_policies_that_may_ask_for_lanes(policy: Any):
    expected = "pauses at loglikelihood_fn, not at logprior_fn"
    assert places(notes_of_step(nss(policy))) == expected
    assert (
        places(notes_of_step(bk.rebuild_sampler(built(), batcher=policy))) == expected
    )


def handed_over(batcher: Any, rebuilt_before: bool) -> Iterator[tuple[Any, Any]]:
    """Pairs of what a user hands in and what blackjax gets of it."""
    got: list[Any] = []

    def integrator(logdensity_fn: Fun, kinetic_energy_fn: Fun) -> Fun:
        got.append(logdensity_fn)
        return velocity_verlet(logdensity_fn, kinetic_energy_fn)

    settings = {
        "step_size": 0.1,
        "inverse_mass_matrix": jnp.ones(2),
        "num_integration_steps": 2,
        "integrator": integrator,
    }
    if rebuilt_before:
        api = bk.rebuild_sampler(blackjax.hmc, batcher=batcher)
        algorithm = api(logprior, **settings)
    else:
        upstream = blackjax.hmc(logprior, **settings)
        algorithm = bk.rebuild_sampler(upstream, batcher=batcher)
    state = algorithm.init(jnp.ones(2))  # pyright: ignore
    algorithm.step(jax.random.key(0), state)  # pyright: ignore
    yield from ((logprior, each) for each in got)
    assert got


@pytest.mark.parametrize("rebuilt_before", [True, False])
@pytest.mark.parametrize(
    "batcher",
    [
        bk.Chunked(2),
        bk.ByPhase(init=bk.Chunked(2), step=bk.Sequential()),
        bk.BySite({}, default=bk.Vmap()),
        {"default": bk.Chunked(2)},
    ],
    ids=["batcher", "ByPhase", "BySite", "mapping"],
)
def test_without_lanes_nothing_is_wrapped(batcher: Any, rebuilt_before: bool):
    for mine, got in handed_over(batcher, rebuilt_before):
        assert got is mine


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_with_lanes_a_function_is_wrapped_once(rebuilt_before: bool):
    found = {
        id(got)
        for mine, got in handed_over(bk.Continuous(2), rebuilt_before)
        if got.__wrapped__ is mine
    }
    assert len(found) == 1


def test_eager_results_outside_of_lanes_are_upstreams_bits():
    settings = {
        "step_size": 0.1,
        "inverse_mass_matrix": jnp.ones(2),
        "num_integration_steps": 3,
    }

    def walked(api: Any) -> Any:
        algorithm = api(loglikelihood, **settings)
        state = algorithm.init(jnp.ones(2))
        return algorithm.step(jax.random.key(3), state)

    rebuilt = bk.rebuild_sampler(blackjax.hmc, batcher=bk.Continuous(LANES))
    assert_same(walked(rebuilt), walked(blackjax.hmc), ulps=0)


# Lifetimes


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_nobody_keeps_the_functions_alive(rebuilt_before: bool):
    def mine(x: jax.Array) -> jax.Array:
        return -jnp.sum(x**2)

    api = bk.rebuild_sampler(blackjax.nss, batcher=bk.Continuous(LANES))
    if rebuilt_before:
        algorithm = built(api, loglikelihood_fn=mine)
    else:
        upstream = built(loglikelihood_fn=mine)
        algorithm = bk.rebuild_sampler(upstream, batcher=bk.Continuous(LANES))
        del upstream
    notes_of_step(algorithm)
    alive = weakref.ref(mine)
    del mine, algorithm
    jax.clear_caches()
    gc.collect()
    assert alive() is None
    assert api is not None
