"""`run_chains` makes the chains of a loop over blackjax, under every layout."""

from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains._chain_programs import Chains, all_alike
from batchkit.chains._sampler import draws_segment, sampler_without_warmup

from ..helpers import assert_same, counted, mesh


KEY = jax.random.key(7)
CHAINS = 5
WARMUP = 200
COVARIANCE = jnp.array([[1.0, 0.6], [0.6, 2.0]])
PRECISION = jnp.linalg.inv(COVARIANCE)
STARTS = {
    "x": jax.random.normal(jax.random.key(1), (CHAINS, 2)),
    "y": jax.random.normal(jax.random.key(2), (CHAINS,)),
}
NUTS: dict[str, Any] = {"max_num_doublings": 5}
HMC: dict[str, Any] = {"num_integration_steps": 3, "is_mass_matrix_diagonal": False}


def logdensity(position: dict[str, jax.Array]) -> jax.Array:
    x, y = position["x"], position["y"]
    return -0.5 * (x @ PRECISION @ x + (y - 1) ** 2)


def wide(tree: Any) -> Any:
    """In float64, where rounding separates chains of two layouts late."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def nuts(batcher: bk.AbstractBatcher) -> bk.ChainRun:
    with jax.enable_x64(True):
        return bk.run_chains(
            blackjax.nuts,
            logdensity,
            KEY,
            wide(STARTS),
            num_warmup=WARMUP,
            num_samples=500,
            batcher=batcher,
            target_acceptance=0.9,
            **NUTS,
        )


@pytest.fixture(scope="module")
def run() -> bk.ChainRun:
    return nuts(bk.Vmap())


def test_draws_equal_those_of_a_loop_over_blackjax(run: bk.ChainRun) -> None:
    def chain(index: jax.Array, position: Any) -> Any:
        key = jax.random.fold_in(KEY, index)
        warmup: Any = blackjax.window_adaptation(
            blackjax.nuts, logdensity, target_acceptance_rate=0.9, **NUTS
        )
        warm_key = jax.random.fold_in(key, 1)
        (state, parameters), _ = warmup.run(warm_key, position, WARMUP)
        step = blackjax.nuts(logdensity, **parameters).step

        def turn(state: Any, number: jax.Array) -> Any:
            at = jax.random.fold_in(jax.random.fold_in(key, 2), number)
            state, info = step(at, state)
            return state, (state, info)

        _, (states, infos) = jax.lax.scan(turn, state, jnp.arange(500))
        tuned = parameters["step_size"], parameters["inverse_mass_matrix"]
        return tuned, states, infos

    with jax.enable_x64(True):
        index = jnp.arange(CHAINS, dtype=jnp.uint32)
        tuned, states, infos = jax.jit(jax.vmap(chain))(index, wide(STARTS))
    # The warm-up and the draws are one program here and two in blackjax: XLA fuses them
    # differently, and chains amplify the last bit.
    for found, expected in (
        (run.samples, states.position),
        (run.logdensity, states.logdensity),
        (run.step_size, tuned[0]),
        (run.inverse_mass_matrix, tuned[1]),
        (run.acceptance_rate, infos.acceptance_rate),
        (run.energy, infos.energy),
    ):
        jax.tree.map(close, found, expected)
    for found, expected in (
        (run.num_integration_steps, infos.num_integration_steps),
        (run.tree_depth, infos.num_trajectory_expansions),
    ):
        np.testing.assert_array_equal(found, expected)
    assert run.divergences is not None
    np.testing.assert_array_equal(run.divergences, np.sum(infos.is_divergent, axis=1))


def test_moments_are_those_of_the_density(run: bk.ChainRun) -> None:
    x, y = run.samples["x"], run.samples["y"]
    products = x[..., 0] * x[..., 1]
    # Each function has its own effective sample size: squares of an antithetic chain
    # are still correlated.
    for found, mean, variance in (
        (x[..., 0], 0.0, 1.0),
        (x[..., 1], 0.0, 2.0),
        (y, 1.0, 1.0),
        (x[..., 0] ** 2, 1.0, 2.0),
        (x[..., 1] ** 2, 2.0, 8.0),
        ((y - 1) ** 2, 1.0, 2.0),
        (products, 0.6, 1 * 2 + 0.6**2),
    ):
        size = float(blackjax.ess(found))
        assert size > 500
        assert abs(np.mean(found) - mean) < 4 * (variance / size) ** 0.5
    assert max(row["R-hat"] for row in run.summary().values.values()) < 1.01
    assert run.warnings == ()


def test_result_has_all_draws_and_tuning(run: bk.ChainRun) -> None:
    assert run.samples["x"].shape == (CHAINS, 500, 2)
    assert run.samples["y"].shape == (CHAINS, 500)
    assert run.samples["x"].flags.writeable
    assert run.rhat["x"].shape == (2,)
    assert run.max_tree_depth == 5
    assert run.step_size is not None
    assert run.step_size.shape == (CHAINS,)
    assert run.inverse_mass_matrix is not None
    assert run.inverse_mass_matrix.shape == (CHAINS, 3)
    assert all(seconds > 0 for seconds in run.seconds)
    assert run.seconds.compile > run.seconds.sampling


def close(found: Any, expected: Any) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def assert_same_chains(found: bk.ChainRun, expected: bk.ChainRun) -> None:
    jax.tree.map(close, found.samples, expected.samples)
    for name in (
        "logdensity",
        "energy",
        "step_size",
        "inverse_mass_matrix",
        "acceptance_rate",
    ):
        close(getattr(found, name), getattr(expected, name))
    for name in ("num_integration_steps", "tree_depth", "diverging"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_continuous_makes_the_chains_of_vmap(run: bk.ChainRun) -> None:
    assert_same_chains(nuts(bk.Continuous(2)), run)


def hmc(batcher: bk.AbstractBatcher) -> bk.ChainRun:
    with jax.enable_x64(True):
        return bk.run_chains(
            blackjax.hmc,
            logdensity,
            rng_key=KEY,
            positions=wide(STARTS),
            num_warmup=50,
            num_samples=100,
            batcher=batcher,
            **HMC,
        )


@pytest.fixture(scope="module")
def hmc_run() -> bk.ChainRun:
    return hmc(bk.Vmap())


@pytest.mark.parametrize(
    "batcher",
    [
        bk.Chunked(3),
        bk.Sequential(),
        bk.Sharded(mesh(2), inner=bk.Chunked(2)),
        bk.Sharded(mesh(2), inner=bk.Continuous(2)),
    ],
    ids=str,
)
def test_layouts_make_the_same_chains(
    batcher: bk.AbstractBatcher, hmc_run: bk.ChainRun
) -> None:
    found = hmc(batcher)
    assert found.inverse_mass_matrix is not None
    assert found.inverse_mass_matrix.shape == (CHAINS, 3, 3)
    assert found.tree_depth is None
    assert_same_chains(found, hmc_run)


PARAMETERS: dict[str, Any] = {
    "step_size": 0.4,
    "inverse_mass_matrix": jnp.ones(3),
    "num_integration_steps": 3,
}


def leapfrog(**options: Any) -> bk.ChainRun:
    options = {"num_warmup": 0, "num_samples": 24, **PARAMETERS, **options}
    return bk.run_chains(blackjax.hmc, logdensity, KEY, STARTS, **options)


@pytest.fixture(scope="module")
def plain() -> bk.ChainRun:
    return leapfrog()


def test_segments_change_no_bit_and_trace_nothing_anew(plain: bk.ChainRun) -> None:
    fun, traces = counted(logdensity)
    samplers = all_alike(
        lambda f: sampler_without_warmup(blackjax.hmc, f, PARAMETERS), fun, CHAINS
    )
    chains = Chains(samplers, KEY, STARTS, bk.Vmap(), thin=1, block=24)
    state = chains.start()
    made: list[Any] = []
    first, before = 0, 0
    for count in (5, 1, 7, 11):
        state, draws = chains.advance(state, draws_segment(first, count))
        made.append(draws)
        first += count
        before = before or len(traces)
    assert len(traces) == before
    found = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *made)
    assert_same(found.position, plain.samples, ulps=0)
    assert_same(found.acceptance, plain.acceptance_rate, ulps=0)


def test_block_setting_changes_no_bit(plain: bk.ChainRun) -> None:
    found = leapfrog(block=10)
    assert_same(found.samples, plain.samples, ulps=0)
    assert_same(found.logdensity, plain.logdensity, ulps=0)


def test_thin_keeps_every_third_draw(plain: bk.ChainRun) -> None:
    found = leapfrog(num_samples=8, thin=3)
    last = jax.tree.map(lambda x: x[:, 2::3], plain.samples)
    jax.tree.map(close, found.samples, last)
    assert np.all(found.num_integration_steps == 9)
    assert plain.acceptance_rate is not None
    rates = plain.acceptance_rate.reshape(CHAINS, 8, 3)
    close(found.acceptance_rate, np.mean(rates, axis=2))


def test_divergences_of_thinned_transitions_are_counted() -> None:
    run = leapfrog(num_samples=5, thin=2, step_size=100.0)
    assert run.divergences is not None
    assert run.divergences.tolist() == [10] * CHAINS
    assert {"divergences", "unmoved"} <= {warning.name for warning in run.warnings}


class Place(NamedTuple):
    position: jax.Array


class Walk(NamedTuple):
    """A user's algorithm, which reports nothing about its steps."""

    logdensity_fn: Any
    limit: float = 2.0

    def init(self, position: jax.Array) -> Place:
        return Place(position)

    def step(self, key: jax.Array, place: Place) -> tuple[Place, None]:
        x = 0.5 * place.position + jax.random.normal(key, place.position.shape)
        return Place(jnp.where(jnp.abs(x) > self.limit, jnp.nan, x)), None


