"""A second call of `run_nested` compiles nothing, and gives the same results."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import DeadPoints

from ..helpers import assert_same, counted
from ..run.compilations import compilations


BOTH = bk.MaxSteps(2) | bk.MaxEvaluations(10**6) | bk.RemainingEvidence(1e-3)


def logprior(x: Any) -> Any:
    return jnp.where(jnp.all(jnp.abs(x) < 3), -2 * jnp.log(6.0), -jnp.inf)


def loglikelihood(x: Any) -> Any:
    return -0.5 * jnp.sum(x**2)


def call(likelihood: Any, seed: int, **options: Any) -> bk.NestedRun:
    key, other = jax.random.split(jax.random.key(seed))
    positions = jax.random.uniform(other, (20, 2), minval=-2.9, maxval=2.9)
    settings: Any = {"num_inner_steps": 2, "num_delete": 5, "progress": False}
    settings |= {"stop": BOTH, **options}
    return bk.run_nested(blackjax.nss, logprior, likelihood, key, positions, **settings)


@pytest.mark.parametrize("batcher", [None, bk.ByPhase(init=bk.Chunked(4))], ids=str)
def test_another_key_and_rule_compile_nothing(batcher: Any) -> None:
    fun, traces = counted(loglikelihood)
    first = call(fun, 0, batcher=batcher)
    before = len(traces)
    longer = bk.MaxSteps(3) | bk.MaxEvaluations(10**10) | bk.RemainingEvidence(1e-4)
    with compilations() as names:
        second = call(fun, 1, stop=longer, batcher=batcher)
    again = call(fun, 0, batcher=batcher)
    assert names == []
    assert len(traces) == before
    assert (first.num_steps, second.num_steps) == (2, 3)
    assert second.seconds.compile == 0.0
    # Cached programs and new ones give the same bits.
    new = call(loglikelihood, 1, stop=longer, batcher=batcher)
    for one, two in ((again, first), (second, new)):
        assert_same(one.dead.positions, two.dead.positions, ulps=0)


def test_evaluations_end_a_run_with_cached_programs() -> None:
    few, many = bk.MaxEvaluations(21), bk.MaxEvaluations(10**10)
    steps, evidence = bk.MaxSteps(3), bk.RemainingEvidence(1e-3)
    found = [call(loglikelihood, 0, stop=steps | x | evidence) for x in (many, few)]
    assert found[0].num_steps == 3
    assert found[1].num_steps < 3
    assert "10,000,000,000" not in found[0].stop_reason
    assert repr(many) == "MaxEvaluations(evaluations=10000000000)"


def test_rejecting_invalid_likelihoods_is_a_program_of_its_own() -> None:
    def broken(x: Any) -> Any:
        return jnp.where(x[0] < 0, jnp.nan, loglikelihood(x))

    call(broken, 0, on_invalid="reject")
    with compilations() as names:
        call(broken, 1, on_invalid="reject")
    assert names == []
    with pytest.raises(bk.InvalidLikelihoodError):
        call(broken, 0)


def test_derived_quantities_are_compiled_once() -> None:
    x = np.linspace(0.0, 1.0, 50)
    dead = DeadPoints(x, -x, np.full(50, -np.inf), np.zeros(50))
    run = bk.NestedRun(dead, key=jax.random.key(0))
    square, traces = counted(jnp.square)
    for seed in range(2):
        run.posterior(jax.random.key(seed), 10, square)
    assert len(traces) == 1
