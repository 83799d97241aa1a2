"""The rule for the kind of batcher that a site gets."""

import pytest

from batchkit.auto._auto import MIN_OPERATIONS, continuous_lanes


@pytest.mark.parametrize(
    ("tasks", "lanes"),
    [(2, 1), (9, 3), (16, 5), (50, 16), (128, 16), (129, 17), (150, 19), (1000, 125)],
)
def test_lanes_of_continuous(tasks, lanes):
    assert continuous_lanes(tasks, True, float(MIN_OPERATIONS)) == lanes


@pytest.mark.parametrize(
    ("tasks", "differ", "operations"),
    [(150, False, 1e9), (150, True, MIN_OPERATIONS - 1.0), (150, True, 0.0)],
)
def test_no_continuous_for_cheap_or_equal_tasks(tasks, differ, operations):
    assert continuous_lanes(tasks, differ, operations) == 0
