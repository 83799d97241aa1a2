"""The search for the largest size that fits, on synthetic measurements."""

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from batchkit.auto._lane_memory import largest_that_fits


def counted(bytes_at: Callable[[int], int]) -> tuple[Callable[[int], int], list[int]]:
    sizes: list[int] = []

    def measure(size: int) -> int:
        sizes.append(size)
        return bytes_at(size)

    return measure, sizes


def largest(bytes_at: Callable[[int], int], budget: int, most: int) -> int:
    """Find the size by exhaustive search."""
    return max((k for k in range(1, most + 1) if bytes_at(k) <= budget), default=0)


@given(
    fixed=st.integers(0, 10_000),
    slope=st.integers(1, 1000),
    budget=st.integers(1, 200_000),
    most=st.integers(1, 200),
)
def test_linear_memory_takes_at_most_four_measurements(fixed, slope, budget, most):
    line = lambda k: fixed + slope * k
    measure, sizes = counted(line)
    found = largest_that_fits(measure, budget, most)
    assert found.size == largest(line, budget, most)
    assert len(sizes) == len(set(sizes)) <= 4
    assert found.bytes == line(max(found.size, 1))


def test_proportional_memory_takes_two_measurements():
    measure, sizes = counted(lambda k: 184 * k)
    found = largest_that_fits(measure, 1000, 150)
    assert (found.size, sizes) == (5, [150, 5])
    assert found.bytes_at(6) == 6 * 184


@given(
    steps=st.lists(st.integers(1, 1000), min_size=1, max_size=100),
    budget=st.integers(1, 50_000),
)
def test_result_fits_for_any_monotonic_memory(steps, budget):
    bytes_at = lambda k: sum(steps[:k])
    measure, _ = counted(bytes_at)
    found = largest_that_fits(measure, budget, len(steps))
    assert (found.size == 0) == (bytes_at(1) > budget)
    assert found.size == 0 or bytes_at(found.size) <= budget


@pytest.mark.parametrize("budget", [350, 399, 400, 1000])
def test_jump_in_memory_is_corrected(budget):
    # XLA takes another algorithm from 4 lanes on.
    bytes_at = lambda k: 100 * k if k < 4 else 200 * k
    found = largest_that_fits(bytes_at, budget, 20)
    assert found.size == largest(bytes_at, budget, 20)


def test_largest_size_that_fits_is_measured_once():
    measure, sizes = counted(lambda k: k)
    assert largest_that_fits(measure, 20, 20).size == 20
    assert sizes == [20]


def test_size_is_zero_if_nothing_fits():
    found = largest_that_fits(lambda k: 100 + k, 100, 20)
    assert (found.size, found.bytes) == (0, 101)
