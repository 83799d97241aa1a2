"""Which shards run again, with what, and how often, with rounds made by hand."""

import json
import pickle
from typing import Any

import jax
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains._chain_loop import Made
from batchkit.chains._chain_programs import Draw
from batchkit.chains._sampler import Tuned
from batchkit.shards import _rounds as module
from batchkit.shards._tries import target_of

from ..helpers import unchecked


CHAINS, SAMPLES = 4, 100


class Rounds:
    """Stands in for the chains of shards: their results are set in advance."""

    num_chains = 0
    tuned_shapes = draw_shapes = None

    def __init__(self, told: dict[tuple[int, int], Any]) -> None:
        self.told = told  # by shard and try: a rate of divergences, or NaN
        self.ran: list[list[int]] = []
        self.targets: list[list[float]] = []
        self.keys: list[Any] = []
        self.starts: list[Any] = []
        self.known: list[Any] = []

    def tasks(
        self,
        model: Any,
        shards: Any,
        which: list[int],
        chains: int,
        batcher: Any,
        targets: list[float] | None = None,
    ) -> Any:
        if targets is not None:  # without, for gradients alone
            self.which = which
            self.targets.append(targets)
        return self

    def gradients(self) -> Any:
        """The gradient of the log-density that `go` passes, of all rows."""
        rows = np.arange(10.0)[:, None]
        return lambda positions: np.sum(rows - positions, axis=0, keepdims=True)

    def chains(self, key: Any, positions: Any, block: Any) -> Any:
        self.keys.append(jax.random.key_data(key))
        self.starts.append(positions)
        return self

    def resumable(self, *_: Any, **named: Any) -> Any:
        return self

    def complete(self, run: Any, saved: Any, saver: Any, reporter: Any) -> None:
        self.known.append(saver._kept)

    @property
    def made(self) -> Made:
        number = len(self.ran)
        self.ran.append(self.which)
        shape = len(self.which), CHAINS, SAMPLES
        rng = np.random.default_rng(number)
        x, diverging = rng.normal(size=shape), np.zeros(shape, np.int32)
        for place, shard in enumerate(self.which):
            rate = self.told.get((shard, number), 0.0)
            if np.isnan(rate):
                x[place, 1, 7] = np.nan
            else:
                diverging[place].reshape(-1)[: round(rate * CHAINS * SAMPLES)] = 1
        tasks_shape = (-1, SAMPLES)
        x, diverging = x.reshape(tasks_shape), diverging.reshape(tasks_shape)
        ones = np.ones_like(x)
        draws = Draw(x, ones, diverging, 0.8 * ones, ones, 3 * ones, ones)
        tuned = Tuned(np.full(len(x), 0.5), np.ones((len(x), 1)))
        return Made(draws, tuned, (0.5, 1.0, 2.0 + number))


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(told: dict[tuple[int, int], Any], **given: Any) -> Any:
        rounds = Rounds(told)
        monkeypatch.setattr(module, "ShardTasks", rounds.tasks)
        monkeypatch.setattr(module, "ResumableChains", rounds.resumable)
        monkeypatch.setattr(module, "complete", rounds.complete)
        monkeypatch.setattr(module, "layout_of", lambda chains: [])
        arguments: Any = {
            "num_shards": 4,
            "positions": np.zeros(CHAINS, np.float32),
            "plan": bk.SamplingPlan(10, SAMPLES),
            "refine": False,
            **given,
        }
        rows = np.arange(10.0)
        fun = lambda p, rows: -0.5 * ((rows - p) ** 2).sum()
        key = jax.random.key(0)
        make = lambda: bk.run_shards(lambda p: 0 * p, fun, rows, key, **arguments)
        if "error" not in told:
            return make(), rounds
        with unchecked(), pytest.raises(bk.ShardFailure) as info:
            make()
        return info.value, rounds

    return run


def test_all_succeed_at_once(go: Any) -> None:
    run, rounds = go({(1, 0): 0.05})
    assert rounds.ran == [[0, 1, 2, 3]]
    assert [len(x.tries) for x in run.stats] == [1, 1, 1, 1]
    assert run.stats[1].divergences == 20
    assert "tries" not in [warning.name for warning in run.warnings]


def test_only_those_that_fail_run_again(go: Any) -> None:
    run, rounds = go({(1, 0): 0.06, (3, 0): np.nan, (3, 1): np.nan})
    assert rounds.ran == [[0, 1, 2, 3], [1, 3], [3]]
    # After divergences the target is raised; NaN alone does not tell of steps.
    np.testing.assert_allclose(rounds.targets[1], [0.85, 0.8])
    np.testing.assert_allclose(rounds.targets[2], [0.8])
    key = jax.random.key(0)
    for number, used in enumerate(rounds.keys):
        expected = jax.random.key_data(jax.random.fold_in(key, number))
        np.testing.assert_array_equal(used, expected)
    assert [len(x.tries) for x in run.stats] == [1, 2, 1, 3]
    tries = run.stats[3].tries
    assert [x.accepted for x in tries] == [False, False, True]
    assert tries[0].reason == "draws are not finite"
    assert tries[0].is_finite is False
    assert run.stats[1].tries[0].reason.startswith("6.0% of the transitions diverged")
    # Times are of the call, as measured.
    assert run.stats[0].seconds.sampling == 2.0
    assert run.stats[1].seconds.sampling == 3.0
    assert run.stats[3].seconds == bk.ChainSeconds(0.5, 1.0, 4.0)
    # Draws of the last try, in the place of their shard.
    first = np.random.default_rng(0).normal(size=(4, CHAINS, SAMPLES))
    second = np.random.default_rng(1).normal(size=(2, CHAINS, SAMPLES))
    np.testing.assert_array_equal(run.shard_samples[[0, 2]], first[[0, 2]])
    np.testing.assert_array_equal(run.shard_samples[1], second[0])
    assert np.isfinite(run.samples).all()


