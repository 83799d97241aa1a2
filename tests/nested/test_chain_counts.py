"""Counts of evaluations and of chains, and distances that chains move."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.slice import SliceInfo
from blackjax.ns.from_mcmc import (
    ConstrainedMCMCInfo,
    build_kernel,
    reject_constrained_step,
    update_with_mcmc_take_last,
)

import batchkit as bk
from batchkit.nested import (
    ChainCounts,
    DeadPoints,
    chain_counts,
    diagnose,
    evaluations_of,
)
from batchkit.nested._chain_counts import Recorded, describe_moves
from batchkit.nested._nested_arguments import built
from batchkit.nested._nested_diagnostics import copies

from ..helpers import assert_bits, unchecked
from .perfect import peak, plateau, sample
from .problems import gaussian


KEY = jax.random.key(0)


def test_distances_and_correlations_of_an_autoregressive_process() -> None:
    """`x_j = r x_(j-1) + noise` has the autocorrelation `r^j`, by construction."""
    chains, steps = 40_000, 5
    r = np.array([0.9, 0.5, 0.0])
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(chains, 3))]
    for _ in range(steps):
        x.append(r * x[-1] + np.sqrt(1 - r**2) * rng.normal(size=(chains, 3)))
    path = 7 + 0.01 * np.stack(x, axis=1)  # as distances and correlations are relative
    accepted = jnp.ones((chains, steps), bool)
    info: Any = SliceInfo(accepted, *4 * (accepted,))
    live = {"a": 7 + 0.01 * rng.normal(size=(9999, 3)), "b": np.full(9999, 3.0)}
    still = np.full((chains, steps, 1), 3.0)
    before = jnp.concatenate([path[:, :-1], still], axis=-1)
    after = jnp.concatenate([path[:, 1:], still], axis=-1)
    counts = chain_counts(Recorded(info, before, after), live)
    assert counts is not None
    assert counts.chains == chains
    lags = np.arange(1, steps + 1)[:, None]
    expected = np.mean(1 - r**lags, axis=1)
    np.testing.assert_allclose(counts.moved, expected, atol=0.02)
    np.testing.assert_allclose(counts.correlations, [*(r**steps), 0], atol=0.02)


def random_walk(
    logprior_fn: Any,
    loglikelihood_fn: Any,
    num_inner_steps: int,
    num_delete: int,
    update_strategy: Any = update_with_mcmc_take_last,
) -> Any:
    """A nested sampler of blackjax's parts, with another inner kernel."""
    make_point = jax.tree_util.Partial(
        blackjax.ns.base.init_state_strategy,
        logprior_fn=logprior_fn,
        loglikelihood_fn=loglikelihood_fn,
    )
    walk = blackjax.additive_step_random_walk.build_kernel()

    def move(rng_key: Any, state: Any, logdensity_fn: Any) -> Any:
        normal = blackjax.mcmc.random_walk.normal(0.3 * jnp.ones(3))
        return walk(rng_key, state, logdensity_fn, normal)

    step = reject_constrained_step(
        make_point, logprior_fn, blackjax.additive_step_random_walk.init, move
    )
    kernel = build_kernel(
        step,
        num_inner_steps,
        lambda *_: {},
        num_delete=num_delete,
        update_strategy=update_strategy,
    )
    api: Any = blackjax.nss
    init = api(logprior_fn, loglikelihood_fn, 1).init

    def first(position: Any, rng_key: Any = None) -> Any:
        return init(position, rng_key)._replace(inner_kernel_params={})

    return blackjax.SamplingAlgorithm(first, kernel)


APIS: dict[str, Any] = {
    "nss": blackjax.nss,
    "nsswig": blackjax.nsswig,
    "continuous": bk.rebuild_sampler(blackjax.nss, batcher=bk.Continuous(8)),
    "random walk": random_walk,
}


def recording(problem: Any, api: Any, num_delete: int, num_inner_steps: int) -> Any:
    """The algorithm as `run_nested` builds it."""
    functions = {
        "logprior_fn": problem.logprior,
        "loglikelihood_fn": problem.loglikelihood,
    }
    settings = {"num_delete": num_delete, "num_inner_steps": num_inner_steps}
    return built(api, functions, settings, batcher=None, rejects=False)


