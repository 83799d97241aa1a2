"""Chains that resume from a checkpoint, and files that are refused."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import mclachlan

import batchkit as bk
from batchkit.run import Provenance, _resumable, _saving
from batchkit.run._file import read_file
from batchkit.run._packages import versions
from batchkit.run._saving import Saver

from ..helpers import assert_same, mesh
from ..run.compilations import compilations
from ..run.other_versions import OTHER, as_other_versions_wrote


KEY = jax.random.key(3)
CHAINS = 13
STARTS = {
    "x": jax.random.normal(jax.random.key(1), (CHAINS, 7)),
    "y": jnp.zeros((CHAINS,)),
}
MATRIX = jax.random.normal(jax.random.key(2), (7, 7)) / 3


class Killed(Exception):
    pass


def logdensity(position: dict[str, jax.Array]) -> jax.Array:
    x, y = position["x"], position["y"]
    return -0.5 * (x @ x + jax.nn.logsumexp(MATRIX @ x) ** 2 + (y - 1) ** 2)


def chains(**changed: Any) -> bk.ChainRun:
    arguments: dict[str, Any] = {
        "logdensity_fn": logdensity,
        "rng_key": KEY,
        "positions": STARTS,
        "num_warmup": 20,
        "num_samples": 6,
        "num_integration_steps": 2,
        "progress": False,
        **changed,
    }
    return bk.run_chains(blackjax.hmc, **arguments)


def killed_at(draws: int) -> Any:
    """Kill a run when it has made some draws, before they are saved."""

    def kill(progress: Any) -> None:
        if progress.draws >= draws:
            raise Killed

    return kill


def parts(run: bk.ChainRun) -> Any:
    return [
        run.samples,
        run.logdensity,
        run.diverging,
        run.acceptance_rate,
        run.num_integration_steps,
        run.step_size,
        run.inverse_mass_matrix,
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    chains(checkpoint=path)
    return path


def test_finished_run_returns_at_once(saved: Path) -> None:
    records: list[Any] = []
    before = saved.read_bytes()
    again = chains(checkpoint=str(saved), progress=records.append)
    assert not records
    assert saved.read_bytes() == before
    assert_same(parts(again), parts(chains()), ulps=0)
    assert again.seconds.sampling > 0
    assert again.seconds.compile > 0


def test_more_or_fewer_draws_than_saved(saved: Path) -> None:
    whole = chains(num_samples=11)
    assert_same(parts(chains(num_samples=11, checkpoint=saved)), parts(whole), ulps=0)
    assert read_file(saved)[0]["draws"] == 11
    few = chains(num_samples=4, checkpoint=saved)
    begin = jax.tree.map(lambda x: x[:, :4], whole.samples)
    assert_same(few.samples, begin, ulps=0)
    assert read_file(saved)[0]["draws"] == 11


# What a lane computes may depend in the last bit on its number. It does here: five rows
# of seven numbers in float64, which XLA multiplies in groups.
@pytest.mark.parametrize(
    ("batcher", "saved_at"),
    [
        pytest.param(bk.Vmap(), 10, id="Vmap"),
        pytest.param(bk.Chunked(5), 10, id="Chunked", marks=pytest.mark.slow),
        pytest.param(
            *(bk.Sharded(mesh(2), inner=bk.Continuous(3)), 8),
            id="Sharded Continuous",
            marks=pytest.mark.slow,
        ),
        pytest.param(bk.Continuous(5), 8, id="Continuous"),
    ],
)
def test_bits_do_not_depend_on_where_it_was_killed(
    batcher: bk.AbstractBatcher,
    saved_at: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameters = {"step_size": 0.2, "inverse_mass_matrix": jnp.ones(8)}
    starts = jax.tree.map(lambda x: np.asarray(x, np.float64), STARTS)

    def sample(num_samples: int, **options: Any) -> bk.ChainRun:
        options = {"progress": False, "batcher": batcher, "block": 8, **options}
        options |= {"num_warmup": 0, "num_samples": num_samples, **parameters}
        with jax.enable_x64(True):
            return bk.run_chains(
                blackjax.dynamic_hmc, logdensity, KEY, starts, **options
            )

    whole = sample(26)
    # Blocks are as short as they can be, and every one of them is saved. The clock must
    # not decide where this run resumes: what a save costs depends on the machine.
    monkeypatch.setattr(_resumable, "_BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(_saving, "_RUN_PER_COST", 0)
    place = bk.Checkpoint(tmp_path / "run.h5", every=1e-9)
    with compilations() as compiled:
        with pytest.raises(Killed):
            sample(26, checkpoint=place, progress=killed_at(11))
        assert read_file(place.path)[0]["draws"] == saved_at
        sample(19, checkpoint=place)
        last = sample(26, checkpoint=place)
    # Bits are those of one executable: a program that is compiled again, or comes from
    # a cache on disk that other processes write to, may round differently.
    assert not {"jit(_start_one)", "jit(_advance_one)"} & set(compiled)
    assert_same(last.samples, whole.samples, ulps=0)
    assert_same(last.acceptance_rate, whole.acceptance_rate, ulps=0)


def test_resumed_progress_counts_saved_draws(tmp_path: Path) -> None:
    """Draws of a block that was cut short are made, and counted, again."""
    options = {"checkpoint": tmp_path / "run.h5", "block": 4}
    chains(batcher=bk.Continuous(5), **options)
    records: list[Any] = []
    run = chains(
        batcher=bk.Continuous(5), num_samples=12, progress=records.append, **options
    )
    assert [x.draws for x in records] == [4, 8, 12]
    rates = np.asarray(run.acceptance_rate)
    for each in records:
        expected = np.mean(rates[:, : each.draws])
        np.testing.assert_allclose(each.acceptance, expected, rtol=1e-5)


def test_another_batcher_resumes(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = chains(num_samples=9)
    with caplog.at_level(logging.INFO, "batchkit"):
        found = chains(num_samples=9, batcher=bk.Continuous(4), checkpoint=saved)
    assert "to rounding, not to the bit" in caplog.text
    begin = jax.tree.map(lambda x: x[:, :6], found.samples)
    assert_same(begin, chains().samples, ulps=0)
    for a, b in zip(parts(found), parts(whole), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-3, 1e-3), a, b)
    with caplog.at_level(logging.INFO, "batchkit"):
        assert chains(num_samples=10, checkpoint=saved).num_samples == 10
    assert f"Continuous(4), {len(jax.devices())} devices" in caplog.text


def other(position: dict[str, jax.Array]) -> jax.Array:
    return logdensity(position) * 2


def test_data_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def with_data(data: Any) -> Any:
        def fun(position: Any) -> Any:
            return -jnp.sum((position["x"] - data) ** 2) - position["y"] ** 2

        return chains(logdensity_fn=fun, checkpoint=path)

    with_data(np.zeros(7))
    with_data(np.zeros(7))  # equal data, in another array
    with pytest.raises(bk.CheckpointError, match="log-density differs"):
        with_data(np.ones(7))


PARTS = "log-density", "sampler", "positions"


def test_checkpoint_of_other_versions_resumes(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_other_versions_wrote(saved, *PARTS)
    finished = chains(checkpoint=saved)
    assert finished.provenance == (Provenance(0, OTHER),)
    found = chains(num_samples=8, checkpoint=saved)
    assert "was written with jax 0.0.1, python 3.0.1" in caplog.text
    assert_same(parts(found), parts(chains(num_samples=8)), ulps=0)
    assert found.provenance == (Provenance(0, OTHER), Provenance(6, versions()))
    records = f"jax 0.0.1, python 3.0.1 from 0 on; jax {jax.__version__}, python "
    assert records in repr(found)
    assert "from 6 on" in repr(found)
    found.save(saved.parent / "result.h5")
    again = bk.ChainRun.load(saved.parent / "result.h5")
    assert again.provenance == found.provenance


@jax.custom_jvp
def doubled(x: jax.Array) -> jax.Array:
    return x


@doubled.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return primals[0], 2 * tangents[0]


def other_gradient(position: dict[str, jax.Array]) -> jax.Array:
    return doubled(logdensity(position))


# Arguments of another run, with words of the message. Between versions functions are
# compared by their values.
OTHER_RUNS: list[tuple[Any, str, str]] = [
    (
        {"logdensity_fn": other},
        "log-density differs",
        "log-density differs.*at 13 of 13",
    ),
    (
        {"logdensity_fn": other_gradient},
        "log-density differs",
        "log-density differs.*at 13 of 13",
    ),
    ({"rng_key": jax.random.key(4)}, "key differs", "key differs"),
    (
        {"positions": {**STARTS, "y": jnp.full(CHAINS, 0.1)}},
        "positions differ",
        "positions differ",
    ),
    ({"num_warmup": 21}, "num_warmup differs", "`num_warmup` was 20, is 21"),
    ({"target_acceptance": 0.9}, "target_acceptance differs", "was 0.8, is 0.9"),
    ({"thin": 2}, "thin differs", "`thin` was 1, is 2"),
    (
        {"num_integration_steps": 3},
        "sampler, num_integration_steps differ",
        "`num_integration_steps` was 2, is 3",
    ),
    (
        {"divergence_threshold": 10.0},
        "sampler, divergence_threshold differ",
        "divergence_threshold differs",
    ),
    (
        {"is_mass_matrix_diagonal": True},
        "is_mass_matrix_diagonal differs",
        "is_mass_matrix_diagonal differs",
    ),
    (
        {"integrator": mclachlan},
        "sampler differs",
        "sampler differs.*`integrator` was not given",
    ),
]


@pytest.mark.parametrize("has_other_versions", [False, True])
def test_another_run_is_refused(saved: Path, has_other_versions: bool) -> None:
    if has_other_versions:
        as_other_versions_wrote(saved, *PARTS)
    before = saved.read_bytes()
    for changed, here, between in OTHER_RUNS:
        match = f"its {here} from what was given"
        if has_other_versions:
            match = f"{between}.*written with jax 0.0.1, python 3.0.1; this is jax"
        with pytest.raises(bk.CheckpointError, match=match):
            chains(checkpoint=saved, **changed)
    assert saved.read_bytes() == before


def test_parameters_are_compared_between_versions(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def sample(step_size: float, num_samples: int) -> bk.ChainRun:
        return chains(
            num_warmup=0,
            num_samples=num_samples,
            step_size=step_size,
            inverse_mass_matrix=jnp.ones(8),
            checkpoint=path,
        )

    sample(0.1, 3)
    as_other_versions_wrote(path, *PARTS)
    with pytest.raises(bk.CheckpointError, match=r"step_size differs.*python 3\.0\.1"):
        sample(0.11, 5)
    assert sample(0.1, 5).provenance[-1].start == 3


def test_fresh_starts_over(saved: Path) -> None:
    chains(rng_key=jax.random.key(4), num_samples=5, checkpoint=saved, fresh=True)
    assert read_file(saved)[0]["draws"] == 5


def test_checkpoint_of_a_nested_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with Saver(bk.Checkpoint(path), "nested run", {}) as saver:
        saver.save({}, {})
    with pytest.raises(bk.CheckpointError, match="a nested run, and this is a run of"):
        chains(checkpoint=path)


def test_damaged_checkpoint_falls_back_to_the_previous_one(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    # The previous generation is sound, and leads to the same end.
    assert_same(parts(chains(checkpoint=saved)), parts(chains()), ulps=0)
    for path in (saved, Path(f"{saved}.previous")):
        path.write_bytes(data)
    with pytest.raises(bk.CheckpointError, match="damaged"):
        chains(checkpoint=saved)
    assert chains(checkpoint=saved, fresh=True).num_samples == 6


def test_checkpoint_describes_the_run_to_other_readers(saved: Path) -> None:
    header, arrays = read_file(saved)
    assert header["settings"] == {
        "num_warmup": 20,
        "target_acceptance": 0.8,
        "thin": 1,
        "num_integration_steps": 2,
    }
    assert header["parameters"] == [*(f"x[{i}]" for i in range(7)), "y"]
    assert header["layout"] == [f"Vmap(), {len(jax.devices())} devices"]
    assert arrays["draws/position/0"].shape == (CHAINS, 6, 7)
    assert arrays["draws/logdensity/0"].shape == (CHAINS, 6)


class Place(NamedTuple):
    position: jax.Array
    key: jax.Array
    made: jax.Array


class Walk(NamedTuple):
    """A user's algorithm, whose state holds a key and half-precision numbers."""

    logdensity_fn: Any
    scale: float = 1.0

    def init(self, position: jax.Array, rng_key: jax.Array) -> Place:
        return Place(position, rng_key, jnp.zeros((), jnp.bfloat16))

    def step(self, key: jax.Array, place: Place) -> tuple[Place, None]:
        noise = jax.random.normal(place.key, place.position.shape, jnp.bfloat16)
        moved = place.position / 2 + self.scale * noise
        return Place(moved, jax.random.fold_in(key, 1), place.made + 1), None


def test_states_with_keys_and_half_precision_resume(tmp_path: Path) -> None:
    def walk(num_samples: int, **options: Any) -> bk.ChainRun:
        options |= {"num_warmup": 0, "num_samples": num_samples, "progress": False}
        starts = jnp.zeros((4, 2), jnp.bfloat16)
        return bk.run_chains(Walk, lambda x: -jnp.sum(x**2), KEY, starts, **options)

    path = tmp_path / "run.h5"
    walk(5, checkpoint=path)
    found = walk(9, checkpoint=path)
    assert_same(found.samples, walk(9).samples, ulps=0)
    assert found.samples.dtype == jnp.bfloat16
    with pytest.raises(bk.CheckpointError, match="its sampler, scale differ"):
        walk(9, checkpoint=path, scale=2.0)
    as_other_versions_wrote(path, "sampler")
    with pytest.raises(bk.CheckpointError, match="its scale differs"):
        walk(9, checkpoint=path, scale=2.0)
    assert walk(11, checkpoint=path).provenance[-1].start == 9
