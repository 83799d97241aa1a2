"""A user's program under strict type checkers. `make types` checks it; nothing runs it.

A batched function has the type of the function, as under `jax.vmap`.
"""

# pyright: strict
# blackjax has no stubs. `jnp.ones` is partially unknown to pyright, and so is every
# function with an argument of type `jaxtyping.PyTree`.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from collections.abc import Callable
from typing import assert_type

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk
from batchkit.auto import LayoutPlan, Selection
from batchkit.chains import ChainRun
from batchkit.continuous import LaneStats
from batchkit.explain import Explanation, MemoryUse, ReachedSite
from batchkit.nested import DeadPoints
from batchkit.run import Summary


def norm(x: jax.Array, scale: float) -> jax.Array:
    return jnp.sum(x**2) * scale


Norm = Callable[[jax.Array, float], jax.Array]
x = jnp.ones((10, 3))


# Every batcher keeps the type of the function, also as a decorator.

vmap: Norm = jax.vmap(norm, (0, None))
chunked: Norm = bk.Chunked(16)(norm, (0, None))
assert_type(chunked(x, 2.0), jax.Array)
assert_type(bk.Vmap()(norm, (0, None))(x, 2.0), jax.Array)
assert_type(bk.Sequential()(norm, (0, None))(x, scale=2.0), jax.Array)
assert_type(bk.Sharded(inner=bk.Chunked(4))(norm, (0, None))(x, 2.0), jax.Array)
assert_type(bk.Continuous(4)(norm, (0, None))(x, 2.0), jax.Array)
assert_type(bk.Auto("1 GB")(norm, (0, None))(x, 2.0), jax.Array)

# As under `jax.vmap`, all arguments may be given by position.
named: Norm = bk.Chunked(16)(norm, (0, None), 0, "tasks", 10, None, False)


@bk.Chunked(2)
def pair(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return x, {"sum": x.sum()}


assert_type(pair(x), tuple[jax.Array, dict[str, jax.Array]])


def any_layout(batcher: bk.AbstractBatcher) -> jax.Array:
    return batcher(norm, (0, None))(x, 1.0)


@bk.filter_batch(bk.Chunked(2))
def apply(model: eqx.nn.Linear, x: jax.Array) -> jax.Array:
    return model(x)


apply_to: Callable[[eqx.nn.Linear, jax.Array], jax.Array] = apply
assert_type(bk.filter_batch(bk.Vmap())(norm, (0, None))(x, 2.0), jax.Array)

with_stats: Callable[[jax.Array, float], tuple[jax.Array, LaneStats]] = bk.Continuous(
    4
).with_stats(norm, (0, None))
assert_type(bk.Continuous(4).with_stats(norm)(x, 1.0), tuple[jax.Array, LaneStats])


@bk.expensive
def loglikelihood(x: jax.Array) -> jax.Array:
    return -jnp.sum(x**2)


assert_type(loglikelihood(x), jax.Array)


def logprior(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


# Budgets and reports.

chosen = bk.Auto("1 GB").select(norm, x, 1.0, in_axes=(0, None))
assert_type(chosen, Selection)
assert_type(chosen.batcher, bk.AbstractBatcher)
assert_type(chosen.bytes, int | None)
assert_type(bk.memory(norm, x, 1.0), MemoryUse)
assert_type(bk.memory(norm, x, 1.0).total, int)
explanation = bk.explain(norm, x, 1.0)
assert_type(explanation, Explanation)
assert_type(explanation.reached, tuple[ReachedSite, ...])
plan = bk.plan(
    blackjax.nss,
    "1 GB",
    x,
    logprior_fn=logprior,
    loglikelihood_fn=loglikelihood,
    num_inner_steps=5,
)
assert_type(plan, LayoutPlan)
assert_type(plan.batcher, bk.ByPhase)
assert_type(plan.step.memory.total, int)


# Rebuilding keeps the type of the API.


def build(logdensity_fn: Callable[[jax.Array], jax.Array], size: int) -> jax.Array:
    return logdensity_fn(jnp.ones(size))


rebuilt = bk.rebuild_sampler(build, batcher={"step": bk.Chunked(4)})
assert_type(rebuilt(logprior, 3), jax.Array)


# Runs and their results.

key = jax.random.key(0)


def on_progress(progress: object) -> None:
    print(progress)


chains = bk.run_chains(blackjax.nuts, logprior, key, x, progress=on_progress)
assert_type(chains, ChainRun)
chains.save("chains.h5")
assert_type(bk.ChainRun.load("chains.h5"), ChainRun)


def nested_result(run: bk.NestedRun) -> None:
    assert_type(run.log_evidence, float)
    assert_type(run.log_evidence_err, float)
    assert_type(run.ess, float)
    assert_type(run.dead, DeadPoints)
    assert_type(run.summary(quantiles=(0.16, 0.84), transform=jnp.exp), Summary)
    assert_type(run.summary().to_latex({"x": "$x$"}), str)
    assert_type(bk.NestedRun.merge([run, run]), bk.NestedRun)
    run.save("run.h5")


nested = bk.run_nested(
    blackjax.nss,
    logprior,
    loglikelihood,
    key,
    x,
    batcher=plan.batcher,
    stop=bk.RemainingEvidence(1e-3),
    on_invalid="reject",
    num_inner_steps=5,
)
assert_type(nested, bk.NestedRun)
nested_result(nested)


def row_loglikelihood(x: jax.Array, data: jax.Array) -> jax.Array:
    return -jnp.sum((data - x[0]) ** 2)


shards = bk.run_shards(
    logprior,
    row_loglikelihood,
    np.ones(100),
    key,
    x,
    num_shards=4,
    num_samples=500,
    api=blackjax.hmc,
    combine="consensus",
    on_failure="raise",
)
assert_type(shards, bk.ShardRun)
assert_type(shards.summary(quantiles=[0.5]), Summary)
assert_type(bk.ShardRun.load("shards.h5"), bk.ShardRun)
bk.plot_corner(shards, transform=jnp.exp)
