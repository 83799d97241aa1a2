"""Lengths of the chains of a shard."""

import dataclasses
from typing import Any

import pytest

import batchkit as bk
from batchkit.shards._shard_arguments import plan_for

from ..helpers import assert_refuses


@pytest.mark.parametrize(
    ("size", "params", "expected"),
    [
        (50, 3, (100, 200, True)),
        (50, 7, (140, 350, True)),
        (50, 40, (500, 1500, False)),
        (1000, 9, (180, 450, True)),
        (5000, 7, (250, 750, True)),
        (5000, 20, (400, 1000, True)),
        (9999, 7, (499, 1499, True)),
        (10_000, 7, (500, 1500, False)),
        (10**9, 7, (500, 1500, False)),
    ],
)
def test_small_shards_get_shorter_chains(
    size: int, params: int, expected: tuple[int, int, bool]
) -> None:
    plan = bk.SamplingPlan.from_shard(size, params)
    assert (plan.num_warmup, plan.num_samples, plan.was_adapted) == expected
    assert (plan.shard_size, plan.num_params, plan.num_chains) == (size, params, 4)
    assert plan.total_samples == 4 * plan.num_samples


def test_a_plan_is_never_longer_than_asked_for() -> None:
    plan = bk.SamplingPlan.from_shard(50, 7, num_warmup=100, num_samples=150)
    assert (plan.num_warmup, plan.num_samples) == (100, 150)
    assert not plan.was_adapted


def test_lengths_may_be_kept_or_bounded() -> None:
    plan = bk.SamplingPlan.from_shard(50, 3, adaptive=False, num_chains=2)
    assert (plan.num_warmup, plan.num_samples, plan.was_adapted) == (500, 1500, False)
    assert plan.total_samples == 3000
    settings: Any = ({"num_warmup": 100}, {"num_samples": 200})
    for lengths in settings:  # one of both is shorter
        assert bk.SamplingPlan.from_shard(50, 3, **lengths).was_adapted
    plan = bk.SamplingPlan.from_shard(50, 1, min_warmup=30, min_samples=60)
    assert (plan.num_warmup, plan.num_samples) == (30, 60)


def test_lengths_are_exact_integers() -> None:
    # 0.29 of 100 is 28.999999999999996.
    plan = bk.SamplingPlan.from_shard(
        2900, 1, num_warmup=100, num_samples=100, min_warmup=1, min_samples=1
    )
    assert plan.num_warmup == 29


def test_plans_are_frozen_and_equal_by_value() -> None:
    plan = bk.SamplingPlan(10, 20)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.__setattr__("num_warmup", 3)
    assert plan == bk.SamplingPlan(10, 20, num_chains=4)
    assert len({plan, bk.SamplingPlan(10, 20)}) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shard_size": 0}, ValueError, ("shard_size=0", "at least 1")),
        ({"num_params": 1.5}, TypeError, ("num_params=1.5", "float")),
        ({"min_samples": -1}, ValueError, ("min_samples=-1",)),
    ],
)
def test_counts_below_one_are_refused(options: Any, error: Any, words: Any) -> None:
    settings: Any = {"shard_size": 50, "num_params": 3, **options}
    assert_refuses(lambda: bk.SamplingPlan.from_shard(**settings), error, words)


def test_a_plan_without_draws_is_refused() -> None:
    make: Any = bk.SamplingPlan
    assert_refuses(lambda: make(0, 5), ValueError, ("SamplingPlan(num_warmup=0)",))
    assert_refuses(lambda: make(5, None), TypeError, ("num_samples=None",))


def test_lengths_passed_to_run_shards_are_kept() -> None:
    plan = plan_for(51, 2, 3, {"num_warmup": 7, "num_samples": 9})
    assert plan == bk.SamplingPlan(7, 9, 3, 51, 2, was_adapted=False)
    # 25 parameters have 500 transitions of warm-up, as many as a large shard.
    assert not plan_for(51, 25, 3, {"num_warmup": None, "num_samples": 9}).was_adapted
    plan = plan_for(51, 25, 3, {"num_warmup": 9, "num_samples": None})
    assert (plan.num_warmup, plan.num_samples, plan.was_adapted) == (9, 1250, True)
