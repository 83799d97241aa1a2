"""A run of shards as a file, in the hands of ArviZ, and in figures."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import arviz
import jax
import numpy as np
import pytest
import scipy.stats

import batchkit as bk
from batchkit.shards import ShardTry, Spread

from ..helpers import assert_refuses, assert_same


SHARDS, CHAINS, DRAWS = 3, 4, 200
PLAN = bk.SamplingPlan.from_shard(100, 3)


class Point(NamedTuple):
    y: Any
    x: Any


def stats() -> list[bk.SamplingStats]:
    first = ShardTry(0, 0.8, 0.2, False, False, "wild", bk.ChainSeconds(3.0, 0.5, 1.0))
    second = ShardTry(1, 0.85, 0.0, True, True, "", bk.ChainSeconds(1.0, 0.5, 2.0))
    return [
        bk.SamplingStats(0, 9, PLAN, ()),
        bk.SamplingStats(
            1,
            8,
            PLAN,
            (first, second),
            divergences=3,
            acceptance=np.float64(0.9),
            step_size=Spread(0.2, 0.1, 0.4),
            tree_depth=Spread(3, 1, 4),
            rhat=1.001,
            ess=700.0,
        ),
        bk.SamplingStats(2, 8, PLAN, (first, second)),
    ]


def two(x: np.ndarray) -> Any:
    return {"a": x[..., :2], "b": x[..., 2]}


def run(make: Any = two, **given: Any) -> bk.ShardRun:
    x = np.random.default_rng(0).normal(size=(SHARDS, CHAINS, DRAWS, 3))
    return bk.ShardRun(make(x), stats(), **given)


def checked() -> bk.ShardRun:
    """A run with all that there can be: moved, checked, and with a shard left out."""
    slopes = lambda used: lambda p: {"a": -2 * (p["a"] - 0.3)}
    return run(lambda x: {"a": x}, gradients_fn=slopes, failed={1: "3 tries failed"})


def there_and_back(run: bk.ShardRun, folder: Path, **how: Any) -> bk.ShardRun:
    run.save(folder / "shards.h5")
    return bk.ShardRun.load(folder / "shards.h5", **how)


@pytest.mark.parametrize("make", [run, checked], ids=["plain", "checked"])
def test_everything_comes_back(make: Any, tmp_path: Path) -> None:
    before = make()
    again = there_and_back(before, tmp_path)
    for name in ("samples", "shard_samples", "rhat", "ess_bulk", "ess_tail"):
        assert_same(getattr(again, name), getattr(before, name), ulps=0)
    for name in ("combine", "used", "left_out", "provenance", "seconds"):
        assert getattr(again, name) == getattr(before, name)
    for name in ("stats", "warnings"):  # as dicts, in which NaN equals NaN
        found, expected = (
            [asdict(x) for x in getattr(result, name)] for result in (again, before)
        )
        np.testing.assert_equal(found, expected)
    assert again.report() == before.report()
    assert repr(again) == repr(before)
    assert vars(again).keys() == vars(before).keys()
    if make is checked:
        assert again.left_out == {1: "3 tries failed"}
        assert again.shift is not None
        assert again.gradient_check is not None
        assert before.gradient_check is not None
        for name, value in vars(before.gradient_check).items():
            np.testing.assert_array_equal(getattr(again.gradient_check, name), value)


def test_classes(tmp_path: Path) -> None:
    before = run(lambda x: Point(x[..., :2], {"z": x[..., 2]}))
    again = there_and_back(before, tmp_path, like=Point(0, {"z": 0}))
    assert_same(again.samples, before.samples, ulps=0)
    assert_same(again.shard_samples, before.shard_samples, ulps=0)


def test_seconds_of_all_tries() -> None:
    assert run().seconds == (4.0, 1.0, 3.0, 0.0)


def test_results_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    run().save(path)
    with pytest.raises(bk.CheckpointError, match=r"Load it with `ShardRun\.load`"):
        bk.ChainRun.load(path)
    bk.ChainRun({"x": np.zeros((2, 3))}).save(path)
    with pytest.raises(bk.CheckpointError, match=r"Load it with `ChainRun\.load`"):
        bk.ShardRun.load(path)


def test_arviz_finds_the_same() -> None:
    found = run()
    data = found.to_arviz()
    assert set(data.posterior.data_vars) == {"a", "b"}
    assert data.posterior.attrs["sampling_time"] == 3.0
    assert not hasattr(data, "sample_stats")
    rhat: Any = arviz.rhat(data)
    rhat = getattr(rhat, "posterior", rhat)
    np.testing.assert_allclose(rhat["a"].to_numpy(), found.rhat["a"])
    y = np.array([0.3, -1.2, 0.8])
    data = found.to_arviz(
        log_likelihood=lambda p: jax.scipy.stats.norm.logpdf(y, p["b"], 1.0)
    )
    expected = scipy.stats.norm.logpdf(y, found.samples["b"][..., None], 1.0)
    np.testing.assert_allclose(data.log_likelihood["y"], expected, rtol=1e-4)


def test_figures_show_the_combined_draws() -> None:
    found = checked()
    figure: Any = bk.plot_trace(found)
    for i, drawn in enumerate(figure.axes[0].lines):
        np.testing.assert_array_equal(drawn.get_ydata(), found.samples["a"][i, :, 0])
    assert f"R-hat {found.rhat['a'][0]:.3f}" in figure.axes[1].get_title()
    words = "4 chains of 200 draws, combined from 2 shards"
    assert figure.get_suptitle() == words
    corner: Any = bk.plot_corner(found)
    assert words in corner.texts[0].get_text()
    median = np.median(found.samples["a"][..., 0])
    assert f"{median:.2f}" in corner.axes[0].get_title()
    draw: Any = bk.plot_run
    assert_refuses(lambda: draw(found), TypeError, ("shards use `plot_trace`",))
