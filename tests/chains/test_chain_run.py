"""`ChainRun`: its warnings and its tables, on draws made by hand."""

from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run import Seconds

from ..helpers import assert_refuses, assert_same


RNG = np.random.default_rng(0)
GOOD = RNG.normal(size=(4, 1000, 2))
SHAPE = GOOD.shape[:2]


def names(*args: Any, **kwargs: Any) -> list[str]:
    return [warning.name for warning in bk.ChainRun(*args, **kwargs).warnings]


def test_good_chains_have_no_warnings() -> None:
    zero = np.zeros(SHAPE, int)
    assert names(GOOD) == []
    assert names(GOOD, diverging=zero, tree_depth=zero + 9, max_tree_depth=10) == []


def test_disagreeing_chains_have_a_high_rhat() -> None:
    draws = {"a": GOOD, "b": GOOD[..., 0] + np.arange(4)[:, None]}
    rhat, bulk, tail = bk.ChainRun(draws).warnings
    assert (rhat.name, rhat.threshold) == ("R-hat", 1.01)
    assert rhat.value > 1.5
    assert "R-hat of b is" in rhat.message
    assert "1 of 3" in rhat.message
    assert (bulk.name, tail.name) == ("bulk ESS", "tail ESS")
    assert bulk.threshold == tail.threshold == 400


def test_few_draws_have_a_warning() -> None:
    assert names(GOOD[:, :3]) == ["draws"]
    assert names(GOOD[:, :50]) == ["R-hat", "bulk ESS", "tail ESS"]


def test_few_chains_have_a_warning() -> None:
    (warning,) = bk.ChainRun(GOOD[:3]).warnings
    assert (warning.name, warning.value, warning.threshold) == ("chains", 3, 4)
    assert names(GOOD[:1]) == ["chains"]


def test_divergences_name_their_chains() -> None:
    diverging = np.zeros(SHAPE, int)
    diverging[1, :3] = 1
    diverging[3, 7] = 2
    run = bk.ChainRun(GOOD, diverging=diverging, step_size=np.full(4, 0.1))
    assert run.divergences is not None
    assert run.divergences.tolist() == [0, 3, 0, 2]
    (warning,) = run.warnings
    assert (warning.name, warning.value) == ("divergences", 5)
    assert "in chains 1, 3" in warning.message
    assert "target_acceptance" in warning.message


def test_remedies_are_settings_of_the_call() -> None:
    diverging = np.ones(SHAPE, int)
    draws = GOOD[:3] + np.arange(3)[:, None, None]
    of_warmup = "`num_warmup`", "`target_acceptance`"
    for step_size in (None, np.full(3, 0.1)):
        found = bk.ChainRun(draws, diverging=diverging[:3], step_size=step_size)
        text = " ".join(warning.message for warning in found.warnings)
        assert "`num_samples`" in text
        assert "`positions`" in text
        # An algorithm has no warm-up, and its step size is the user's.
        assert [x in text for x in of_warmup] == 2 * [step_size is not None]


def test_trajectories_that_were_cut_off_have_a_warning() -> None:
    depth = np.full(SHAPE, 3)
    depth[0, :5] = 4
    assert names(GOOD, tree_depth=depth) == []  # without a limit none is cut off
    (warning,) = bk.ChainRun(GOOD, tree_depth=depth, max_tree_depth=4).warnings
    assert (warning.name, warning.value) == ("tree depth", 5)
    assert "max_num_doublings" in warning.message


def test_draws_that_are_not_finite_have_a_warning() -> None:
    draws = GOOD.copy()
    draws[2, 5:8, 1] = np.nan
    run = bk.ChainRun(draws)
    assert np.isnan(run.rhat[1])
    assert np.isnan(run.ess_bulk[1])
    assert np.isnan(run.ess_tail[1])
    assert np.isfinite(run.rhat[0])
    (warning,) = run.warnings
    assert (warning.name, warning.value) == ("draws not finite", 3)
    assert "in chains 2" in warning.message
    assert "nan (x[1])" in repr(run)
    logdensity = np.zeros(SHAPE)
    logdensity[0, 0] = np.inf
    assert names(GOOD, logdensity=logdensity) == ["draws not finite"]


