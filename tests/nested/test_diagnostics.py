"""Diagnostics: each finds its fault, and nothing in a sound run."""

import numpy as np
import pytest
from scipy import stats

from batchkit.nested import (
    ChainCounts,
    DeadPoints,
    diagnose,
    insertion_p_value,
    insertion_ranks,
)
from batchkit.nested._nested_diagnostics import p_value_of_ranks, tied_share

from .perfect import Problem, peak, plateau, sample, steps


PROBLEMS = {"peak": peak(), "plateau": plateau(1.0), "steps": steps()}


@pytest.mark.parametrize(
    "num_delete", [1, 10, pytest.param(25, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_ranks_of_perfect_runs_are_uniform(problem: Problem, num_delete: int) -> None:
    """Ranks of all runs together, and the p-values, which are never too small."""
    runs = [sample(problem, seed, num_delete=num_delete) for seed in range(40)]
    ranks = [insertion_ranks(dead) for dead in runs]
    assert len(ranks[0]) == len(runs[0]) - 50
    assert stats.kstest(np.concatenate(ranks), "uniform").pvalue > 1e-3
    # Independent ranks have uncorrelated neighbours.
    pairs = np.concatenate([np.stack([x[1:], x[:-1]]) for x in ranks], axis=1)
    assert abs(np.corrcoef(pairs)[0, 1]) < 4 / np.sqrt(pairs.shape[1])
    p_values = np.array([insertion_p_value(dead) for dead in runs])
    assert p_values.min() > 1e-3
    assert np.mean(p_values < 0.1) < 0.25


@pytest.mark.parametrize("num_delete", [1, 10])
def test_insertion_ranks_find_biased_runs(num_delete: int) -> None:
    for seed in range(5):
        dead = sample(peak(), seed, 100, num_delete, biased=0.8)
        (found,) = diagnose(dead)
        assert found.name == "insertion ranks"
        assert found.value < found.threshold == 1e-3
        assert "num_inner_steps" in found.message


def test_insertion_ranks_find_a_fault_at_one_time() -> None:
    """Sound points before and after do not hide it."""
    ranks = np.random.default_rng(0).random(2100)
    assert p_value_of_ranks(ranks, 100) > 0.01
    ranks[1000:1100] *= 0.4
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3
    assert p_value_of_ranks(ranks, 100) < 1e-6


@pytest.mark.slow
def test_p_values_are_uniform() -> None:
    """Also in a run as short as one piece, and without a heap at one."""
    rng = np.random.default_rng(0)
    one_piece = [p_value_of_ranks(rng.random(90), 50) for _ in range(400)]
    assert stats.kstest(one_piece, "uniform").pvalue > 0.01
    found = np.array([p_value_of_ranks(rng.random(500), 50) for _ in range(200)])
    assert np.mean(found < 0.1) == pytest.approx(0.1, abs=0.05)
    assert len(np.unique(found)) == 200


def test_insertion_ranks_are_those_computed_by_hand() -> None:
    inf = np.inf
    logl = np.array([0.0, 10.0, 20.0, 30.0, 15.0, 25.0, 12.0])
    birth = np.array([-inf, -inf, -inf, -inf, 0.0, 10.0, 10.0])
    dead = DeadPoints(logl, logl, birth, np.zeros(7))
    ranks = insertion_ranks(dead)
    # Above 0 there are 10, 20 and 30, and 15 comes second of four.
    assert 1 / 4 <= ranks[0] < 2 / 4
    # Above 10 there are 15, 20 and 30; 25 and 12 come in either order.
    pair = sorted(ranks[1:])
    assert 0 <= pair[0] < 1 / 4
    assert 2 / 4 <= pair[1] < 4 / 5
    np.testing.assert_array_equal(ranks, insertion_ranks(dead))


def test_a_run_without_inserted_points_is_sound() -> None:
    x = np.linspace(0, 1, 5)
    dead = DeadPoints(x, x, np.full(5, -np.inf), np.zeros(5))
    assert insertion_p_value(dead) == 1.0
    assert len(insertion_ranks(dead)) == 0
    assert diagnose(dead) == ()


def counts(
    chains: int, exhausted: int = 0, correlations: tuple[float, ...] = ()
) -> ChainCounts:
    """Of chains of as many steps as there are correlations, that move accordingly."""
    products = chains * np.array(correlations)
    distances = chains * (1 - np.array(correlations))
    return ChainCounts(np.array(chains), np.array(exhausted), distances, products)


@pytest.mark.parametrize(
    ("told", "name", "value", "threshold", "remedy"),
    [
        ({"num_inner_steps": 4, "dim": 1}, "inner steps", 4, 5, "num_inner_steps=5"),
        ({"num_inner_steps": 9, "dim": 5}, "inner steps", 9, 10, "num_inner_steps=10"),
        ({"num_delete": 26}, "replacement share", 0.52, 0.5, "at most half"),
        ({"chains": counts(1000, 11)}, "exhausted slices", 0.011, 0.01, "float64"),
    ],
)
def test_settings_and_exhausted_chains_warn(
    told: dict, name: str, value: float, threshold: float, remedy: str
) -> None:
    (found,) = diagnose(sample(peak(), 0), **told)
    assert (found.name, found.value, found.threshold) == (name, value, threshold)
    assert remedy in found.message
    assert str(found) == f"{name}: {found.message}"


def test_values_at_the_thresholds_do_not_warn() -> None:
    assert (
        diagnose(
            sample(peak(), 0),
            num_inner_steps=10,
            dim=5,
            num_delete=25,
            chains=counts(1000, 10),
        )
        == ()
    )
    assert diagnose(sample(peak(), 0), num_inner_steps=5, dim=1) == ()
    assert diagnose(sample(peak(), 0), chains=counts(0)) == ()


def test_plateaus_warn_unless_of_zero_likelihood() -> None:
    dead = sample(plateau(1.0), 0)
    tied = dead.loglikelihood == 1.0
    assert tied_share(dead) == np.mean(tied)
    (found,) = diagnose(dead)
    assert found.name == "plateaus"
    assert found.value == np.mean(tied) > found.threshold == 0.01
    # A likelihood of zero over part of the prior is no reason for a warning.
    assert diagnose(sample(plateau(-np.inf), 0)) == ()


def test_warnings_come_in_the_order_of_severity() -> None:
    dead = sample(plateau(1.0), 1, biased=0.7)
    found = diagnose(dead, num_inner_steps=1, dim=3, num_delete=40)
    names = ["insertion ranks", "inner steps", "replacement share", "plateaus"]
    assert [x.name for x in found] == names
