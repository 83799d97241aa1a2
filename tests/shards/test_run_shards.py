"""`run_shards` with real chains: exact posteriors, layouts, starts, failures."""

import logging
from collections import Counter
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run._arguments import locate_rows
from batchkit.run._program import ProgramCache
from batchkit.shards._rounds import ShardedModel
from batchkit.shards._run_shards import _SPLIT
from batchkit.shards._sharded_logdensity import generator, order_of_rows

from ..helpers import (
    assert_refuses,
    assert_same,
    counted,
    mesh,
    shard_samples,
    unchecked,
)
from ..run.compilations import compilations


KEY = jax.random.key(5)
ROWS, SHARDS, CHAINS = 203, 4, 4
DATA = {
    "x": np.random.default_rng(0).normal(size=(ROWS, 2)),
    "y": np.random.default_rng(1).normal(size=ROWS),
}
STARTS = 0.1 * np.random.default_rng(2).normal(size=(CHAINS, 2)).astype(np.float32)
HMC: dict[str, Any] = {"api": blackjax.hmc, "num_integration_steps": 2}


def logprior(params: Any) -> Any:
    return -0.5 * 3.0 * jnp.sum(params**2)


def loglikelihood(params: Any, rows: Any) -> Any:
    return -0.5 * jnp.sum((rows["y"] - rows["x"] @ params) ** 2)


def run(**options: Any) -> bk.ShardRun:
    arguments: Any = {
        "logprior_fn": logprior,
        "loglikelihood_fn": loglikelihood,
        "data": DATA,
        "rng_key": KEY,
        "num_shards": SHARDS,
        "positions": STARTS,
        "plan": bk.SamplingPlan(100, 300),
        **HMC,
        **options,
    }
    return bk.run_shards(**arguments)


@pytest.fixture(scope="module")
def plain() -> bk.ShardRun:
    return run()


def posterior() -> tuple[np.ndarray, np.ndarray]:
    """The exact one, of a linear model with a normal prior."""
    precision = DATA["x"].T @ DATA["x"] + 3.0 * np.eye(2)
    covariance = np.linalg.inv(precision)
    return covariance @ DATA["x"].T @ DATA["y"], covariance


def test_combined_draws_are_of_the_exact_posterior(plain: bk.ShardRun) -> None:
    mean, covariance = posterior()
    width = np.sqrt(np.diag(covariance))
    x = plain.samples.reshape(-1, 2)
    np.testing.assert_allclose((np.mean(x, 0) - mean) / width, 0, atol=0.12)
    np.testing.assert_allclose(np.std(x, 0) / width, 1, atol=0.1)
    assert plain.used == (0, 1, 2, 3)
    assert all(len(x) == 1 and x[0].accepted for x in plain.tries)
    assert min(plain.tries[0][0].seconds[:3]) > 0
    assert plain.tries[0][0].seconds == plain.tries[3][0].seconds
    assert plain.shards[0].tree_depth is None

    # Each shard is about as wide as its rows of the data make it.
    for shard in plain.shards:
        expected = np.sqrt(1 / (ROWS / SHARDS + 3.0 / SHARDS))
        width = np.std(shard.samples.reshape(-1, 2), 0)
        assert np.all(np.abs(width / expected - 1) < 0.4)


def model(
    data: Any, shards: int, chains: int, batcher: bk.AbstractBatcher
) -> ShardedModel:
    rows = len(jax.tree.leaves(data)[0])
    return ShardedModel(
        api=blackjax.hmc,
        logprior_fn=logprior,
        loglikelihood_fn=loglikelihood,
        settings={"num_integration_steps": 2},
        data=data,
        order=np.random.default_rng(3).permutation(rows),
        num_shards=shards,
        starts=np.zeros((shards, chains, 2), np.float32),
        plan=bk.SamplingPlan(5, 5, chains),
        rng_key=KEY,
        target=0.8,
        batcher=batcher,
        block=None,
        kept=ProgramCache(),
    )


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Sharded(mesh(2))], ids=str)
def test_a_shard_has_the_density_of_its_rows_and_its_part_of_the_prior(
    batcher: bk.AbstractBatcher,
) -> None:
    some = model(DATA, SHARDS, 1, batcher)
    at = np.array([0.3, -0.2], np.float32)
    gradients = some.gradients((1, 3))(at[None])[0]
    parts = np.array_split(some.order, SHARDS)
    rows = {name: x[np.concatenate([parts[1], parts[3]])] for name, x in DATA.items()}
    density = lambda p: 2 * logprior(p) / SHARDS + loglikelihood(p, rows)
    np.testing.assert_allclose(gradients, jax.grad(density)(at), rtol=1e-5)


