"""Starts that are refused, with log-densities and gradients made by hand."""

from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.shards._starts import check_starts


CHAINS, TASKS = 2, 6
POSITIONS = {"a": np.zeros((TASKS, 2)), "b": np.arange(6.0)}


def error_of(values: np.ndarray, slopes: Any) -> bk.StartError:
    with pytest.raises(bk.StartError) as info:
        check_starts((values, slopes), POSITIONS, CHAINS, lambda p: 0.0)
    return info.value


def test_a_gradient_that_is_not_finite() -> None:
    # As of a square root at zero, where the log-density itself is finite.
    slopes = {"a": np.zeros((TASKS, 2)), "b": np.zeros(TASKS)}
    check_starts((np.zeros(TASKS), slopes), POSITIONS, CHAINS, lambda p: 0.0)
    for bad in (np.inf, np.nan):
        slopes["b"][3] = bad
        error = error_of(np.zeros(TASKS), slopes)
        assert (error.chains, error.parameters) == ((1,), ("b",))
        assert "in shard 1, where chain 1 starts, the gradient" in str(error)
        assert "look at b = 3." in str(error)
    slopes["b"][4] = np.inf
    assert "So it is in shards 1, 2." in str(error_of(np.zeros(TASKS), slopes))


def test_a_density_that_is_not_finite() -> None:
    slopes = {"a": np.zeros((TASKS, 2)), "b": np.zeros(TASKS)}
    values = np.zeros(TASKS)
    values[4] = -np.inf
    error = error_of(values, slopes)
    assert error.parameters == ("a[0]", "a[1]", "b")
    assert "in shard 2, where chain 0 starts, the log-density is -inf" in str(error)
    assert "(the likelihood is not finite)" in str(error)