def test_chains_start_where_they_did(go: Any) -> None:
    told: Any = {(1, 0): 0.06, (3, 0): 0.06}
    _, rounds = go(told, positions=None, prior_sample_fn=jax.random.normal)
    first, second = rounds.starts
    assert len(np.unique(first)) == 4 * CHAINS
    np.testing.assert_array_equal(second, first[[1, 3]])


def test_the_first_process_says_who_runs_again(
    go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have computed other divergences, and does as it is told."""

    def says(make: Any) -> Any:
        header = make()
        for tries in header["shards"]:
            tries[-1]["accepted"] = True
        return header

    monkeypatch.setattr(module, "in_first", says)
    run, rounds = go({(1, 0): 0.06})
    assert rounds.ran == [[0, 1, 2, 3]]
    assert run.used == (0, 1, 2, 3)


def test_more_divergences_are_allowed_later(go: Any) -> None:
    _, rounds = go({(0, 0): 0.06, (0, 1): 0.10})
    assert rounds.ran == [[0, 1, 2, 3], [0]]
    _, rounds = go({(0, 0): 0.06, (0, 1): 0.11, (0, 2): 0.1})
    assert rounds.ran == [[0, 1, 2, 3], [0], [0]]
    np.testing.assert_allclose(rounds.targets[2], [0.9])


def test_all_tries_fail(go: Any) -> None:
    told: Any = {(2, i): 0.2 for i in range(5)}
    error, rounds = go({**told, "error": True})
    assert rounds.ran == [[0, 1, 2, 3], [2], [2]]
    assert error.shards == (2,)
    assert "1 of 4 shards have failed (shard 2: 3 tries failed" in str(error)
    assert "20.0% of the transitions" in str(error)
    assert "on_failure='drop'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.shards, str(again)) == (error.shards, str(error))
    _, rounds = go({**told, "error": True}, max_tries=1)
    assert rounds.ran == [[0, 1, 2, 3]]


def test_shards_may_be_dropped(go: Any) -> None:
    told: Any = {(2, i): np.nan for i in range(5)}
    run, rounds = go(told, on_failure="drop")
    assert rounds.ran == [[0, 1, 2, 3], [2], [2]]
    assert run.used == (0, 1, 3)
    assert run.left_out == {2: "3 tries failed, the last because draws are not finite"}
    assert not run.stats[2].accepted
    assert np.isnan(run.stats[2].rhat)
    assert "3, failed" in run.report()


def test_all_shards_fail(go: Any) -> None:
    told: Any = {(s, i): 0.5 for s in range(4) for i in range(3)}
    error, _ = go({**told, "error": True}, on_failure="drop")
    assert error.shards == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(0.8, [0.8, 0.85, 0.9]), (0.93, [0.93, 0.95, 0.95]), (0.99, [0.99] * 3)],
)
def test_targets(asked: float, expected: list[float]) -> None:
    tries = [{"number": i, "divergence_rate": 0.5} for i in range(2)]
    found = [target_of(tries[:i], asked) for i in range(3)]
    np.testing.assert_allclose(found, expected)


def test_statistics(go: Any) -> None:
    run, _ = go({})
    stats = run.stats[2]
    assert (stats.shard, stats.num_rows) == (2, 2)
    assert [x.num_rows for x in run.stats] == [3, 3, 2, 2]
    assert stats.plan == bk.SamplingPlan(10, SAMPLES)
    assert stats.acceptance == pytest.approx(0.8)
    assert stats.step_size == (0.5, 0.5, 0.5)
    assert stats.tree_depth == (3.0, 3.0, 3.0)
    assert stats.inverse_mass_matrix == (1.0, 1.0, 1.0)
    assert 0.9 < stats.rhat < 1.1
    assert stats.ess > 100


def test_what_is_known_after_a_round(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    after_round = module.after_round

    def keep(*args: Any) -> Any:
        kept.append(after_round(*args))
        return kept[-1]

    monkeypatch.setattr(module, "after_round", keep)
    go({(1, 0): 0.06})
    assert len(kept) == 2
    for known in kept:
        assert json.loads(json.dumps(known.header)) == known.header
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(known.arrays))
        assert {x.shape[:2] for x in jax.tree.leaves(known.arrays)} == {(4, CHAINS)}
    shapes = [[x.shape for x in jax.tree.leaves(known.arrays)] for known in kept]
    assert shapes[0] == shapes[1]
