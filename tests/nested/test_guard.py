"""Likelihoods that are no numbers: found under every layout, or counted."""

import math
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested._guard import stopping
from batchkit.nested._states import Points

from .problems import gaussian


PROBLEM = gaussian(2)
LAYOUTS = [
    bk.Vmap(),
    bk.Sequential(),
    bk.Continuous(4),
    bk.Sharded(inner=bk.Chunked(3)),
]


def with_hole(value: float, batcher: Any = None, **options: Any) -> bk.NestedRun:
    """A likelihood that is `value` in a disc which a run reaches late."""

    def loglikelihood(x: Any) -> Any:
        return jnp.where(in_hole(x), value, PROBLEM.loglikelihood(x))

    problem = PROBLEM._replace(loglikelihood=loglikelihood)
    return problem.run(batcher=batcher, **options)


def in_hole(x: Any) -> Any:
    return jnp.sum((x - 0.3) ** 2, axis=-1) < 0.02


@pytest.mark.parametrize("batcher", LAYOUTS, ids=str)
def test_found_under_every_layout(batcher: bk.AbstractBatcher) -> None:
    with pytest.raises(bk.InvalidLikelihoodError, match="after step") as info:
        with_hole(math.nan, batcher)
    assert len(info.value.positions) >= 1
    assert np.all(in_hole(info.value.positions))


def test_plus_infinity_is_found() -> None:
    with pytest.raises(bk.InvalidLikelihoodError):
        with_hole(math.inf)


def test_found_at_the_first_step_that_would_have_drawn_it() -> None:
    """In a loop by hand, upstream proposes NaN in this very step, and rejects it."""
    with pytest.raises(bk.InvalidLikelihoodError) as info:
        with_hole(math.nan)
    found = int(str(info.value).split("after step ")[1].split()[0])
    proposed: list[Any] = []

    def loglikelihood(x: Any) -> Any:
        value = jnp.where(in_hole(x), jnp.nan, PROBLEM.loglikelihood(x))
        jax.debug.callback(lambda v: proposed.append(bool(np.isnan(v))), value)
        return value

    algorithm = PROBLEM._replace(loglikelihood=loglikelihood).algorithm(20)
    state = jax.jit(algorithm.init)(PROBLEM.positions(100))
    step = jax.jit(algorithm.step)
    for number in range(found):
        jax.effects_barrier()
        assert not any(proposed) or number > 0
        state, _ = step(jax.random.fold_in(jax.random.key(0), number), state)
    jax.effects_barrier()
    assert any(proposed)


@pytest.mark.parametrize("batcher", LAYOUTS, ids=str)
def test_rejected_and_counted(batcher: bk.AbstractBatcher) -> None:
    run = with_hole(math.nan, batcher, on_invalid="reject", stop=bk.MaxSteps(15))
    zero = with_hole(-math.inf, batcher, stop=bk.MaxSteps(15))
    np.testing.assert_array_equal(run.dead.positions, zero.dead.positions)
    (warning,) = [x for x in run.warnings if x.name == "invalid likelihoods"]
    assert warning.value >= 1
    assert not [x for x in zero.warnings if x.name == "invalid likelihoods"]


def test_rejected_ones_are_all_that_are_proposed() -> None:
    """One lane at a time makes no evaluation in vain, so the counts agree."""
    run = with_hole(
        math.nan, bk.Sequential(), on_invalid="reject", stop=bk.MaxSteps(15)
    )
    proposed: list[Any] = []

    def loglikelihood(x: Any) -> Any:
        value = jnp.where(in_hole(x), -jnp.inf, PROBLEM.loglikelihood(x))
        jax.debug.callback(lambda bad: proposed.append(bool(bad)), in_hole(x))
        return value

    problem = PROBLEM._replace(loglikelihood=loglikelihood)
    problem.run(batcher=bk.Sequential(), stop=bk.MaxSteps(15))
    jax.effects_barrier()
    (warning,) = [x for x in run.warnings if x.name == "invalid likelihoods"]
    assert warning.value == sum(proposed)


def test_invalid_at_the_start() -> None:
    def loglikelihood(x: Any) -> Any:
        return jnp.log(x[0]) + PROBLEM.loglikelihood(x)

    problem = PROBLEM._replace(loglikelihood=loglikelihood)
    positions = problem.positions(100)
    bad = np.asarray(positions)[np.asarray(positions)[:, 0] < 0]
    with pytest.raises(bk.InvalidLikelihoodError, match=f"{len(bad)} of 100") as info:
        problem.run()
    np.testing.assert_array_equal(info.value.positions, bad)


def test_outside_of_the_prior_anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    def loglikelihood(x: Any) -> Any:
        inside = jnp.all(jnp.abs(x) < 5)
        return jnp.where(inside, PROBLEM.loglikelihood(x), jnp.nan)

    run = PROBLEM._replace(loglikelihood=loglikelihood).run()
    same = PROBLEM.run()
    np.testing.assert_array_equal(run.dead.positions, same.dead.positions)


def test_nothing_is_accepted_that_is_not_above_the_contour() -> None:
    """Without an invalid likelihood the guard changes no bit."""
    algorithm = PROBLEM.algorithm(20)
    state = jax.jit(algorithm.init)(PROBLEM.positions(100))
    state, _ = jax.jit(algorithm.step)(jax.random.fold_in(jax.random.key(0), 0), state)
    run = PROBLEM.run(stop=bk.MaxSteps(1))
    alive = np.sort(np.asarray(state.particles.loglikelihood))
    np.testing.assert_array_equal(run.dead.loglikelihood[20:], alive)


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
def test_a_chain_does_not_leave_an_invalid_point(
    logdensity: float, loglikelihood: float, moves: bool
) -> None:
    def step(rng_key: Any, point: Any) -> Any:
        moved = point._replace(position=point.position + 1, loglikelihood=1.0)
        return moved, "info"

    point = Points(jnp.zeros(2), logdensity, loglikelihood, 0.0)
    after, info = stopping(step)(jax.random.key(0), point)
    assert info == "info"
    assert after.position.tolist() == [float(moves)] * 2
    expected = 1.0 if moves else loglikelihood
    np.testing.assert_array_equal(after.loglikelihood, expected)


def test_an_api_that_hides_its_chains_is_guarded_at_their_ends() -> None:
    def api(logprior_fn: Any, loglikelihood_fn: Any, **settings: Any) -> Any:
        return blackjax.nss(
            logprior_fn=logprior_fn, loglikelihood_fn=loglikelihood_fn, **settings
        )

    with pytest.raises(bk.InvalidLikelihoodError):
        with_hole(math.nan, api=api)
    run = with_hole(math.nan, api=api, on_invalid="reject")
    assert any(x.name == "invalid likelihoods" for x in run.warnings)


def test_an_infinite_prior_is_found() -> None:
    def logprior(x: Any) -> Any:
        return jnp.where(in_hole(x), jnp.inf, PROBLEM.logprior(x))

    arguments = {**PROBLEM.arguments(20), "logprior_fn": logprior}
    key, positions = jax.random.key(0), PROBLEM.positions(100)
    with pytest.raises(bk.InvalidLikelihoodError, match="log-prior of"):
        bk.run_nested(**arguments, rng_key=key, positions=positions, progress=False)


def test_marks_of_the_user_stay() -> None:
    marked = PROBLEM._replace(loglikelihood=bk.expensive(PROBLEM.loglikelihood))
    options: Any = {"batcher": bk.Continuous(4), "stop": bk.MaxSteps(3)}
    run, same = marked.run(**options), PROBLEM.run(**options)
    np.testing.assert_array_equal(run.dead.positions, same.dead.positions)