@pytest.fixture(scope="module")
def start() -> Any:
    """The first state of slices in all directions, under every layout."""
    problem = gaussian(3)
    with unchecked():
        return jax.jit(problem.algorithm(20).init)(problem.positions(60))


@pytest.mark.parametrize("name", APIS)
def test_recorded_chains_lead_from_live_points_to_new_ones(
    name: str, start: Any
) -> None:
    """The record changes no bit of a step."""
    problem = gaussian(3)
    algorithm = problem.algorithm(20, num_inner_steps=4, api=APIS[name])
    with unchecked():
        state = start
        if name in ("nsswig", "random walk"):
            state = jax.jit(algorithm.init)(problem.positions(60))
        recorded = recording(problem, APIS[name], 20, 4)
        plain, _ = jax.jit(algorithm.step)(KEY, state)
        new, info = jax.jit(recorded.step)(KEY, state)
    assert_bits(new, plain)
    before, after = info.update_info.before, info.update_info.after
    assert before.shape == after.shape == (20, 4, 3)
    np.testing.assert_array_equal(before[:, 1:], after[:, :-1])
    old = state.particles
    above = old.loglikelihood > np.max(info.particles.loglikelihood)
    survivors = {tuple(x) for x in np.asarray(old.position[above]).tolist()}
    assert {tuple(x) for x in np.asarray(before[:, 0]).tolist()} <= survivors
    made = {tuple(x) for x in np.asarray(new.particles.position).tolist()} - survivors
    ends = {tuple(x) for x in np.asarray(after[:, -1]).tolist()}
    assert made == ends - survivors


def test_of_a_large_position_64_numbers_are_recorded() -> None:
    problem = gaussian(100)
    algorithm = recording(problem, blackjax.nsswig, 5, 1)
    shapes = jax.eval_shape(algorithm.init, problem.positions(20))
    info = jax.eval_shape(algorithm.step, KEY, shapes)[1]
    assert info.update_info.before.shape == (5, 1, 64)


def warned(num_inner_steps: int, seeds: int) -> list[bool]:
    """Return, for many short runs of 30 steps from the prior, which of them warn."""
    problem = gaussian(10, 0.95)
    algorithm = recording(problem, blackjax.nss, 20, num_inner_steps)

    def one(seed: Any) -> ChainCounts:
        key, first = jax.random.split(jax.random.fold_in(KEY, seed))
        positions = jax.random.uniform(first, (200, 10), minval=-5.0, maxval=5.0)

        def step(state: Any, key: Any) -> Any:
            state, info = algorithm.step(key, state)
            return state, chain_counts(info.update_info, state.particles.position)

        keys = jax.random.split(key, 30)
        _, counts = jax.lax.scan(step, algorithm.init(positions), keys)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), counts)

    with unchecked():
        counts = jax.jit(jax.vmap(one))(jnp.arange(seeds))
    dead = sample(peak(), 0)
    dead = DeadPoints(
        np.ones((len(dead), 10)) * dead.loglikelihood[:, None],
        dead.loglikelihood,
        dead.loglikelihood_birth,
        dead.logprior,
    )
    found = [
        diagnose(dead, num_inner_steps=num_inner_steps, dim=10, chains=part)
        for part in map(ChainCounts._make, zip(*map(np.asarray, counts), strict=True))
    ]
    return [any(x.name == "chain correlation" for x in each) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 2, 3, 5])
def test_too_few_inner_steps_warn_from_every_seed(num_inner_steps: int) -> None:
    assert all(warned(num_inner_steps, 40))


@pytest.mark.slow
def test_enough_inner_steps_warn_from_no_seed() -> None:
    assert not any(warned(20, 40))