@pytest.mark.parametrize(
    "batcher",
    [
        pytest.param(bk.Chunked(5), marks=pytest.mark.slow),
        bk.Continuous(3),
        bk.Sharded(mesh(2), inner=bk.Chunked(3)),
    ],
    ids=str,
)
def test_layouts_draw_the_same(batcher: bk.AbstractBatcher) -> None:
    short: Any = {"plan": bk.SamplingPlan(20, 3), "max_tries": 1}
    with jax.enable_x64(True):  # chains amplify rounding
        short["positions"] = STARTS.astype(np.float64)
        found, expected = (run(batcher=b, **short) for b in (batcher, bk.Vmap()))
    np.testing.assert_allclose(*map(shard_samples, (found, expected)), rtol=1e-6)


def test_a_device_holds_its_share_of_rows() -> None:
    count = 4096
    data = {"x": np.ones((count, 2)), "y": np.ones(count)}
    some = model(data, SHARDS, 1, bk.Sharded(mesh(4)))
    chains = some.chains(list(range(SHARDS)), [[]] * SHARDS)
    stats = chains.compile_start().memory_analysis()
    assert stats.argument_size_in_bytes < 1.1 * count * 3 * 4 / 4


def test_lengths_that_are_not_passed_are_those_of_a_plan(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "batchkit")
    found = run(
        plan=None, num_chains=2, positions=STARTS[:2], num_warmup=7, max_tries=1
    )
    usual = bk.SamplingPlan.from_shard(51, 2, num_chains=2)
    assert found.samples.shape == (2, usual.num_samples, 2)
    assert "7 transitions of warm-up" in caplog.text


@pytest.mark.parametrize("changed", [{}, {"data": {**DATA, "y": DATA["y"] + 1}}])
def test_another_key_and_other_data_compile_nothing(changed: dict[str, Any]) -> None:
    short: Any = {"plan": bk.SamplingPlan(20, 3), "max_tries": 1}
    run(**short)
    with compilations() as names:
        second = run(**short, rng_key=jax.random.key(6), **changed)
    assert names == []
    likelihood = lambda *args: loglikelihood(*args)
    short["loglikelihood_fn"] = likelihood
    fresh = run(**short, rng_key=jax.random.key(6), **changed)
    assert_same(*map(shard_samples, (second, fresh)), ulps=0)


def test_nuts_starts_from_draws_of_the_prior() -> None:
    found = bk.run_shards(
        logprior,
        loglikelihood,
        DATA,
        KEY,
        num_shards=2,
        prior_sample_fn=lambda key: jax.random.normal(key, (2,)),
        plan=bk.SamplingPlan(50, 100),
        max_num_doublings=4,
    )
    assert found.shards[0].tree_depth is not None
    assert found.shards[0].max_tree_depth == 4
    mean, covariance = posterior()
    away = np.mean(found.samples, (0, 1)) - mean
    assert np.all(np.abs(away) < 0.3 * np.sqrt(np.diag(covariance)))


def wild(params: Any, rows: Any) -> Any:
    """A row above 1 puts up a wall at zero, where there is most probability."""
    jax.debug.callback(count, rows[:1])
    walled = jnp.where(params < 0, -jnp.inf, -30.0 * params)
    usual = -0.5 * jnp.sum((rows - params) ** 2)
    return jnp.where(jnp.any(rows > 1), walled, usual)


# How often the likelihood of the shard with the wall was asked for, and the others'.
COUNTS: Counter[bool] = Counter()


