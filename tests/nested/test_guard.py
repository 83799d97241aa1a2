"""NaN and infinite likelihoods: found under every layout, or rejected.

A likelihood that is compiled once serves many tests: the functions of this module are
the same objects in all of them, and what varies are keys and live points.
"""

import math
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested._nested_arguments import stopping

from ..helpers import assert_bits
from .problems import gaussian


PROBLEM = gaussian(2)
LAYOUTS = [
    bk.Vmap(),
    bk.Sequential(),
    bk.Continuous(4),
    bk.Sharded(inner=bk.Chunked(3)),
]


def in_hole(x: Any) -> Any:
    """A disc that a run reaches late."""
    return jnp.sum((x - 0.3) ** 2, axis=-1) < 0.02


def with_hole(x: Any) -> Any:
    """NaN or infinite in the disc, and NaN where the prior is zero."""
    invalid = jnp.where(x[0] < 0.3, math.nan, math.inf)
    value = jnp.where(in_hole(x), invalid, PROBLEM.loglikelihood(x))
    return jnp.where(jnp.all(jnp.abs(x) < 5), value, math.nan)


def with_zero(x: Any) -> Any:
    return jnp.where(in_hole(x), -math.inf, PROBLEM.loglikelihood(x))


HOLE = PROBLEM._replace(loglikelihood=with_hole)
REJECT: dict[str, Any] = {"on_invalid": "reject", "stop": bk.MaxSteps(15)}


@pytest.mark.parametrize("batcher", LAYOUTS, ids=str)
def test_invalid_likelihoods_end_a_run_under_every_layout(
    batcher: bk.AbstractBatcher,
) -> None:
    with pytest.raises(bk.InvalidLikelihoodError, match="after step") as info:
        HOLE.run(batcher=batcher)
    assert len(info.value.positions) >= 1
    assert np.all(in_hole(info.value.positions))


def test_both_nan_and_infinity_are_found() -> None:
    found: list[Any] = []
    for seed in range(4):
        with pytest.raises(bk.InvalidLikelihoodError) as info:
            HOLE.run(batcher=bk.Vmap(), seed=seed)
        found += np.asarray(info.value.positions[:, 0]).tolist()
    assert min(found) < 0.3 < max(found)


def test_the_step_that_proposes_an_invalid_likelihood_ends_the_run() -> None:
    """In a loop by hand, upstream evaluates it in this very step, and rejects NaN."""
    with pytest.raises(bk.InvalidLikelihoodError) as info:
        HOLE.run(batcher=bk.Vmap())
    found = int(str(info.value).split("after step ")[1].split()[0])
    proposed: list[Any] = []

    def loglikelihood(x: Any) -> Any:
        jax.debug.callback(lambda bad: proposed.append(bool(bad)), in_hole(x))
        return jnp.where(in_hole(x), jnp.nan, PROBLEM.loglikelihood(x))

    algorithm = PROBLEM._replace(loglikelihood=loglikelihood).algorithm(20)
    state = jax.jit(algorithm.init)(PROBLEM.positions(100))
    step = jax.jit(algorithm.step)
    for number in range(found):
        jax.effects_barrier()
        proposed.clear()
        state, _ = step(jax.random.fold_in(jax.random.key(0), number), state)
    jax.effects_barrier()
    assert any(proposed)


@pytest.fixture(scope="module")
def rejected() -> bk.NestedRun:
    return HOLE.run(batcher=bk.Vmap(), **REJECT)


def test_rejected_likelihoods_are_likelihoods_of_zero(rejected: bk.NestedRun) -> None:
    zero = PROBLEM._replace(loglikelihood=with_zero)
    run = zero.run(batcher=bk.Vmap(), stop=bk.MaxSteps(15))
    assert_bits(rejected.dead.positions, run.dead.positions)


@pytest.mark.parametrize("batcher", LAYOUTS[1:], ids=str)
def test_every_layout_rejects(
    rejected: bk.NestedRun, batcher: bk.AbstractBatcher
) -> None:
    run = HOLE.run(batcher=batcher, **REJECT)
    np.testing.assert_allclose(
        run.dead.positions, rejected.dead.positions, rtol=1e-3, atol=1e-3
    )


def test_a_run_that_an_invalid_likelihood_ended_goes_on_if_it_is_rejected(
    tmp_path: Path,
) -> None:
    place: dict[str, Any] = {"checkpoint": tmp_path / "run.h5", "batcher": bk.Vmap()}
    with pytest.raises(bk.InvalidLikelihoodError, match="on_invalid='reject' it can"):
        HOLE.run(**place)
    assert HOLE.run(**place, **REJECT).num_steps == 15


def test_invalid_likelihoods_of_first_live_points_are_all_named() -> None:
    problem = PROBLEM._replace(loglikelihood=lambda x: jnp.log(x[0]))
    positions = np.asarray(problem.positions(100))
    bad = positions[positions[:, 0] < 0]
    with pytest.raises(bk.InvalidLikelihoodError, match=f"{len(bad)} of 100") as info:
        problem.run()
    np.testing.assert_array_equal(info.value.positions, bad)


@pytest.mark.parametrize(
    ("logdensity", "loglikelihood", "moves"),
    [
        (0.0, 0.0, True),
        (0.0, -math.inf, True),
        (-math.inf, 0.0, True),
        (0.0, math.inf, False),
        (0.0, math.nan, False),
        (math.inf, 0.0, False),
    ],
)
def test_a_chain_stays_at_an_invalid_point(
    logdensity: float, loglikelihood: float, moves: bool
) -> None:
    def step(rng_key: Any, point: Any) -> Any:
        moved = point._replace(position=point.position + 1, loglikelihood=1.0)
        return moved, "info"

    particle: Any = blackjax.ns.base.StateWithLogLikelihood
    point = particle(jnp.zeros(2), logdensity, loglikelihood, 0.0)
    after, info = stopping(step)(jax.random.key(0), point)
    assert info == "info"
    assert after.position.tolist() == [float(moves)] * 2
    expected = 1.0 if moves else loglikelihood
    np.testing.assert_array_equal(after.loglikelihood, expected)


def test_an_api_without_update_strategy_is_guarded_at_the_ends_of_chains() -> None:
    def api(logprior_fn: Any, loglikelihood_fn: Any, **settings: Any) -> Any:
        return blackjax.nss(
            logprior_fn=logprior_fn, loglikelihood_fn=loglikelihood_fn, **settings
        )

    with pytest.raises(bk.InvalidLikelihoodError):
        HOLE.run(api=api)


def test_an_infinite_prior_ends_a_run() -> None:
    def logprior(x: Any) -> Any:
        return jnp.where(in_hole(x), jnp.inf, PROBLEM.logprior(x))

    arguments = {**PROBLEM.arguments(20), "logprior_fn": logprior}
    key, positions = jax.random.key(0), PROBLEM.positions(100)
    with pytest.raises(bk.InvalidLikelihoodError, match="log-prior of"):
        bk.run_nested(**arguments, rng_key=key, positions=positions, progress=False)


def test_marks_of_the_user_change_no_bit() -> None:
    marked = HOLE._replace(loglikelihood=bk.expensive(with_hole))
    run, same = (x.run(batcher=bk.Continuous(4), **REJECT) for x in (marked, HOLE))
    np.testing.assert_array_equal(run.dead.positions, same.dead.positions)
