"""The rule for the kind of batcher that a site gets."""

import pytest

from batchkit.auto._select import (
    CACHE_BYTES,
    MIN_OPERATIONS,
    chunk_budget,
    continuous_lanes,
)


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


@pytest.mark.parametrize(
    ("budget", "lane", "platform", "expected"),
    [
        (10**9, 1000, "cpu", CACHE_BYTES),
        (10**6, 1000, "cpu", 10**6),
        (10**9, CACHE_BYTES + 1, "cpu", 10**9),
        (10**9, 1000, "gpu", 10**9),
    ],
)
def test_chunk_budget_is_the_cache_of_a_cpu(budget, lane, platform, expected):
    assert chunk_budget(budget, lane, platform) == expected