def count(row: Any) -> None:
    COUNTS[bool(row[0] > 1)] += 1


def test_a_shard_that_diverges_runs_again_and_no_other() -> None:
    # Every shard has one row.
    data = np.array([1.5, 0.1, -0.1, 0.2], np.float32)
    problem: Any = {
        "logprior_fn": lambda p: -0.5 * p**2,
        "loglikelihood_fn": wild,
        "data": data,
        "positions": np.full(CHAINS, 0.5, np.float32),
        "plan": bk.SamplingPlan(100, 100),
        "refine": False,
    }
    COUNTS.clear()
    found = run(**problem, on_failure="drop", max_tries=2)
    jax.effects_barrier()
    (bad,) = [shard for shard, x in enumerate(found.tries) if len(x) > 1]
    tries = found.tries[bad]
    assert len(tries) == 2
    targets = [x.target_acceptance for x in tries]
    np.testing.assert_allclose(targets, [0.8, 0.85])
    assert all(x.divergence_rate > 0.1 for x in tries)
    assert list(found.left_out) == [bad]
    # Each chain of the others is evaluated once a step; those of the bad one
    # twice as often.
    ratio = COUNTS[True] / (COUNTS[False] / (SHARDS - 1))
    assert 1.6 < ratio < 2.4
    with unchecked(), pytest.raises(bk.ShardFailure, match=f"shard {bad}: 1 try "):
        run(**problem, max_tries=1)


def start_error(**options: Any) -> bk.StartError:
    with unchecked(), pytest.raises(bk.StartError) as info:
        run(**options)
    return info.value


def test_a_start_outside_the_support_is_named() -> None:
    def limited(params: Any) -> Any:
        return jnp.where(jnp.all(jnp.abs(params["a"]) < 1), 0.0, -jnp.inf)

    def likelihood(params: Any, rows: Any) -> Any:
        return loglikelihood(params["a"], rows) + 0 * params["b"]

    starts = {"a": STARTS.copy(), "b": np.zeros(CHAINS, np.float32)}
    starts["a"][2, 1] = 7.0
    error = start_error(
        logprior_fn=limited, loglikelihood_fn=likelihood, positions=starts
    )
    assert error.chains == (2,)
    for words in ("chain 2 of shard 0", "-inf", "the prior is", "a[1] = 7"):
        assert words in str(error)
    starts["a"][2, 1] = np.nan
    error = start_error(
        loglikelihood_fn=likelihood, logprior_fn=limited, positions=starts
    )
    assert error.parameters == ("a[1]",)
    assert error.chains == (2,)


def test_bad_starts_are_named_by_chain_and_shard() -> None:
    # Of two chains each of shards 0, 3 and 4, as in a second try.
    where, chains = locate_rows([1, 2, 3, 4], 6, shards=[0, 3, 4])
    assert where == "chain 1 of shard 0, chains 0, 1 of shard 3, chain 0 of shard 4"
    assert chains == [0, 1]
    assert locate_rows([1, 2], 6, "rows") == ("rows 1, 2 of 6", [1, 2])


def test_starts_that_are_not_finite_are_refused_before_tracing() -> None:
    fun, traces = counted(loglikelihood)
    bad = STARTS.copy()
    bad[[1, 3], 0] = np.nan, np.inf
    prior = lambda key: jnp.array([jnp.inf, 0.0])
    cases: Any = (
        ("positions", {"positions": bad}, (1, 3)),
        ("prior_sample_fn", {"positions": None, "prior_sample_fn": prior}, range(4)),
    )
    for argument, options, chains in cases:
        error = start_error(loglikelihood_fn=fun, **options)
        assert f"run_shards({argument}=...): x[0] is not finite" in str(error)
        assert (error.chains, error.parameters) == (tuple(chains), ("x[0]",))
    assert traces == []


