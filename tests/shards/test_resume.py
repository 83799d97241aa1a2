"""Shards that resume from a checkpoint, and their progress."""

import logging
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains import ChainProgress
from batchkit.run import Provenance, _resumable, _saving
from batchkit.run._file import read_file
from batchkit.run._packages import versions
from batchkit.shards import _shard_tries

from ..helpers import assert_refuses, mesh, shard_samples, unchecked
from ..run.other_versions import OTHER, as_other_versions_wrote


KEY = jax.random.key(5)
DATA = np.random.default_rng(0).normal(size=23)
STARTS = np.linspace(-1, 1, 2).astype(np.float32)


class Killed(Exception):
    pass


def logprior(mean: Any) -> Any:
    return -0.5 * mean**2


def loglikelihood(mean: Any, rows: Any) -> Any:
    return -0.5 * jnp.sum((rows - mean) ** 2)


def run(**options: Any) -> bk.ShardRun:
    arguments: Any = {
        "logprior_fn": logprior,
        "loglikelihood_fn": loglikelihood,
        "data": DATA,
        "rng_key": KEY,
        "num_shards": 3,
        "positions": STARTS,
        "plan": bk.SamplingPlan(10, 20, num_chains=2),
        "api": blackjax.hmc,
        "num_integration_steps": 2,
        # So that some transitions diverge, and each shard has a rate of its own.
        "divergence_threshold": 0.05,
        "refine": False,
        "progress": False,
        "block": 4,
        **options,
    }
    with unchecked():
        return bk.run_shards(**arguments)


