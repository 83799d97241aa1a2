"""The rule that tells which kind of batcher a site gets."""

import pytest

from batchkit.auto._rule import CACHE, EXPENSIVE, bytes_that_pay, lanes_that_pay


@pytest.mark.parametrize(
    ("tasks", "lanes"),
    [(2, 1), (9, 3), (16, 5), (50, 16), (128, 16), (129, 17), (150, 19), (1000, 125)],
)
def test_several_tasks_for_each_lane(tasks, lanes):
    assert lanes_that_pay(tasks, True, float(EXPENSIVE)) == lanes


@pytest.mark.parametrize(
    ("tasks", "differ", "operations"),
    [(150, False, 1e9), (150, True, EXPENSIVE - 1.0), (150, True, 0.0)],
)
def test_otherwise_lanes_wait(tasks, differ, operations):
    assert lanes_that_pay(tasks, differ, operations) == 0


@pytest.mark.parametrize(
    ("budget", "lane", "platform", "expected"),
    [
        (10**9, 1000, "cpu", CACHE),
        (10**6, 1000, "cpu", 10**6),
        (10**9, CACHE + 1, "cpu", 10**9),
        (10**9, 1000, "gpu", 10**9),
    ],
)
def test_lanes_that_stay_in_the_cache_of_a_cpu(budget, lane, platform, expected):
    assert bytes_that_pay(budget, lane, platform) == expected