def walk(key: Any = KEY, **options: Any) -> bk.ChainRun:
    fun = lambda x: -jnp.sum(x**2)
    return bk.run_chains(Walk, fun, key, np.zeros((4, 2)), num_warmup=0, **options)


def test_draws_that_are_not_finite_are_reported() -> None:
    run = walk(num_samples=200, batcher=bk.Chunked(2))
    assert np.isnan(run.samples).any()
    assert np.isnan(run.rhat).all()
    assert run.warnings[0].name == "draws not finite"
    assert run.divergences is run.acceptance is run.step_size is run.logdensity is None
    assert "divergences" not in repr(run)


def test_algorithm_whose_init_takes_a_key() -> None:
    options: Any = {"num_warmup": 0, "num_samples": 3, "L": 1.0, "step_size": 0.3}
    run = bk.run_chains(blackjax.mclmc, logdensity, KEY, STARTS, **options)
    again = bk.run_chains(blackjax.mclmc, logdensity, KEY, STARTS, **options)
    assert_same(run.samples, again.samples, ulps=0)
    assert len(np.unique(run.samples["y"])) == 3 * CHAINS
    assert run.step_size is None


def test_raw_keys_and_numpy_arrays_are_accepted() -> None:
    run = walk(jax.random.key_data(KEY), num_samples=3, limit=jnp.inf)
    typed = walk(num_samples=3, limit=jnp.inf)
    assert_same(run.samples, typed.samples, ulps=0)


def test_api_with_defaults_runs_with_and_without_a_warmup() -> None:
    """Equal settings are not enough to share a program."""

    def hmc(fun: Any, step_size: float = 0.4, inverse_mass_matrix: Any = 1.0) -> Any:
        return blackjax.hmc(fun, step_size, jnp.ones(3) * inverse_mass_matrix, 3)

    api: Any = hmc
    api.init = blackjax.barker.init
    api.build_kernel = blackjax.barker.build_kernel
    options: Any = {"num_samples": 3, "batcher": bk.Sequential()}
    warm = bk.run_chains(api, logdensity, KEY, STARTS, num_warmup=20, **options)
    cold = bk.run_chains(api, logdensity, KEY, STARTS, num_warmup=0, **options)
    assert warm.step_size is not None
    assert cold.step_size is None
    assert np.all(cold.num_integration_steps == 3)
