"""Which shards run again, how often and with what, with results set by hand."""

import json
import pickle
from typing import Any

import jax
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains._chain_loop import CompletedChains
from batchkit.chains._chain_programs import Draw
from batchkit.chains._sampler import Tuned
from batchkit.run import Seconds
from batchkit.shards import ShardTry, _rounds
from batchkit.shards._shard_tries import next_target

from ..helpers import shard_samples, unchecked


CHAINS, SAMPLES = 4, 100
PLAN = bk.SamplingPlan(10, SAMPLES)


class Chains:
    """Stands in for the programs of all rounds, and keeps what they are made with."""

    def __init__(self, rates: dict[tuple[int, int], float]) -> None:
        self.rates = rates  # of divergences, by shard and try; NaN for draws of NaN
        self.shards: list[list[int]] = []
        self.targets: list[np.ndarray] = []
        self.keys: list[Any] = []
        self.starts: list[Any] = []
        self.saved: list[Any] = []

    def make(self, samplers: Any, key: Any, starts: Any, *_: Any) -> "Chains":
        # Chains of one shard are neighbours, in their order.
        assert list(samplers.index[:CHAINS] % CHAINS) == list(range(CHAINS))
        self.shards.append(list(samplers.index[::CHAINS] // CHAINS))
        self.targets.append(samplers.own.target[::CHAINS])
        self.keys.append(jax.random.key_data(key))
        self.starts.append(starts)
        return self

    def complete(self, run: Any, saved: Any, saver: Any, reporter: Any) -> None:
        self.saved.append(saver._kept)

    @property
    def made(self) -> CompletedChains:
        number, shards = len(self.shards) - 1, self.shards[-1]
        shape = len(shards), CHAINS * SAMPLES
        x = np.random.default_rng(number).normal(size=shape)
        diverging = np.zeros(shape, np.int32)
        for place, shard in enumerate(shards):
            rate = self.rates.get((shard, number), 0.0)
            if np.isnan(rate):
                x[place, 107] = np.nan
            else:
                diverging[place, : round(rate * CHAINS * SAMPLES)] = 1
        x, diverging = x.reshape(-1, SAMPLES), diverging.reshape(-1, SAMPLES)
        ones = np.ones_like(x)
        draws = Draw(x, ones, diverging, 0.8 * ones, ones, 3 * ones, ones)
        tuned = Tuned(np.full(len(x), 0.5), np.ones((len(x), 1)))
        return CompletedChains(draws, tuned, Seconds(0.5, 1.0, 2.0 + number))


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(rates: dict[tuple[int, int], float], **options: Any) -> Any:
        chains = Chains(rates)
        monkeypatch.setattr(_rounds, "Chains", chains.make)
        monkeypatch.setattr(_rounds, "ResumableChains", lambda chains, *_, **__: chains)
        monkeypatch.setattr(_rounds, "complete", chains.complete)
        rows = np.arange(10.0)
        slopes = lambda x: np.sum(rows[:, None] - x, axis=0)
        gradients = lambda model, used: slopes
        monkeypatch.setattr(_rounds.ShardedModel, "gradients", gradients)
        arguments: Any = {
            "num_shards": 4,
            "positions": np.zeros(CHAINS, np.float32),
            "plan": PLAN,
            "refine": False,
            **options,
        }
        fun = lambda p, rows: -0.5 * ((rows - p) ** 2).sum()
        key = jax.random.key(0)
        with unchecked():
            try:
                run = bk.run_shards(lambda p: 0 * p, fun, rows, key, **arguments)
            except bk.ShardFailure as error:
                return error, chains
        return run, chains

    return run


def test_shards_that_succeed_at_once_run_once(go: Any) -> None:
    run, chains = go({(1, 0): 0.05})
    assert chains.shards == [[0, 1, 2, 3]]
    assert [len(x) for x in run.tries] == [1, 1, 1, 1]
    assert "tries" not in [warning.name for warning in run.warnings]
    # Each shard is a run of its own, with all that the sampler reports.
    shard = run.shards[1]
    np.testing.assert_array_equal(shard.divergences, [20, 0, 0, 0])
    np.testing.assert_array_equal(shard.step_size, [0.5] * CHAINS)
    assert shard.inverse_mass_matrix.shape == (CHAINS, 1)
    assert shard.max_tree_depth == 10
    assert shard.seconds[:3] == (0.5, 1.0, 2.0)
    statistics = shard._sample_stats()
    assert {name: x is None for name, x in statistics.items() if x is None} == {}


def test_only_shards_that_fail_run_again(go: Any) -> None:
    run, chains = go({(1, 0): 0.06, (3, 0): np.nan, (3, 1): np.nan})
    assert chains.shards == [[0, 1, 2, 3], [1, 3], [3]]
    # Divergences raise the target; NaN says nothing of the step size.
    np.testing.assert_allclose(chains.targets[1], [0.85, 0.8])
    np.testing.assert_allclose(chains.targets[2], [0.8])
    key = jax.random.key(0)
    for number, used in enumerate(chains.keys):
        expected = jax.random.key_data(jax.random.fold_in(key, number))
        np.testing.assert_array_equal(used, expected)
    assert [len(x) for x in run.tries] == [1, 2, 1, 3]
    tries = run.tries[3]
    assert [x.accepted for x in tries] == [False, False, True]
    assert tries[0].reason == "draws are not finite"
    assert tries[0].is_finite is False
    assert run.tries[1][0].reason.startswith("6.0% of the transitions diverged")
    # Seconds are those of the whole call.
    assert run.tries[0][-1].seconds.sampling == 2.0
    assert run.tries[1][-1].seconds.sampling == 3.0
    assert run.tries[3][-1].seconds == Seconds(0.5, 1.0, 4.0)
    assert run.shards[3].seconds[:3] == (0.5, 1.0, 4.0)
    # Draws of the last try stand in the place of their shard.
    first, second = (
        np.random.default_rng(i).normal(size=(n, CHAINS, SAMPLES))
        for i, n in ((0, 4), (1, 2))
    )
    np.testing.assert_array_equal(shard_samples(run)[[0, 2]], first[[0, 2]])
    np.testing.assert_array_equal(run.shards[1].samples, second[0])
    assert np.isfinite(run.samples).all()
    # A checkpoint of each round has the tries before it, and the draws of all shards.
    headers, arrays = zip(*chains.saved, strict=True)
    assert json.loads(json.dumps(headers)) == list(headers)
    assert [[len(x) for x in header["shards"]] for header in headers] == [
        [0, 0, 0, 0],
        [1, 1, 1, 1],
        [1, 2, 1, 2],
    ]
    assert arrays[0] == {}
    assert {x.shape[:2] for a in arrays[1:] for x in a.values()} == {(4, CHAINS)}


def test_a_second_try_starts_where_the_first_did(go: Any) -> None:
    rates = {(1, 0): 0.06, (3, 0): 0.06}
    _, chains = go(rates, positions=None, prior_sample_fn=jax.random.normal)
    first, second = (x.reshape(-1, CHAINS) for x in chains.starts)
    assert len(np.unique(first)) == 4 * CHAINS
    np.testing.assert_array_equal(second, first[[1, 3]])


def test_the_first_process_decides_which_shards_run_again(
    go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have computed other divergences."""

    def accepting(make: Any) -> Any:
        header = make()
        for tries in header["shards"]:
            tries[-1]["accepted"] = True
        return header

    monkeypatch.setattr(_rounds, "run_in_first_process", accepting)
    run, chains = go({(1, 0): 0.06})
    assert chains.shards == [[0, 1, 2, 3]]
    assert run.used == (0, 1, 2, 3)


def test_later_tries_may_diverge_more(go: Any) -> None:
    _, chains = go({(0, 0): 0.06, (0, 1): 0.10})
    assert chains.shards == [[0, 1, 2, 3], [0]]
    _, chains = go({(0, 0): 0.06, (0, 1): 0.11, (0, 2): 0.1})
    assert chains.shards == [[0, 1, 2, 3], [0], [0]]
    np.testing.assert_allclose(chains.targets[2], [0.9])


@pytest.mark.parametrize(
    ("first", "expected"),
    [(0.8, [0.8, 0.85, 0.9]), (0.93, [0.93, 0.95, 0.95]), (0.99, [0.99] * 3)],
)
def test_targets_rise_after_divergences(first: float, expected: list[float]) -> None:
    seconds = Seconds(0.0, 0.0, 0.0)
    tries = [ShardTry(i, 0.8, 0.5, True, False, "", seconds) for i in range(2)]
    found = [next_target(tries[:i], first) for i in range(3)]
    np.testing.assert_allclose(found, expected)


def test_a_shard_that_always_fails_is_an_error_unless_dropped(go: Any) -> None:
    rates = {(2, i): 0.2 for i in range(5)}
    error, chains = go(rates)
    assert chains.shards == [[0, 1, 2, 3], [2], [2]]
    assert error.shards == (2,)
    assert "1 of 4 shards have failed (shard 2: 3 tries failed" in str(error)
    assert "20.0% of the transitions" in str(error)
    assert "on_failure='drop'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.shards, str(again)) == (error.shards, str(error))
    _, chains = go(rates, max_tries=1)
    assert chains.shards == [[0, 1, 2, 3]]
    run, chains = go({(2, i): np.nan for i in range(5)}, on_failure="drop")
    assert chains.shards == [[0, 1, 2, 3], [2], [2]]
    assert run.used == (0, 1, 3)
    assert run.left_out == {2: "3 tries failed, the last because draws are not finite"}
    assert not run.tries[2][-1].accepted
    assert np.isnan(run.shards[2].rhat)
    # Nothing is left if all are dropped.
    error, _ = go(dict.fromkeys(np.ndindex(4, 3), 0.5), on_failure="drop")
    assert error.shards == (0, 1, 2, 3)