def test_the_shard_of_a_row_that_is_not_finite_is_named() -> None:
    data = {**DATA, "y": DATA["y"].copy()}
    data["y"][17] = np.inf
    error = start_error(data=data)
    rng = generator(jax.random.fold_in(KEY, _SPLIT))
    order = order_of_rows(ROWS, SHARDS, None, rng)
    shard = int(np.flatnonzero(order == 17)[0]) // 51
    assert f"chains 0, 1, 2, 3 of shard {shard};" in str(error)
    assert "the likelihood of" in str(error)


@pytest.mark.parametrize("shards", [1, 3, 4, 16])
def test_every_row_is_in_one_shard_and_strata_are_spread(shards: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], ROWS, p=[0.7, 0.25, 0.05])
    for strata in (None, labels):
        order = order_of_rows(ROWS, shards, strata, rng)
        np.testing.assert_array_equal(np.sort(order), np.arange(ROWS))
        parts = np.array_split(order, shards)  # the longer ones first, as here
        if strata is not None:
            for label in "abc":
                counts = [np.sum(labels[part] == label) for part in parts]
                assert max(counts) - min(counts) <= 1
    rows = model({"i": np.arange(ROWS)}, shards, 1, bk.Vmap())
    assert sum(map(rows.size, range(shards))) == ROWS
    full, last = rows.rows([shards - 1])
    assert full["i"].shape == (1, ROWS // shards)
    assert last is None if ROWS % shards == 0 else last["i"].shape == (1, 1)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "num_shards": ({"num_shards": 0}, ValueError, ("num_shards=0", "at least 1")),
    "many shards": ({"num_shards": 204}, ValueError, ("only 203 rows",)),
    "data": ({"data": {}}, ValueError, ("run_shards(data=", "no array")),
    "functions": ({"logprior_fn": 3}, TypeError, ("logprior_fn=3",)),
    "api": ({"api": jax.vmap}, TypeError, ("api=", "blackjax.nuts")),
    "batcher": ({"batcher": jax.vmap}, TypeError, ("batcher=", "`Vmap()`")),
    "key": ({"rng_key": 3}, TypeError, ("rng_key=3", "jax.random.key(0)")),
    "keys": ({"rng_key": jax.random.split(KEY)}, ValueError, ("one key",)),
    "target": ({"target_acceptance": 1.5}, ValueError, ("between 0 and 1",)),
    "refine": ({"refine": "no"}, TypeError, ("refine='no'", "True or False")),
    "prior": (
        {"logprior_fn": lambda p: -(p**2)},
        TypeError,
        ("logprior_fn(params) must", "of shape (2,)"),
    ),
    "tries": ({"max_tries": 0}, ValueError, ("max_tries=0",)),
    "on_failure": ({"on_failure": "skip"}, ValueError, ("'skip'", "'drop'")),
    "combine": ({"combine": "mean"}, ValueError, ("'mean'", "'robust'")),
    "strata": ({"strata": np.ones(3)}, ValueError, ("203 rows", "(3,)")),
    "plan": ({"plan": 100}, TypeError, ("plan=100", "SamplingPlan.from_shard")),
    "chains": ({"num_chains": 3}, ValueError, ("num_chains=3", "has 4 chains")),
    "plan and warm-up": (
        {"num_warmup": 9},
        TypeError,
        ("num_warmup=9, plan=...", "has a num_warmup of its own"),
    ),
    "plan and draws": ({"num_samples": 9}, TypeError, ("num_samples=9, plan=",)),
    "no warm-up": ({"plan": None, "num_warmup": 0}, ValueError, ("num_warmup=0",)),
    "no start": ({"positions": None}, TypeError, ("neither", "prior_sample_fn")),
    "two starts": ({"prior_sample_fn": jnp.ones}, TypeError, ("both",)),
    "starts": ({"positions": STARTS[:3]}, ValueError, ("3 chains", "num_chains=3")),
    "one start": ({"positions": 0.0}, TypeError, ("float", "axis 0")),
    "one axis": ({"positions": np.array(0.0)}, ValueError, ("shape ()", "axis 0")),
    "integers": (
        {"positions": np.ones((4, 2), int)},
        TypeError,
        ("int64", "gradients"),
    ),
    "a mean": (
        {"loglikelihood_fn": lambda p, rows: -jnp.mean((rows["y"] - p[0]) ** 2)},
        ValueError,
        ("is not the sum", "no mean"),
    ),
    "by rows": (
        {"loglikelihood_fn": lambda p, rows: rows["y"] * p[0]},
        TypeError,
        ("of shape (2,)", "jnp.sum"),
    ),
    "settings": ({"num_steps": 3}, TypeError, ("run_shards(num_steps=3)",)),
    "tuned": ({"step_size": 3}, TypeError, ("run_shards(step_size=", "initial_step")),
    "missing": (
        {"num_integration_steps": 3, "api": blackjax.mala},
        TypeError,
        ("run_shards: there is no warm-up", "blackjax.nuts"),
    ),
}


