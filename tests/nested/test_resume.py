"""Runs that are killed, interrupted or damaged, and resumed."""

import functools
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run import Provenance
from batchkit.run._file import read_file, write_file
from batchkit.run._packages import versions

from ..helpers import errors_of, run_module, start_module
from ..run.other_versions import OTHER, as_other_versions_wrote
from .problems import gaussian


PROBLEM = gaussian(2)


start = functools.partial(start_module, "tests.nested.interrupted")
to_end = functools.partial(run_module, "tests.nested.interrupted")


def found(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "found.npz") as file:
        return dict(file)


def assert_same(one: Path, other: Path) -> None:
    a, b = found(one), found(other)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def until_step(process: subprocess.Popen[str], step: int) -> int:
    """Read its output until a step has been made, or all; return the step."""
    assert process.stdout is not None
    made = 0
    for line in process.stdout:
        word, *rest = line.split()
        made = int(rest[0]) if word == "step" else made
        if word == "end" or (word == "step" and made >= step):
            return made
    raise AssertionError("the process has ended too soon")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    to_end(folder)
    return folder


def test_a_killed_run_ends_with_the_bits_of_a_whole_one(whole: Path) -> None:
    folder = whole.parent / "killed"
    process = start(folder)
    until_step(process, 30)
    process.kill()
    process.communicate()
    errors = to_end(folder)
    assert "resuming " in errors
    assert_same(whole, folder)


@pytest.mark.slow
def test_kills_at_random_times_change_no_bit(whole: Path) -> None:
    """At any time after its start, during writes and between them."""
    rng = random.Random(0)
    kills = runs = 0
    last, folder = -1, whole.parent / "random"
    while kills < 24:
        # Slowed down, such that it is not over too soon; this changes no bit.
        process = start(folder, slow=0.05)
        assert process.stdout is not None
        process.stdout.readline()
        if kills % 2:
            until_step(process, last + 1)
        time.sleep(rng.uniform(0, 1.0 if kills % 2 else 6.0))
        process.kill()
        process.communicate()
        if (folder / "found.npz").exists():  # It was through: now another one.
            assert_same(whole, folder)
            runs += 1
            last, folder = -1, whole.parent / f"random {runs}"
            continue
        kills += 1
        if (folder / "run.h5").exists():
            step = read_file(folder / "run.h5")[0]["step"]
            assert step >= last
            last = step
    to_end(folder)
    assert_same(whole, folder)


@pytest.mark.slow
def test_a_signal_saves_the_run(whole: Path) -> None:
    folder = whole.parent / "interrupted"
    # Nothing but the signal makes it save.
    process = start(folder, slow=0.05, every=1e6)
    step = until_step(process, 3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    errors = errors_of(folder)
    assert process.returncode in (-signal.SIGINT, 1, 130), errors
    assert "saved to" in errors
    assert read_file(folder / "run.h5")[0]["step"] >= step
    to_end(folder)
    assert_same(whole, folder)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    PROBLEM.run(stop=bk.MaxSteps(3), checkpoint=path)
    return path


def test_a_finished_run_returns_at_once(saved: Path) -> None:
    told: list[Any] = []
    before = saved.read_bytes()
    run = PROBLEM.run(stop=bk.MaxSteps(3), checkpoint=saved, progress=told.append)
    assert run.num_steps == 3
    assert not told
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"seed": 1}, "first live points, key differ"),
        ({"num_live": 120}, "first live points, settings differ"),
        ({"num_delete": 30}, "settings differ.*`num_delete` was 20, is 30"),
        ({"num_inner_steps": 6}, "settings differ.*`num_inner_steps` was 5, is 6"),
    ],
)
def test_a_checkpoint_of_other_arguments_is_refused(
    saved: Path, changed: Any, what: str
) -> None:
    with pytest.raises(bk.CheckpointError, match=what):
        PROBLEM.run(checkpoint=saved, **changed)


@pytest.mark.parametrize(
    ("field", "function", "what"),
    [
        ("loglikelihood", lambda x: -jnp.sum(x**2), "likelihood differs"),
        ("low", -5.5, "prior differs"),
    ],
)
def test_a_checkpoint_of_another_problem_is_refused(
    saved: Path, field: str, function: Any, what: str
) -> None:
    other = PROBLEM._replace(**{field: function})
    live = PROBLEM.positions(100)
    for words in (f"{what} from", f"{what}.*at 8 of 8 positions.*with jax 0.0.1"):
        with pytest.raises(bk.CheckpointError, match=words):
            bk.run_nested(
                **other.arguments(20),
                rng_key=jax.random.key(0),
                positions=live,
                checkpoint=saved,
                progress=False,
            )
        as_other_versions_wrote(saved, "prior", "likelihood")


