"""The rule that tells which kind of batcher a site gets."""

import pytest

from batchkit.auto._rule import EXPENSIVE, lanes_that_pay


@pytest.mark.parametrize(
    ("tasks", "lanes"), [(9, 8), (50, 8), (64, 8), (65, 9), (150, 19), (1000, 125)]
)
def test_several_tasks_for_each_lane(tasks, lanes):
    assert lanes_that_pay(tasks, True, float(EXPENSIVE)) == lanes


@pytest.mark.parametrize(
    ("tasks", "differ", "operations"),
    [(8, True, 1e9), (150, False, 1e9), (150, True, EXPENSIVE - 1.0), (150, True, 0.0)],
)
def test_otherwise_lanes_wait(tasks, differ, operations):
    assert lanes_that_pay(tasks, differ, operations) == 0