# These are refused by what the functions return.
TRACED = {"prior", "a mean", "by rows"}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_cannot_be_right_are_refused_before_tracing(name: str) -> None:
    fun, traces = counted(loglikelihood)
    options, error, words = REFUSED[name]
    options = {"loglikelihood_fn": fun, **options}
    assert_refuses(lambda: run(**options), error, words)
    assert name in TRACED or traces == []


def poisson(params: Any, rows: Any) -> Any:
    rate = rows["x"] @ params["b"]
    return jnp.sum(rows["n"] * rate - jnp.exp(rate))


def test_the_gradient_of_all_data_corrects_the_mean() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(640), rng.normal(size=(640, 2))])
    data = {"x": x, "n": rng.poisson(np.exp(x @ [-0.5, 0.8, -0.3]))}
    prior = lambda params: -0.5 * jnp.sum(params["b"] ** 2)
    problem: Any = {
        "logprior_fn": prior,
        "loglikelihood_fn": poisson,
        "data": data,
        "positions": {"b": np.zeros((CHAINS, 3), np.float32)},
        "num_shards": 16,
    }
    # The exact posterior on a grid of draws: importance weights of a Gaussian.
    logdensity = lambda b: prior({"b": b}) + poisson({"b": b}, data)
    mode = np.zeros(3)
    for _ in range(20):
        slope, curved = jax.grad(logdensity)(mode), jax.hessian(logdensity)(mode)
        mode = mode - np.linalg.solve(curved, slope)
    covariance = 1.3 * np.linalg.inv(-np.asarray(jax.hessian(logdensity)(mode)))
    points = rng.multivariate_normal(mode, covariance, 20_000)
    away = points - mode
    log_q = -0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    log_w = np.asarray(jax.vmap(logdensity)(points)) - log_q
    weights = np.exp(log_w - np.max(log_w))
    weights /= np.sum(weights)
    mean = weights @ points
    width = np.sqrt(weights @ (points - mean) ** 2)
    apart, moved = run(**problem, refine=False), run(**problem)
    off, left = (
        np.max(np.abs(np.mean(r.samples["b"], (0, 1)) - mean) / width)
        for r in (apart, moved)
    )
    assert off > 0.3
    assert left < 0.1
    assert apart.shift is None
    assert (apart.verdict, apart.warnings[0].name) == ("unreliable", "mean gradient")
    check = apart.gradient_check
    assert check is not None
    error = (np.mean(apart.samples["b"], (0, 1)) - mean) / width
    np.testing.assert_allclose(check.shift, -error, atol=0.1 + 0.2 * off)
    assert "standard deviations of the posterior's" in repr(moved)
    assert moved.shift is not None
    assert np.max(np.abs(moved.shift)) > 0.3


def test_call_under_jit_is_refused_by_name() -> None:
    def run(rows: Any) -> Any:
        prior = lambda p: -0.5 * jnp.sum(p**2)
        likelihood = lambda p, rows: -jnp.sum((rows - p[0]) ** 2)
        starts = {"prior_sample_fn": lambda key: jnp.zeros(2), "num_shards": 2}
        return bk.run_shards(prior, likelihood, rows, KEY, **starts).samples

    with pytest.raises(TypeError, match=r"run_shards was called inside `jax\.jit`"):
        jax.jit(run)(jnp.ones(30))