def test_a_checkpoint_with_other_data_is_refused(tmp_path: Path) -> None:
    def with_data(data: Any) -> Any:
        problem = PROBLEM._replace(loglikelihood=lambda x: -jnp.sum((x - data) ** 2))
        return problem.run(stop=bk.MaxSteps(1), checkpoint=tmp_path / "run.h5")

    with_data(np.array([0.0, 1.0]))
    with_data(np.array([0.0, 1.0]))  # another array with the same numbers
    with pytest.raises(bk.CheckpointError, match="likelihood differs"):
        with_data(np.array([0.0, 1.5]))


def test_a_checkpoint_of_other_versions_is_resumed_and_noted(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = "prior", "likelihood", "first live points"
    as_other_versions_wrote(saved, *parts)
    finished = PROBLEM.run(stop=bk.MaxSteps(3), checkpoint=saved)
    assert finished.provenance == (Provenance(0, OTHER),)
    found = PROBLEM.run(stop=bk.MaxSteps(5), checkpoint=saved)
    whole = PROBLEM.run(stop=bk.MaxSteps(5))
    np.testing.assert_array_equal(found.dead.positions, whole.dead.positions)
    assert "was written with jax 0.0.1, python 3.0.1" in caplog.text
    assert whole.provenance == (Provenance(0, versions()),)
    assert found.provenance == (Provenance(0, OTHER), Provenance(3, versions()))
    assert "jax 0.0.1, python 3.0.1 from 0 on" in repr(found)
    assert "from 3 on" in repr(found)
    found.save(saved.parent / "result.h5")
    again = bk.NestedRun.load(saved.parent / "result.h5")
    assert again.provenance == found.provenance
    assert bk.NestedRun.merge([found, PROBLEM.run(seed=1)]).provenance == (
        *found.provenance,
        Provenance(0, versions()),
    )


def test_a_run_resumes_on_another_layout(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "batchkit")
    stop = bk.MaxSteps(5)
    run = PROBLEM.run(stop=stop, checkpoint=saved, batcher=bk.Chunked(7))
    assert "to rounding, not to the bit" in caplog.text
    whole = PROBLEM.run(stop=stop)
    np.testing.assert_allclose(run.dead.positions, whole.dead.positions, rtol=1e-3)


def test_fresh_starts_over(saved: Path) -> None:
    run = PROBLEM.run(
        seed=1, stop=bk.MaxSteps(2), checkpoint=saved, fresh=True, progress=False
    )
    assert run.num_steps == 2
    assert read_file(saved)[0]["step"] == 2


def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    # The generation before it is sound, and goes on to the same end.
    again = PROBLEM.run(stop=bk.MaxSteps(3), checkpoint=saved)
    whole = PROBLEM.run(stop=bk.MaxSteps(3))
    np.testing.assert_array_equal(again.dead.positions, whole.dead.positions)
    for path in (saved, Path(f"{saved}.previous")):
        path.write_bytes(data)
    with pytest.raises(bk.CheckpointError, match="damaged"):
        PROBLEM.run(stop=bk.MaxSteps(3), checkpoint=saved)


def test_a_state_with_other_arrays_is_refused(saved: Path) -> None:
    """As of a version that counts less: the last sums of its state are missing."""
    header, arrays = read_file(saved)
    last = max((x for x in arrays if x.startswith("state/")), key=_number)
    write_file(saved, header, {k: v for k, v in arrays.items() if k != last})
    with pytest.raises(bk.CheckpointError, match=r"counts other things.*fresh=True"):
        PROBLEM.run(stop=bk.MaxSteps(3), checkpoint=saved)


def _number(name: str) -> int:
    return int(name.rpartition("/")[2])


def test_a_checkpoint_has_five_numbers_a_dead_point(saved: Path) -> None:
    """Two numbers of its position, likelihood, birth and prior, in float32."""
    arrays = read_file(saved)[1]
    dead = [x for name, x in arrays.items() if name.startswith("dead/")]
    assert sum(np.asarray(x).nbytes for x in dead) == 3 * 20 * (2 + 3) * 4
