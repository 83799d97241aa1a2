"""The user's functions in a rebuilt sampler: which of them lanes call together."""

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from blackjax.mcmc.integrators import velocity_verlet
from blackjax.mcmc.random_walk import normal_random_walk
from blackjax.smc import extend_params

import batchkit as bk
from batchkit.batchers._trace_log import LogEntry, leave, start_log

from ..helpers import assert_same
from .problems import SMC


LANES = 3
STEP_OF_NSS = "blackjax.ns.from_mcmc:*"
HMC = {"step_size": 0.1, "inverse_mass_matrix": jnp.ones(2), "num_integration_steps": 2}

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


def lanes(api: Any, batcher: Any = None) -> Any:
    batcher = bk.Continuous(LANES) if batcher is None else batcher
    return bk.rebuild_sampler(api, batcher=batcher)


def nss(batcher: Any = None, **settings: Any) -> Any:
    """A nested sampler, rebuilt before its functions are handed in."""
    return built(lanes(blackjax.nss, batcher), **settings)


def both(batcher: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A nested sampler rebuilt before its functions are handed in, and after."""
    return nss(batcher, **settings), lanes(built(**settings), batcher)


def notes(fun: Fun, *args: Any) -> list[str]:
    """Return the notes of the batchers in one trace, neither compiled nor profiled."""
    root = LogEntry(None)
    token = start_log(root)
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


def pauses(algorithm: Any) -> str:
    """Where the site at which points move pauses, in one step."""
    state = jax.eval_shape(algorithm.init, positions())
    found = notes(algorithm.step, jax.random.key(1), state)
    (note,) = (x for x in found if x.startswith("pauses at"))
    return note.split("; ")[0].removeprefix("pauses at ")


def step(algorithm: Any) -> Any:
    state = jax.jit(algorithm.init)(positions())
    return jax.jit(algorithm.step)(jax.random.key(1), state)


LIKELIHOOD_FIRST = "loglikelihood_fn, not at logprior_fn"


def test_functions_are_named_by_the_arguments_that_they_are():
    assert [*map(pauses, both())] == [LIKELIHOOD_FIRST] * 2
    by_position = lanes(blackjax.nss)(logprior, loglikelihood, 1, num_delete=4)
    assert pauses(by_position) == LIKELIHOOD_FIRST
    assert_same(step(lanes(built())), step(built()), ulps=4)


def test_function_marked_where_it_is_handed_in_is_chosen():
    for algorithm in both(logprior_fn=bk.expensive(logprior)):
        assert pauses(algorithm) == "logprior, not at loglikelihood_fn, logprior_fn"


def test_one_function_that_is_two_arguments_is_marked_by_either():
    for algorithm in both(logprior_fn=loglikelihood):
        assert pauses(algorithm).startswith(("logprior_fn", "loglikelihood_fn"))


def test_mark_of_the_user_comes_before_the_names():
    @bk.expensive
    def inside(x: jax.Array) -> jax.Array:
        return jnp.sum(x)

    def around(x: jax.Array) -> jax.Array:
        return inside(x) - 2.0 * jnp.sum((x @ jnp.ones((2, 2))) ** 2)

    found = pauses(nss(loglikelihood_fn=around))
    assert found == "inside, not at loglikelihood_fn, logprior_fn"


# Policies


@final
class Moves(bk.AbstractPolicy):
    """A user's policy, which does not list its batchers."""

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        moves = site.module == "blackjax.ns.from_mcmc"
        return bk.Continuous(LANES) if moves else bk.Vmap()


WITH_CONTINUOUS = {
    "ByPhase": bk.ByPhase(step=bk.Continuous(LANES)),
    "BySite": bk.BySite({STEP_OF_NSS: bk.Continuous(LANES)}),
    "nested": bk.ByPhase(
        default=bk.BySite({STEP_OF_NSS: bk.Continuous(LANES)}, default=bk.Vmap())
    ),
    "mapping": {"step": bk.Continuous(LANES), "init": bk.Chunked(2)},
    "mapping of sites": {STEP_OF_NSS: bk.Continuous(LANES)},
    "custom": Moves(),
    "custom inside": bk.ByPhase(init=bk.Chunked(2), default=Moves()),
}


@pytest.mark.parametrize("policy", WITH_CONTINUOUS.values(), ids=list(WITH_CONTINUOUS))
def test_policy_that_may_choose_lanes_marks_the_functions(policy: Any):
    assert [*map(pauses, both(policy))] == [LIKELIHOOD_FIRST] * 2


def handed_over(batcher: Any, rebuilt_before: bool) -> list[Any]:
    """The parts of a user's log-density that reach blackjax."""
    got: list[Any] = []

    def integrator(logdensity_fn: Fun, kinetic_energy_fn: Fun) -> Fun:
        got.append(logdensity_fn)
        return velocity_verlet(logdensity_fn, kinetic_energy_fn)

    settings = {**HMC, "integrator": integrator}
    api: Any = lanes(blackjax.hmc, batcher) if rebuilt_before else blackjax.hmc
    algorithm = api(logprior, **settings)
    if not rebuilt_before:
        algorithm = lanes(algorithm, batcher)
    algorithm.step(jax.random.key(0), algorithm.init(jnp.ones(2)))
    assert got
    return got


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
    assert all(got is logprior for got in handed_over(batcher, rebuilt_before))


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_with_lanes_a_function_is_wrapped_once(rebuilt_before: bool):
    first, *rest = handed_over(bk.Continuous(2), rebuilt_before)
    assert first.__wrapped__ is logprior
    assert all(got is first for got in rest)


# Lifetimes


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_functions_are_freed_with_their_algorithm(rebuilt_before: bool):
    def users(x: jax.Array) -> jax.Array:
        return -jnp.sum(x**2)

    api = lanes(blackjax.nss) if rebuilt_before else blackjax.nss
    algorithm = built(api, loglikelihood_fn=users)
    algorithm = algorithm if rebuilt_before else lanes(algorithm)
    pauses(algorithm)
    alive = weakref.ref(users)
    del users, algorithm
    jax.clear_caches()
    gc.collect()
    assert alive() is None
    assert api is not None


# Whatever can be called


@final
class Gaussian(eqx.Module):
    """A log-likelihood with arrays of its own."""

    mean: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return -2.0 * jnp.sum((jnp.sin(x @ jnp.ones((2, 2))) - self.mean) ** 2)


@final
class Plain:
    """A log-density that is no pytree, and can be neither hashed nor compared."""

    __hash__ = None  # pyright: ignore

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    def __call__(self, x: jax.Array) -> jax.Array:
        return loglikelihood(x)


def shifted(x: jax.Array, mean: Any) -> jax.Array:
    return Gaussian(mean)(x)


LIKELIHOODS: dict[str, Fun] = {
    "module": Gaussian(jnp.ones(2)),
    "object": Plain(),
    "bound method": Plain().__call__,
    "partial": functools.partial(shifted, mean=jnp.ones(2)),
    "jax.jit": jax.jit(loglikelihood),
    "eqx.filter_jit": eqx.filter_jit(loglikelihood),
    "custom_jvp": jax.custom_jvp(loglikelihood),
}
LIKELIHOODS["custom_jvp"].defjvps(lambda dx, _, x: jnp.sum(dx * x))  # pyright: ignore


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_of_any_kind_is_marked(name: str):
    likelihood = LIKELIHOODS[name]
    algorithm, after = both(loglikelihood_fn=likelihood)
    for each in (algorithm, after):
        assert pauses(each).startswith("loglikelihood_fn")
    if name in ("jax.jit", "custom_jvp"):
        upstream = built(loglikelihood_fn=likelihood)
        assert_same(step(algorithm), step(upstream), ulps=4)


@pytest.mark.parametrize("rebuilt_before", [True, False])
def test_likelihood_that_closes_over_tracers_is_marked(rebuilt_before: bool):
    def stepped(rebuild: Fun, mean: Any) -> Any:
        settings = {"loglikelihood_fn": lambda x: shifted(x, mean)}
        before, after = rebuild(blackjax.nss), rebuild(built(**settings))
        algorithm = built(before, **settings) if rebuilt_before else after
        state = algorithm.init(positions())
        return algorithm.step(jax.random.key(1), state)[0].particles

    upstream = functools.partial(stepped, lambda x: x)
    rebuilt = functools.partial(stepped, lanes)
    means = jnp.array([[0.3, 0.4], [0.5, 0.6]])
    assert_same(jax.jit(rebuilt)(means[0]), jax.jit(upstream)(means[0]), ulps=4)
    found = notes(jax.vmap(rebuilt), means)
    assert any(x.startswith("pauses at loglikelihood_fn") for x in found)


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

    api, same = normal_random_walk, lambda x: x
    pair = (lanes(api), same) if rebuilt_before else (api, lanes)
    assert_same(walked(*pair), walked(api, same), ulps=0)


def integrator(logdensity_fn: Fun, kinetic_energy_fn: Fun) -> Fun:
    """Takes and returns functions, and is called inside of the tasks."""
    half = jnp.full(2, 0.5)

    def one_step(state: Any, step_size: Any) -> Any:
        verlet = velocity_verlet(logdensity_fn, kinetic_energy_fn)
        new: Any = verlet(state, step_size)
        return new._replace(momentum=new.momentum * half * 2)

    return one_step


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


KERNELS: dict[str, dict[str, Any]] = {
    "arguments and results that are functions": {
        "mcmc_step_fn": blackjax.hmc.build_kernel(integrator=integrator),
        "mcmc_init_fn": blackjax.hmc.init,
        "mcmc_parameters": extend_params(HMC),  # pyright: ignore
    },
    # It costs more than the densities that it calls, which are what lanes share.
    "kernel of the user's": {"mcmc_step_fn": users_kernel},
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_pause_at_the_density_and_give_upstreams_numbers(name: str):
    common = {**SMC, "loglikelihood_fn": loglikelihood, "num_mcmc_steps": 1}
    algorithm: Any = lanes(blackjax.tempered_smc)(**{**common, **KERNELS[name]})
    upstream: Any = blackjax.tempered_smc(**{**common, **KERNELS[name]})
    state = upstream.init(positions())
    found = notes(lambda: algorithm.step(jax.random.key(0), state, 0.5))
    if name == "kernel of the user's":
        assert any(x.startswith("pauses at loglikelihood_fn, not at") for x in found)
    expected, actual = (
        jax.jit(x.step)(jax.random.key(0), state, 0.5) for x in (upstream, algorithm)
    )
    assert_same(actual, expected, ulps=64)