@pytest.fixture(scope="module")
def rates() -> list[float]:
    """The rates of divergences of the shards in their first try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shard_tries, "DIVERGENCE_NOTE", 1.0)
        return [x.divergence_rate for (x,) in run(max_tries=1).tries]


@pytest.fixture
def some_fail(monkeypatch: pytest.MonkeyPatch, rates: list[float]) -> list[int]:
    """The shards that run again, which are not all."""
    limit = min(rates)
    monkeypatch.setattr(_shard_tries, "DIVERGENCE_NOTE", limit)
    monkeypatch.setattr(_shard_tries, "DIVERGENCE_WARNING", 1.0)
    # Every block is saved, and as long as it may be.
    monkeypatch.setattr(_resumable, "_BLOCK_SECONDS", 1e9)
    monkeypatch.setattr(_saving, "seconds_until_next", lambda every, cost: 0.0)
    return [shard for shard, rate in enumerate(rates) if rate > limit]


def killed_at(number: int, draws: int) -> Any:
    def kill(progress: ChainProgress) -> None:
        if (progress.try_, progress.draws) >= (number, draws):
            raise Killed

    return kill


def assert_same_run(found: bk.ShardRun, expected: bk.ShardRun) -> None:
    np.testing.assert_array_equal(*map(shard_samples, (found, expected)))
    np.testing.assert_array_equal(found.samples, expected.samples)
    for one, other in zip(found.tries, expected.tries, strict=True):
        assert [x.reason for x in one] == [x.reason for x in other]
    for one, other in zip(found.shards, expected.shards, strict=True):
        np.testing.assert_array_equal(one.step_size, other.step_size)
        np.testing.assert_array_equal(one.diverging, other.diverging)


@pytest.mark.parametrize(
    "batcher",
    [
        bk.Vmap(),
        bk.Continuous(2),
        pytest.param(bk.Sharded(mesh(2), inner=bk.Chunked(1)), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_bits_do_not_depend_on_where_it_was_killed(
    batcher: bk.AbstractBatcher, some_fail: list[int], tmp_path: Path
) -> None:
    whole = run(batcher=batcher)
    assert [s for s, x in enumerate(whole.tries) if len(x) == 2] == some_fail
    place = tmp_path / "run.h5"
    for number, draws in ((0, 9), (1, 0), (1, 9)):
        with pytest.raises(Killed):
            run(batcher=batcher, checkpoint=place, progress=killed_at(number, draws))
    header = read_file(place)[0]
    assert header["running"] == some_fail
    assert 0 < header["draws"] < 20
    assert_same_run(run(batcher=batcher, checkpoint=place), whole)
    shown: list[Any] = []
    again = run(batcher=batcher, checkpoint=place, progress=shown.append)
    assert not shown
    assert_same_run(again, whole)
    # Another layout may take over, to rounding.
    other = run(batcher=bk.Sequential(), checkpoint=place)
    np.testing.assert_allclose(other.samples, whole.samples)


def test_progress_is_that_of_the_shards_that_run(some_fail: list[int]) -> None:
    shown: list[ChainProgress] = []
    whole = run(progress=shown.append)
    assert [x.try_ for x in shown] == sorted(x.try_ for x in shown)
    for number, shards in enumerate([[0, 1, 2], some_fail]):
        of_try = [x for x in shown if x.try_ == number]
        assert {x.shards for x in of_try} == {tuple(shards)}
        assert list(dict.fromkeys(x.phase for x in of_try)) == ["warm-up", "sampling"]
        assert (of_try[0].draws, of_try[-1].draws) == (0, 20)
        divergences = of_try[-1].divergences
        assert divergences is not None
        rates = [whole.tries[shard][number].divergence_rate for shard in shards]
        of_shards = np.reshape(divergences, (len(shards), -1)).sum(axis=1)
        np.testing.assert_allclose(of_shards / 40, rates)
    assert "try 2" in str(shown[-1])
    assert "sampling of 2 chains of shard 0" in str(shown[-1])
    (first, *_) = [x for x in reversed(shown) if x.try_ == 0]
    assert "sampling of 6 chains of 3 shards" in str(first)
    assert first.divergences is not None
    of_shards = np.reshape(first.divergences, (3, 2)).sum(axis=1)
    worst = int(np.argmax(of_shards))
    assert f"divergences ({of_shards[worst]} in shard {worst}), " in str(first)


def test_a_failed_run_resumes_with_more_tries_and_not_with_fewer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_shard_tries, "DIVERGENCE_NOTE", -1.0)
    monkeypatch.setattr(_shard_tries, "DIVERGENCE_WARNING", -1.0)
    path = tmp_path / "run.h5"
    for tries, words in ((1, "1 try failed"), (2, "2 tries failed")):
        with pytest.raises(bk.ShardFailure, match=words):
            run(checkpoint=path, max_tries=tries)
    refused = "saved in try 2 of shard 0, and max_tries=1", "Pass max_tries=2 or more"
    fewer = lambda: run(checkpoint=path, max_tries=1)
    assert_refuses(fewer, bk.CheckpointError, refused)
    monkeypatch.setattr(_shard_tries, "DIVERGENCE_WARNING", 1.0)
    assert [len(x) for x in run(checkpoint=path).tries] == [2, 2, 2]


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": DATA + 1e-3}, "data differs"),
    "likelihood": (
        {"loglikelihood_fn": lambda mean, rows: 2 * loglikelihood(mean, rows)},
        "likelihood differs",
    ),
    "prior": ({"logprior_fn": lambda mean: -(mean**2)}, "prior differs"),
    "strata": ({"strata": np.arange(23) % 2}, "split into shards differs"),
    "key": ({"rng_key": jax.random.key(6)}, "key differ"),
    "starts": ({"positions": STARTS + 1}, "positions differ"),
    "plan": ({"plan": bk.SamplingPlan(10, 21, num_chains=2)}, "num_samples differs"),
    "target": ({"target_acceptance": 0.9}, "target_acceptance differs"),
    "settings": ({"num_integration_steps": 3}, "num_integration_steps differ"),
}


def test_blocks_of_another_length_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_shard_tries, "DIVERGENCE_NOTE", 1.0)
    path = tmp_path / "run.h5"
    options: Any = {"batcher": bk.Continuous(2), "checkpoint": path}
    run(**options)
    for block, is_logged in ((4, False), (5, True)):
        with caplog.at_level(logging.INFO, "batchkit"):
            run(**options, block=block)
        assert ("laid out otherwise" in caplog.text) == is_logged


def test_checkpoints_of_other_runs_are_refused(
    tmp_path: Path, rates: list[float]
) -> None:
    path = tmp_path / "run.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shard_tries, "DIVERGENCE_NOTE", 1.0)
        first = run(checkpoint=path)
        for changed, words in CHANGED.values():
            error: Any = bk.CheckpointError
            assert_refuses(lambda x=changed: run(checkpoint=path, **x), error, (words,))
        # Options that only count after the chains may change.
        robust = run(checkpoint=path, combine="robust", refine=True, max_tries=7)
        np.testing.assert_array_equal(*map(shard_samples, (robust, first)))
        header = read_file(path)[0]
        assert header["settings"]["num_samples"] == 20
        fresh = run(checkpoint=path, fresh=True, rng_key=jax.random.key(6))
        assert np.any(fresh.samples != first.samples)


def test_other_versions_resume_the_same_run_and_refuse_another(
    tmp_path: Path, some_fail: list[int]
) -> None:
    path = tmp_path / "run.h5"
    with pytest.raises(Killed):
        run(checkpoint=path, progress=killed_at(1, 9))
    at = read_file(path)[0]["at"]
    as_other_versions_wrote(path, "prior", "likelihood", "sampler", "data", "positions")
    before = path.read_bytes()
    for name in ("data", "likelihood", "prior", "starts", "settings"):
        changed, words = CHANGED[name]
        if name in ("likelihood", "prior"):
            words = "its prior or likelihood differs"
        elif name == "data":
            words = "its data"
        refused = (words, "written with jax 0.0.1, python 3.0.1")
        error: Any = bk.CheckpointError
        assert_refuses(lambda x=changed: run(checkpoint=path, **x), error, refused)
        assert path.read_bytes() == before
    found = run(checkpoint=path)
    assert_same_run(found, run())
    assert found.provenance == (Provenance(0, OTHER), Provenance(20 + at, versions()))
    assert "jax 0.0.1, python 3.0.1 from 0 on" in repr(found)


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "checkpoint": ({"checkpoint": 3}, ("run_shards(checkpoint=3)", "a path")),
    "fresh": ({"fresh": 1}, ("run_shards(fresh=1)", "True or False")),
    "progress": ({"progress": "yes"}, ("run_shards(progress='yes')", "a function")),
    "block": ({"block": 2.0}, ("run_shards(block=2.0)", "int")),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_options_that_cannot_be_right_are_refused(case: Any) -> None:
    options, words = case
    assert_refuses(lambda: run(**options), TypeError, words)
