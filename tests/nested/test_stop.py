"""Rules to stop: each alone, together, and on a run that is resumed."""

import dataclasses
import math
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import Count, NestedStatus
from batchkit.nested._stop import rules_met

from ..helpers import assert_refuses
from .problems import gaussian


PROBLEM = gaussian(2)


def status(**values: Any) -> NestedStatus:
    first = NestedStatus.first(jnp.array([0.0, 1.0, 2.0]))
    values = {name: jnp.asarray(x) for name, x in values.items()}
    return dataclasses.replace(first, **values)


def test_first_status_is_that_of_the_prior() -> None:
    live = jnp.array([-jnp.inf, -1.0, -2.0, -3.0])
    first = NestedStatus.first(live)
    weights = np.exp([-1, -2, -3])
    assert first.log_evidence == pytest.approx(math.log(weights.sum() / 4))
    assert first.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    mean = (weights * [-1, -2, -3]).sum() / weights.sum()
    assert first.information == pytest.approx(mean - math.log(weights.sum() / 4))
    assert first.remaining == 1.0


def test_status_of_zero_likelihoods() -> None:
    first = NestedStatus.first(jnp.full(3, -jnp.inf))
    after = first.after(jnp.full(1, -jnp.inf), jnp.full(3, -jnp.inf), 1)
    for x in (first, after):
        assert (x.remaining, x.ess, x.information) == (1.0, 0.0, 0.0)
        assert x.exhausted


def test_status_after_one_replacement_by_hand() -> None:
    first = NestedStatus.first(jnp.array([0.0, 1.0]))
    after = first.after(jnp.array([0.0]), jnp.array([2.0, 1.0]), 5)
    left = math.exp(-0.5)
    assert after.log_volume == pytest.approx(-0.5)
    assert after.log_evidence_dead == pytest.approx(math.log(1 - left))
    live = left * (math.exp(2) + math.exp(1)) / 2
    assert after.log_evidence_live == pytest.approx(math.log(live))
    total = live + 1 - left
    squares = (1 - left) ** 2 + (left / 2) ** 2 * (math.exp(4) + math.exp(2))
    assert after.ess == pytest.approx(total**2 / squares, rel=1e-5)
    assert not after.exhausted


@pytest.mark.parametrize(
    ("live", "num_delete", "exhausted"),
    [
        ([0.0, 1.0, 2.0], 2, False),
        ([0.0, 2.0, 2.0], 1, False),
        ([0.0, 2.0, 2.0], 2, True),
        ([2.0, 2.0, 2.0], 1, True),
    ],
)
def test_a_status_is_exhausted_if_no_point_is_above(
    live: list[float], num_delete: int, exhausted: bool
) -> None:
    assert bool(NestedStatus.first(jnp.array(live), num_delete).exhausted) == exhausted


@pytest.mark.parametrize("number", [0, 1, 2**30 - 1, 2**30, 2**31, 5 * 2**40 + 3])
def test_counts_outgrow_32_bits(number: int) -> None:
    count = Count.of(number)
    assert int(count) == number
    assert int(count.add(2**30 - 1)) == number + 2**30 - 1
    assert count.at_least(number)
    assert not count.at_least(number + 1)
    assert number == 0 or count.at_least(number - 1)


def test_each_rule() -> None:
    half = status(log_evidence_dead=0.0, log_evidence_live=0.0)
    assert bk.RemainingEvidence(0.6).met(half)
    assert not bk.RemainingEvidence(0.4).met(half)
    assert bk.MaxSteps(3).met(status(step=3))
    assert not bk.MaxSteps(4).met(status(step=3))
    assert bk.MaxTime(2).met(status(seconds=2.0))
    assert not bk.MaxTime(2.5).met(status(seconds=2.0))
    assert bk.MaxEvaluations(3).met(status())
    assert not bk.MaxEvaluations(4).met(status())
    # Three points that died at one likelihood, and next to nothing alive.
    equal = status(
        log_evidence_dead=math.log(3.0),
        log_squares_dead=math.log(3.0),
        log_evidence_live=-50.0,
        log_squares_live=-100.0,
    )
    assert bk.EffectiveSize(2.9).met(equal)
    assert not bk.EffectiveSize(3.1).met(equal)


def test_rules_combine() -> None:
    steps, seconds, few = bk.MaxSteps(3), bk.MaxTime(100), bk.MaxSteps(2)
    at = status(step=3)
    assert rules_met(steps | seconds, at) == (steps,)
    assert rules_met(steps & seconds, at) == ()
    assert rules_met(steps & few, at) == (steps, few)
    assert rules_met((steps & seconds) | few, at) == (few,)
    assert (steps | few).reason(at) == "3 steps were made, and 3 steps were made"


LIMITS: dict[str, Any] = {"steps": 10**6, "evaluations": 10**9, "seconds": 1e9}


def stopped(size: float = 1e9, **limits: Any) -> bk.NestedRun:
    """A run with rules of one structure, which compiles once whatever their limits."""
    limits = {**LIMITS, **limits}
    rule = bk.MaxSteps(limits["steps"]) | bk.MaxEvaluations(limits["evaluations"])
    rule |= bk.MaxTime(limits["seconds"]) | bk.EffectiveSize(size)
    return PROBLEM.run(stop=rule | bk.RemainingEvidence())


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"steps": 7}, "7 steps were made"),
        ({"evaluations": 3000}, "likelihoods were evaluated"),
        ({"seconds": 1e-6}, "seconds have passed"),
    ],
    ids=str,
)
def test_runs_that_a_limit_ends_have_not_converged(
    limit: dict[str, Any], reason: str
) -> None:
    run = stopped(**limit)
    assert reason in run.stop_reason
    assert not run.converged


def test_effective_size_ends_a_run() -> None:
    run = stopped(size=300)
    assert run.converged
    assert run.ess == pytest.approx(300, rel=0.15)


def test_a_finished_run_resumes_with_a_stricter_rule(tmp_path: Any) -> None:
    path = tmp_path / "run.h5"
    loose = PROBLEM.run(stop=bk.RemainingEvidence(0.5), checkpoint=path)
    strict = PROBLEM.run(checkpoint=path)
    whole = PROBLEM.run()
    assert loose.num_steps < strict.num_steps == whole.num_steps
    np.testing.assert_array_equal(strict.dead.positions, whole.dead.positions)
    again = PROBLEM.run(stop=bk.RemainingEvidence(0.5), checkpoint=path)
    assert again.num_steps == strict.num_steps


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: bk.RemainingEvidence(1.0), ValueError, ("1.0", "between 0 and 1")),
        (lambda: bk.EffectiveSize(float("nan")), ValueError, ("nan", "above 0")),
        (lambda: bk.MaxTime(-1), ValueError, ("-1", "above 0")),
        (lambda: bk.MaxSteps(0), ValueError, ("0", "at least 1")),
        (lambda: bk.MaxEvaluations(True), TypeError, ("True", "must be an int")),
        (lambda: bk.MaxSteps(1) | cast(Any, 3), TypeError, ("3", "rule to stop")),
        (lambda: bk.MaxSteps(1) & cast(Any, None), TypeError, ("None", "rule to stop")),
    ],
)
def test_rules_refuse_limits_that_cannot_be_right(
    make: Any, error: type[Exception], words: tuple[str, ...]
) -> None:
    assert_refuses(make, error, words)