def test_a_warning_names_the_worst_parameter_and_a_number_of_steps() -> None:
    dead = sample(peak(), 0)
    correlations = np.array([0.9, 0.6])
    counts = ChainCounts(
        np.array(10_000),
        np.array(0),
        10_000 * np.array([0.1, 0.16, 0.25]),
        10_000 * correlations,
    )
    positions = {"mass": dead.loglikelihood, "age": dead.loglikelihood + 1}
    dead = DeadPoints(
        positions, dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
    )
    (found,) = diagnose(dead, num_inner_steps=3, dim=2, chains=counts)
    assert (found.name, found.value) == ("chain correlation", 0.75)
    # The leaves of a dict are in the order of their keys.
    assert "0.90 for age" in found.message
    assert "0.50 of the distance" in found.message  # the root of 0.25
    # 0.75 after 3 steps is 0.3 after 3 log(0.3) / log(0.75) = 12.6.
    assert "`num_inner_steps=13`" in found.message


def test_moves_are_described_after_powers_of_two_steps() -> None:
    counts = ChainCounts(
        np.array(100),
        np.array(0),
        100 * np.array([0.04, 0.16, 0.36, 0.49, 0.64]),
        100 * np.array([0.1, 0.3]),
    )
    words = describe_moves(counts)
    assert "0.20 after 1, 0.40 after 2, 0.70 after 4, 0.80 after 5 inner" in words
    assert words.endswith("0.20")


def copying(rng_key: Any, state: Any, loglikelihood_0: Any, **_: Any) -> Any:
    particles = state.particles
    above = particles.loglikelihood > loglikelihood_0
    weights = above / jnp.sum(above)
    start = jax.random.choice(rng_key, len(above), (20,), p=weights)
    new = jax.tree.map(lambda x: x[start], particles)
    birth = jnp.full_like(new.loglikelihood_birth, loglikelihood_0)
    return new._replace(loglikelihood_birth=birth), ()


def test_a_sampler_that_copies_its_survivors_has_not_converged() -> None:
    problem = gaussian(10, 0.95)
    run = problem.run(num_inner_steps=10, update_strategy=lambda *_: copying)
    deviation = run.log_evidence - problem.log_evidence
    assert abs(deviation) > 10 * run.log_evidence_err
    names = [x.name for x in run.warnings]
    assert names[0] == "copies"
    assert "plateaus" not in names
    assert not run.converged
    assert "copies" in run.stop_reason


def test_copies_are_distinguished_from_ties() -> None:
    logl = np.array([0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0])
    x = np.array([[0, 0], [1, 0], [1, 0], [2, 0], [3, 0], [3, 1], [4, 0]], float)
    dead = DeadPoints({"x": x}, logl, np.full(7, -np.inf), np.zeros(7))
    assert np.sum(copies(dead)) == 1
    assert [x.name for x in diagnose(dead)] == ["copies", "plateaus"]
    assert not np.any(copies(sample(plateau(1.0), 0)))


@pytest.mark.parametrize("name", ["nss", "nsswig"])
def test_evaluations_are_calls_of_the_likelihood(name: str) -> None:
    """As often as a likelihood of one lane has called back."""
    calls: list[int] = []

    def log_likelihood(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: calls.append(1), x)
        return -jnp.sum(x**2)

    algorithm = getattr(blackjax, name)(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=log_likelihood,
        num_inner_steps=7,
    )
    state = jax.jit(algorithm.init)(jax.random.normal(jax.random.key(0), (20, 3)))
    jax.effects_barrier()
    calls.clear()
    _, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    jax.effects_barrier()
    made = jax.jit(evaluations_of)(info.update_info)
    assert made == len(calls)
    counts = jax.jit(chain_counts)(info.update_info)
    assert (counts.chains, counts.exhausted) == (1, 0)


def numbers_of(counts: Any) -> tuple[int, int]:
    assert counts.distances.shape == counts.products.shape == (0,)
    return int(counts.chains), int(counts.exhausted)


def test_counts_of_every_inner_kernel() -> None:
    accepted = jnp.array([[True, False], [False, False], [True, True]])
    moves = ConstrainedMCMCInfo((), accepted)  # pyright: ignore[reportArgumentType]
    assert evaluations_of(moves) == 6
    assert numbers_of(chain_counts(moves)) == (3, 0)
    one = jnp.ones((3, 2), int)
    slices = SliceInfo(accepted, 0 * one, one, one, one)
    assert evaluations_of(slices) == 6 * 3
    assert numbers_of(chain_counts(slices)) == (3, 2)
    assert evaluations_of(()) is None
    assert chain_counts(()) is None
