"""Lengths of blocks, and the progress that is shown between them."""

import itertools
import logging
import math
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains import ChainProgress
from batchkit.chains._chain_programs import Blocks, blocks_for
from batchkit.run import _resumable

from ..helpers import mesh


KEY = jax.random.key(0)
STARTS = jax.random.normal(KEY, (4, 2))
SMALL = jax.ShapeDtypeStruct((4, 2), jnp.float32)


def cuts(blocks: Blocks, num_samples: int, seconds: float) -> list[int]:
    """The lengths of the blocks of a run, where a draw takes some seconds."""
    found: list[int] = []
    at, limit = 0, blocks.limit(None, 1)
    while at < num_samples:
        count = blocks.count(at, limit, num_samples)
        limit = blocks.limit(count, int(0.5 / seconds))
        found.append(count)
        at += count
    return found


def test_blocks_follow_the_clock() -> None:
    blocks = blocks_for(bk.Vmap(), SMALL, None)
    assert cuts(blocks, 2000, 1e-6) == [1, 4, 16, 64, 256, 1024, 635]
    assert cuts(blocks, 100, 0.05) == [1, 4, *[10] * 9, 5]
    assert cuts(blocks, 3, 10.0) == [1, 1, 1]
    assert blocks.most == 1024


def test_blocks_of_continuous_end_at_fixed_draws() -> None:
    blocks = blocks_for(bk.Continuous(2), SMALL, 8)
    for seconds in (1e-6, 1.0):
        assert cuts(blocks, 20, seconds) == [8, 8, 4]
    # A block that was cut short is made again to its end.
    assert blocks.count(at=3, limit=1, total=20) == 5
    assert blocks.is_whole(at=3, count=5)
    assert not blocks.is_whole(at=16, count=4)


@pytest.mark.parametrize(
    ("batcher", "is_fixed"),
    [
        (bk.Sequential(), False),
        (bk.Chunked(2), False),
        (bk.Sharded(mesh(2), inner=bk.Chunked(2)), False),
        (bk.Sharded(mesh(2), inner=bk.Continuous(2)), True),
        (bk.Chunked(4, inner=bk.Continuous(2)), True),
        (bk.Auto("1 GB"), True),
    ],
    ids=repr,
)
def test_blocks_are_fixed_where_chains_change_lanes(
    batcher: bk.AbstractBatcher, is_fixed: bool
) -> None:
    assert blocks_for(batcher, SMALL, None).is_fixed == is_fixed


def test_draws_of_a_block_fit_in_memory() -> None:
    large = jax.ShapeDtypeStruct((4, 2**20), jnp.float32)
    assert blocks_for(bk.Vmap(), large, None).most == 4
    huge = jax.ShapeDtypeStruct((4, 2**28), jnp.float32)
    # XLA compiles a loop of one turn as no loop, which rounds differently.
    blocks = blocks_for(bk.Vmap(), huge, None)
    assert (blocks.most, blocks.places) == (1, 2)
    assert blocks_for(bk.Vmap(), huge, 3).most == 3


def logdensity(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def hmc(**options: Any) -> bk.ChainRun:
    # One function for all tests, so that it is compiled once.
    return bk.run_chains(
        blackjax.hmc,
        logdensity,
        KEY,
        STARTS,
        num_warmup=20,
        num_samples=30,
        num_integration_steps=2,
        **options,
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resumable, "_BLOCK_SECONDS", 0.0)


@pytest.mark.usefixtures("short")
def test_progress_function_is_called_after_every_block() -> None:
    records: list[ChainProgress] = []
    run = hmc(progress=records.append)
    first, warm, others = records[0], records[:20], records[20:]
    assert [x.warmed_up for x in warm] == list(range(20))
    assert {(x.phase, x.draws) for x in warm} == {("warm-up", 0)}
    assert [x.draws for x in others] == list(range(31))
    assert {(x.phase, x.warmed_up) for x in others} == {("sampling", 20)}
    last = records[-1]
    assert (last.num_chains, last.num_samples) == (4, 30)
    np.testing.assert_array_equal(last.divergences, run.divergences)
    assert run.acceptance_rate is not None
    assert last.acceptance == pytest.approx(np.mean(run.acceptance_rate), rel=1e-5)
    assert math.isnan(first.seconds_left)
    assert 0 < last.seconds < 60
    assert last.seconds_left == 0
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(records))
    assert str(first) == "warm-up of 4 chains, 0 of 20 transitions"
    assert "divergences, acceptance 0." in str(last)
    assert str(last).endswith("0:00 left")


@pytest.mark.usefixtures("short")
def test_log_names_settings_layout_and_progress(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_resumable, "LOG_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "batchkit"):
        hmc()
    lines = [x.getMessage() for x in caplog.records]
    assert lines[0] == (
        "run_chains: 4 chains of 2 numbers (float32), 30 draws of each; num_warmup=20, "
        "target_acceptance=0.8, thin=1, num_integration_steps=2; "
        f"Vmap(), {len(jax.devices())} devices"
    )
    assert any("compiled transitions in" in x for x in lines)
    assert any(x.startswith("chains: 28 of 120 draws; sampling of 4 ") for x in lines)


def test_progress_can_be_switched_off(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hmc(progress=False)
    assert capfd.readouterr() == ("", "")
    assert all(x.levelno >= logging.WARNING for x in caplog.records)
