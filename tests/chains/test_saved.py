"""Chains as a file."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_same


RNG = np.random.default_rng(0)
SHAPE = (4, 60)
X = RNG.normal(size=(*SHAPE, 2))


class Point(NamedTuple):
    y: Any
    x: Any


def there_and_back(run: bk.ChainRun, folder: Path, **how: Any) -> bk.ChainRun:
    run.save(folder / "chains.h5")
    return bk.ChainRun.load(folder / "chains.h5", **how)


FIELDS = (
    "samples",
    "logdensity",
    "diverging",
    "acceptance_rate",
    "num_integration_steps",
    "tree_depth",
    "energy",
    "step_size",
    "inverse_mass_matrix",
)


def test_everything_comes_back(tmp_path: Path) -> None:
    run = bk.ChainRun(
        {"a": X, "b": [X[..., 0].astype(np.float32)]},
        logdensity=RNG.normal(size=SHAPE).astype(np.float32),
        diverging=RNG.integers(0, 2, SHAPE),
        acceptance_rate=RNG.uniform(size=SHAPE),
        num_integration_steps=RNG.integers(0, 20, SHAPE),
        tree_depth=RNG.integers(0, 5, SHAPE),
        energy=RNG.normal(size=SHAPE),
        step_size=RNG.uniform(size=4),
        inverse_mass_matrix=RNG.uniform(size=(4, 3, 3)),
        max_tree_depth=4,
        seconds=(1.0, 2.0, 3.0),
    )
    again = there_and_back(run, tmp_path)
    for name in FIELDS:
        assert_same(getattr(again, name), getattr(run, name), ulps=0)
    assert again.max_tree_depth == 4
    assert again.seconds == run.seconds
    assert again.warnings == run.warnings != ()
    assert_same(again.rhat, run.rhat, ulps=0)
    assert repr(again) == repr(run)


def test_draws_and_nothing_else(tmp_path: Path) -> None:
    draws = {
        "bfloat16": X.astype(jnp.bfloat16),
        "bool": X > 0,
        "empty": np.zeros((*SHAPE, 0)),
    }
    again = there_and_back(bk.ChainRun(draws), tmp_path)
    assert_same(again.samples, draws, ulps=0)
    assert all(getattr(again, name) is None for name in FIELDS[1:])


def test_classes(tmp_path: Path) -> None:
    draws = Point(X, {"z": X[..., 1]})
    again = there_and_back(bk.ChainRun(draws), tmp_path, like=Point(0, {"z": 0}))
    assert_same(again.samples, draws, ulps=0)
    plain = bk.ChainRun.load(tmp_path / "chains.h5")
    assert set(plain.samples) == {"x", "y"}


def test_a_nested_run_is_none(tmp_path: Path) -> None:
    from ..nested.perfect import peak, result, sample

    result(sample(peak(), 0)).save(tmp_path / "chains.h5")
    with pytest.raises(bk.CheckpointError, match=r"Load it with `NestedRun.load`"):
        bk.ChainRun.load(tmp_path / "chains.h5")