def test_chains_that_never_moved_have_a_warning() -> None:
    draws = GOOD.copy()
    draws[..., 1] = 2.5
    (warning,) = bk.ChainRun(draws).warnings
    assert (warning.name, warning.value) == ("unmoved", 1)
    assert "x[1]" in warning.message
    draws = GOOD.copy()
    draws[[0, 2]] = draws[[0, 2], :1]
    warning, *rest = bk.ChainRun(draws).warnings
    assert (warning.name, warning.value) == ("unmoved", 2)
    assert "chains 0, 2 of 4" in warning.message
    assert {x.name for x in rest} == {"R-hat", "bulk ESS", "tail ESS"}
    # All chains, each at a place of its own or all at the same.
    for start in (GOOD[:, :1], GOOD[:1, :1]):
        stuck = np.broadcast_to(start, GOOD.shape)
        assert names(stuck).count("unmoved") == 1
        assert "chains 0, 1, 2, 3 of 4" in bk.ChainRun(stuck).warnings[0].message


def test_the_most_serious_warning_comes_first() -> None:
    draws = GOOD[:2].copy()
    draws[0, 0] = np.nan
    found = names(draws, diverging=np.ones((2, 1000), int))
    assert found == ["draws not finite", "divergences", "chains"]


def test_table_has_ranges_over_chains() -> None:
    run = bk.ChainRun(
        GOOD,
        diverging=np.zeros(SHAPE, int),
        acceptance_rate=np.tile([0.7, 0.8, 0.8, 0.9], (1000, 1)).T,
        num_integration_steps=np.full(SHAPE, 7),
        step_size=np.array([0.1, 0.2, 0.2, 0.3]),
        seconds=Seconds(1.25, 2.0, 30.0),
    )
    assert run.acceptance is not None
    np.testing.assert_allclose(run.acceptance, [0.7, 0.8, 0.8, 0.9])
    assert (run.num_chains, run.num_samples) == SHAPE
    text = repr(run)
    for words in (
        "4 chains of 1,000",
        "0.70 to 0.90, mean 0.8",
        "0.1 to 0.3, mean 0.2",
        "7 to 7, mean 7",
        "1.2 to compile, 2.0 to warm up, 30.0 to sample",
    ):
        assert words in text
    assert len(text.splitlines()) < 15
    assert run._repr_html_().startswith("<table>")
    bare = bk.ChainRun(GOOD)
    assert bare.divergences is None
    assert bare.acceptance is None


def test_summary_has_moments_and_convergence() -> None:
    draws = {"mass": 5 + 2 * GOOD[..., 0], "lens": {"shear": GOOD}}
    summary = bk.ChainRun(draws).summary()
    assert list(summary.values) == ["lens.shear[0]", "lens.shear[1]", "mass"]
    row = summary["mass"]
    assert abs(row["mean"] - 5) < 0.2
    assert abs(row["std"] - 2) < 0.1
    assert row["5 %"] < row["50 %"] < row["95 %"]
    assert row["R-hat"] < 1.01
    assert row["bulk ESS"] > 3000
    assert row["tail ESS"] > 3000
    assert repr(summary).splitlines()[0].split()[0] == "parameter"
    assert "<td>mass</td>" in summary._repr_html_()
    many = bk.ChainRun(RNG.normal(size=(2, 4, 100))).summary()
    assert repr(many).endswith("and 40 more")


@pytest.mark.parametrize(
    "samples",
    [
        {},
        np.zeros(3),
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        [np.zeros((2, 3)), np.zeros((2, 4))],
    ],
)
def test_arrays_without_chains_and_draws_are_refused(samples: Any) -> None:
    assert_refuses(lambda: bk.ChainRun(samples), ValueError, ("(chains, draws, ...)",))


def test_draws_that_are_complex_are_refused() -> None:
    words = ("samples['z']", "complex128[2,3]", "real numbers")
    samples = {"z": np.ones((2, 3), complex)}
    assert_refuses(lambda: bk.ChainRun(samples), TypeError, words)


def test_a_checkpoint_is_read_as_the_result(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    starts = jnp.linspace(-1.0, 1.0, 4)
    run = bk.run_chains(
        blackjax.hmc,
        lambda x: -0.5 * x**2,
        jax.random.key(0),
        starts,
        num_warmup=5,
        num_samples=6,
        num_integration_steps=2,
        checkpoint=path,
        progress=False,
    )
    again = bk.ChainRun.load(path)
    names = vars(run).keys() - {"_convergence", "warnings", "_seconds"}
    for name in names:
        assert_same(getattr(again, name), getattr(run, name), ulps=0)
    assert again.step_size is not None
    assert again.seconds[:3] == run.seconds[:3]
    assert again.warnings == run.warnings
