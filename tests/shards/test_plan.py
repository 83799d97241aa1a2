"""How long chains of a shard run."""

import dataclasses
from typing import Any

import pytest

import batchkit as bk

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
def test_by_default(size: int, params: int, expected: tuple[int, int, bool]) -> None:
    plan = bk.SamplingPlan.from_shard(size, params)
    assert (plan.num_warmup, plan.num_samples, plan.was_adapted) == expected
    assert (plan.shard_size, plan.num_params, plan.num_chains) == (size, params, 4)
    assert plan.total_samples == 4 * plan.num_samples


def test_never_more_than_asked_for() -> None:
    plan = bk.SamplingPlan.from_shard(50, 7, num_warmup=100, num_samples=150)
    assert (plan.num_warmup, plan.num_samples) == (100, 150)
    assert not plan.was_adapted


def test_what_was_asked_for() -> None:
    plan = bk.SamplingPlan.from_shard(50, 3, adaptive=False, num_chains=2)
    assert (plan.num_warmup, plan.num_samples, plan.was_adapted) == (500, 1500, False)
    assert plan.total_samples == 3000
    settings: Any = ({"num_warmup": 100}, {"num_samples": 200})
    for given in settings:  # one of both is shorter
        assert bk.SamplingPlan.from_shard(50, 3, **given).was_adapted
    plan = bk.SamplingPlan.from_shard(50, 1, min_warmup=30, min_samples=60)
    assert (plan.num_warmup, plan.num_samples) == (30, 60)


def test_no_product_is_rounded_down() -> None:
    # 0.29 of 100 is 28.999999999999996.
    plan = bk.SamplingPlan.from_shard(
        2900, 1, num_warmup=100, num_samples=100, min_warmup=1, min_samples=1
    )
    assert plan.num_warmup == 29


def test_frozen() -> None:
    plan = bk.SamplingPlan(10, 20)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.__setattr__("num_warmup", 3)
    assert plan == bk.SamplingPlan(10, 20, num_chains=4)
    assert len({plan, bk.SamplingPlan(10, 20)}) == 1


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"shard_size": 0}, ValueError, ("shard_size=0", "at least 1")),
        ({"num_params": 1.5}, TypeError, ("num_params=1.5", "float")),
        ({"num_chains": True}, TypeError, ("num_chains=True", "bool")),
        ({"min_samples": -1}, ValueError, ("min_samples=-1",)),
    ],
)
def test_numbers_that_are_none(given: Any, error: Any, words: Any) -> None:
    settings: Any = {"shard_size": 50, "num_params": 3, **given}
    assert_refuses(lambda: bk.SamplingPlan.from_shard(**settings), error, words)


def test_a_plan_that_is_none() -> None:
    make: Any = bk.SamplingPlan
    assert_refuses(lambda: make(0, 5), ValueError, ("SamplingPlan(num_warmup=0)",))
    assert_refuses(lambda: make(5, None), TypeError, ("num_samples=None",))
