"""States and infos in the layout of the fork of blackjax."""

from typing import Any, NamedTuple

import blackjax
import numpy as np
import pytest

from batchkit.nested import finalise

from ..helpers import assert_bits
from .problems import gaussian


class State(NamedTuple):
    particles: Any
    loglikelihood: Any
    loglikelihood_birth: Any
    logprior: Any
    inner_kernel_params: Any
    inner: Any


class Info(NamedTuple):
    particles: Any
    loglikelihood: Any
    loglikelihood_birth: Any
    logprior: Any
    inner_kernel_info: Any


class Moves(NamedTuple):
    position: Any
    logprior: Any
    loglikelihood: Any
    info: Any


class Slices(NamedTuple):
    is_accepted: Any
    num_steps: Any
    num_shrink: Any


def fields(x: Any) -> tuple[Any, Any, Any, Any]:
    return x.position, x.loglikelihood, x.loglikelihood_birth, x.logdensity


def forked(algorithm: Any) -> Any:
    """Wrap an algorithm so that its states have the fork's layout."""

    def init(position: Any, rng_key: Any = None) -> Any:
        state = algorithm.init(position, rng_key)
        return State(*fields(state.particles), {}, state)

    def step(rng_key: Any, state: Any) -> Any:
        new, info = algorithm.step(rng_key, state.inner)
        slices = info.update_info
        # The fork counts the two ends with which a bracket begins.
        counted = Slices(
            slices.is_accepted, slices.num_expansions + 2, slices.num_shrink
        )
        moves = Moves(None, None, None, counted)
        return State(*fields(new.particles), {}, new), Info(
            *fields(info.particles), moves
        )

    return blackjax.SamplingAlgorithm(init, step)


@pytest.mark.slow
def test_the_layout_of_the_fork_changes_no_bit() -> None:
    def api(logprior_fn: Any, loglikelihood_fn: Any, **settings: Any) -> Any:
        return forked(blackjax.nss(logprior_fn, loglikelihood_fn, **settings))

    problem = gaussian(2)
    expected = problem.run(num_live=60)
    run = problem.run(num_live=60, api=api)
    assert_bits(run.dead.loglikelihood, expected.dead.loglikelihood)
    assert_bits(run.dead.positions, expected.dead.positions)
    assert_bits(run.log_evidence, expected.log_evidence)
    assert run.num_evaluations == expected.num_evaluations
    assert run.converged


def test_finalise_takes_states_of_the_fork() -> None:
    logl, births = np.array([2.0, 3.0]), np.array([np.nan, 1.0])
    state = State(logl[:, None], logl, births, np.zeros(2), {}, None)
    info = Info(np.ones((1, 1)), np.ones(1), np.array([np.nan]), np.zeros(1), None)
    dead = finalise(state, [info])
    assert dead.positions.tolist() == [[1.0], [2.0], [3.0]]
    assert dead.loglikelihood.tolist() == [1.0, 2.0, 3.0]
    assert dead.num_prior == 2
