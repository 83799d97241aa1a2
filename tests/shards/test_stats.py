"""What is told of one shard, from what its chains found."""

from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.chains import ChainSeconds, Convergence
from batchkit.chains._chain_programs import Draw
from batchkit.chains._sampler import Tuned
from batchkit.shards import Spread
from batchkit.shards._stats import stats_of


CHAINS, SAMPLES = 4, 50
PLAN = bk.SamplingPlan(100, SAMPLES)
STEPS = np.array([0.1, 0.2, 0.4, 0.9])
TRIES: list[dict[str, Any]] = [
    {
        "number": i,
        "target_acceptance": 0.8 + 0.05 * i,
        "divergence_rate": rate,
        "is_finite": True,
        "accepted": rate <= 0.05,
        "reason": "",
        "seconds": [1.0, 2.0 + i, 3.0],
    }
    for i, rate in enumerate((0.5, 0.02))
]


def draws(**given: Any) -> Draw:
    rng = np.random.default_rng(0)
    shape = CHAINS, SAMPLES
    a = rng.normal(size=(*shape, 2))
    a[..., 1] += np.arange(CHAINS)[:, None]  # chains that do not agree
    told: dict[str, Any] = {
        "position": {"a": a, "b": rng.normal(size=shape)},
        "logdensity": np.zeros(shape),
        "diverging": np.arange(CHAINS * SAMPLES).reshape(shape) % 50 == 0,
        "acceptance": np.linspace(0.6, 1.0, CHAINS * SAMPLES).reshape(shape),
        "num_integration_steps": np.ones(shape),
        "tree_depth": np.full(shape, 3) + (np.arange(SAMPLES) == 7),
        **given,
    }
    return Draw(*(told.get(field) for field in Draw._fields))


def stats(mass: Any = None, **given: Any) -> bk.SamplingStats:
    mass = np.arange(1.0, 13.0).reshape(CHAINS, 3) if mass is None else mass
    return stats_of(7, 123, PLAN, TRIES, (Tuned(STEPS, mass), draws(**given)))


def test_what_is_told() -> None:
    found = stats()
    assert (found.shard, found.num_rows, found.plan) == (7, 123, PLAN)
    assert found.divergences == 4
    assert found.acceptance == pytest.approx(0.8)
    assert found.step_size == pytest.approx(Spread(0.3, 0.1, 0.9))
    assert found.tree_depth == (3.0, 3.0, 4.0)
    assert found.inverse_mass_matrix == (6.5, 1.0, 12.0)


def test_what_the_last_try_tells() -> None:
    found = stats()
    assert [x.number for x in found.tries] == [0, 1]
    assert found.divergence_rate == 0.02
    assert found.accepted
    assert found.seconds == ChainSeconds(1.0, 3.0, 3.0)
    assert found.tries[0].seconds == ChainSeconds(1.0, 2.0, 3.0)
    never = bk.SamplingStats(0, 9, PLAN, ())
    assert (never.accepted, never.divergence_rate) == (False, 0.0)
    assert sum(never.seconds) == 0.0


def test_the_worst_parameter() -> None:
    found, each = stats(), Convergence(draws().position)
    assert found.rhat == each.rhat["a"][1] > 1.4 > each.rhat["b"]
    assert found.ess == each.ess_bulk["a"][1] < 20 < each.ess_bulk["b"]
    bad = draws().position
    bad["b"][2, 3] = np.nan
    assert np.isnan(stats(position=bad).rhat)
    assert np.isnan(stats(position=bad).ess)


def test_of_whole_matrices_the_diagonals() -> None:
    mass = np.full((CHAINS, 3, 3), -50.0)
    for chain in range(CHAINS):
        np.fill_diagonal(mass[chain], [1.0, 2.0, 3.0 + chain])
    assert stats(mass).inverse_mass_matrix == (2.0, 1.0, 6.0)


def test_what_a_sampler_does_not_tell() -> None:
    found = stats(diverging=None, acceptance=None, tree_depth=None)
    assert (found.divergences, found.acceptance, found.tree_depth) == (None,) * 3
