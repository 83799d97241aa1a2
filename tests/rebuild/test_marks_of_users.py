"""The user's functions in a rebuilt sampler: which of them lanes call together."""

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import batchkit as bk
from batchkit.batchers._watching import Reached, leave, start

from ..helpers import assert_same
from .problems import SMC


LANES = 3
STEP_OF_NSS = "blackjax.ns.from_mcmc:*"

Fun = Callable[..., Any]


def logprior(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def loglikelihood(x: jax.Array) -> jax.Array:
    return -2.0 * jnp.sum((jnp.sin(x @ jnp.ones((2, 2))) - 1.0) ** 2)


def positions(count: int = 8) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, 2))


def built(api: Any = blackjax.nss, **settings: Any) -> Any:
    model = {"logprior_fn": logprior, "loglikelihood_fn": loglikelihood, **settings}
    return api(num_inner_steps=1, num_delete=4, **model)


def nss(batcher: Any = None, **settings: Any) -> Any:
    """A nested sampler, rebuilt before its functions are handed in."""
    batcher = bk.Continuous(LANES) if batcher is None else batcher
    return built(bk.rebuild_sampler(blackjax.nss, batcher=batcher), **settings)


def notes(fun: Fun, *args: Any) -> list[str]:
    """What the batchers say in one trace, which is neither compiled nor profiled."""
    root = Reached(None)
    token = start(root)
    try:
        jax.make_jaxpr(fun)(*args)
    finally:
        leave(token)
    pending, found = list(root.inside), []
    while pending:
        reached = pending.pop(0)
        found.append(reached.note)
        pending = reached.inside + pending
    return found


def notes_of_step(algorithm: Any, upstream: Any = None) -> str:
    """The note of the site where points move, in one step."""
    state = jax.eval_shape((upstream or algorithm).init, positions())
    found = notes(algorithm.step, jax.random.key(1), state)
    (note,) = (x for x in found if x.startswith("pauses at"))
    return note


def places(note: str) -> str:
    return note.split("; ")[0]


def step(algorithm: Any) -> Any:
    state = jax.jit(algorithm.init)(positions())
    return jax.jit(algorithm.step)(jax.random.key(1), state)


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
        return blackjax.mcmc.integrators.velocity_verlet(
            logdensity_fn, kinetic_energy_fn
        )

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
        algorithm = bk.rebuild_sampler(
            blackjax.hmc(logprior, **settings), batcher=batcher
        )
    algorithm.step(jax.random.key(0), algorithm.init(jnp.ones(2)))
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


# What is handed in


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

    api = blackjax.additive_step_random_walk.normal_random_walk
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
            verlet = blackjax.mcmc.integrators.velocity_verlet(
                logdensity_fn, kinetic_energy_fn
            )
            new = verlet(state, step_size)
            return new._replace(momentum=new.momentum * half * 2)

        return one_step

    def smc(api: Any) -> Any:
        settings = {
            **SMC,
            "loglikelihood_fn": loglikelihood,
            "mcmc_step_fn": blackjax.hmc.build_kernel(integrator=integrator),
            "mcmc_init_fn": blackjax.hmc.init,
            "mcmc_parameters": blackjax.smc.extend_params(
                {
                    "step_size": 0.1,
                    "inverse_mass_matrix": jnp.ones(2),
                    "num_integration_steps": 2,
                }
            ),
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
    api = bk.rebuild_sampler(blackjax.tempered_smc, batcher=bk.Continuous(LANES))
    algorithm, upstream = api(**settings), blackjax.tempered_smc(**settings)
    state = upstream.init(positions())
    found = notes(lambda: algorithm.step(jax.random.key(0), state, 0.5))
    (note,) = (x for x in found if x.startswith("pauses at"))
    assert note.startswith("pauses at loglikelihood_fn, not at ")
    expected, actual = (
        jax.jit(x.step)(jax.random.key(0), state, 0.5) for x in (upstream, algorithm)
    )
    assert_same(actual, expected, ulps=64)


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
