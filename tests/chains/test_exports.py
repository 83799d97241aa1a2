"""Chains in the hands of ArviZ."""

import sys
from typing import Any

import arviz
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_refuses


RNG = np.random.default_rng(0)
SHAPE = (4, 200)
X = np.cumsum(RNG.normal(size=(*SHAPE, 2)), axis=1)


def value(found: Any, name: str) -> np.ndarray:
    """What a function of ArviZ says of a parameter, before 1.0 and after."""
    return getattr(found, "posterior", found)[name].to_numpy()


def test_arviz_finds_the_same() -> None:
    run = bk.ChainRun({"x": X, "deep": {"y": X[..., 0]}})
    data = run.to_arviz()
    assert set(data.posterior.data_vars) == {"x", "deep.y"}
    np.testing.assert_allclose(value(arviz.rhat(data), "x"), run.rhat["x"])
    for method, prob, ours in (
        ("bulk", None, run.ess_bulk),
        ("tail", (0.05, 0.95), run.ess_tail),
    ):
        found = arviz.ess(data, method=method, prob=prob)
        np.testing.assert_allclose(value(found, "x"), ours["x"])
        np.testing.assert_allclose(value(found, "deep.y"), ours["deep"]["y"])


def test_what_the_sampler_told() -> None:
    depth = RNG.integers(0, 4, SHAPE)
    diverging = RNG.integers(0, 3, SHAPE)
    rate, lp = RNG.uniform(size=SHAPE), RNG.normal(size=SHAPE)
    step = RNG.uniform(size=4)
    run = bk.ChainRun(
        X,
        logdensity=lp,
        diverging=diverging,
        acceptance_rate=rate,
        num_integration_steps=2**depth,
        tree_depth=depth,
        step_size=step,
        max_tree_depth=3,
        seconds=(1.0, 2.0, 3.0),
    )
    data = run.to_arviz()
    expected = {
        "lp": lp,
        "diverging": diverging > 0,
        "acceptance_rate": rate,
        "n_steps": 2**depth,
        "tree_depth": depth,
        "reached_max_treedepth": depth == 3,
        "step_size": np.repeat(step[:, None], 200, axis=1),
    }
    assert set(data.sample_stats.data_vars) == set(expected)
    for name, array in expected.items():
        assert data.sample_stats[name].dims == ("chain", "draw")
        np.testing.assert_array_equal(data.sample_stats[name], array)
    assert data.sample_stats["diverging"].dtype == bool
    assert data.posterior.attrs["sampling_time"] == 3.0


def test_draws_and_nothing_else() -> None:
    data = bk.ChainRun(X).to_arviz()
    assert not hasattr(data, "sample_stats")
    np.testing.assert_array_equal(data.posterior["x"], X)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    words = ("ChainRun.to_arviz needs arviz", "pip install 'batchkit[arviz]'")
    assert_refuses(bk.ChainRun(X).to_arviz, ImportError, words)
