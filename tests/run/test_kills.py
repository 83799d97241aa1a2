"""Processes that are killed while they save, and what is found afterwards."""

import os
import random
import signal
import time

import pytest

from batchkit.run import CheckpointError
from batchkit.run._file import decode, read_file
from batchkit.run._store import Store

from .processes import children, generation, step_of


@pytest.fixture(scope="module")
def child():
    with children() as child:
        yield child


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.h5")


def newest(path):
    """The generation that is read, zero for none; leftovers are removed."""
    with Store(path) as store:
        found = store.read()
        assert {x.name for x in os.scandir(os.path.dirname(path))} <= {
            "run.h5",
            "run.h5.previous",
            "run.h5.lock",
        }
        return step_of(*decode(*found)) if found else 0


@pytest.mark.parametrize(
    ("size", "kills", "longest"),
    [
        pytest.param(20_000_000, 15, 0.4, marks=pytest.mark.slow, id="large"),
        pytest.param(1000, 15, 0.1, id="small"),
    ],
)
def test_kill_at_a_random_time_loses_no_generation(child, path, size, kills, longest):
    rng = random.Random(size)
    inside = last = 0
    for _ in range(kills):
        pid = child.start("write_for_ever", path, size)
        assert child.line().startswith("begin")
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        lines, status = child.end()
        assert status == -signal.SIGKILL
        inside += not lines or lines[-1].startswith("begin")
        done = [int(x.split()[1]) for x in lines if x.startswith("end")]
        last = max(last, *done, 0)
        if last:
            # Not only the previous one: the file itself is sound at every instant.
            assert step_of(*read_file(path)) >= last
        last, before = newest(path), last
        assert last >= before
    assert inside >= kills // 5


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("generations", [0, 1, 2])
def test_kill_at_every_system_call_loses_no_generation(
    child, path, generations, before
):
    with Store(path) as store:
        for step in range(generations):
            store.write(*generation(step + 1, 1000))
    step, at = generations, 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        at += 1
        child.start("write_and_die", path, at, before)
        _, status = child.end()
        if step:
            assert step_of(*read_file(path)) in (step, step + 1)
        found = newest(path)
        assert found in (step, step + 1)
        step = found
    assert status == 0
    assert at > 9


def test_lock_excludes_other_processes_and_ends_with_its_own(child, path):
    pid = child.start("hold", path)
    assert child.line() == "held"
    words = rf"run.h5' is in use by process {pid}\. Wait until that run has ended"
    with pytest.raises(CheckpointError, match=words), Store(path):
        pass
    # Another file in the same folder is free.
    with Store(f"{path}.other"):
        pass
    os.kill(pid, signal.SIGKILL)
    assert child.end() == ([], -signal.SIGKILL)
    with Store(path):
        child.start("be_locked_out", path)
        (line,), _ = child.end()
        assert f"in use by process {os.getpid()}." in line
    assert os.listdir(os.path.dirname(path)) == []


def test_file_size_limit_loses_no_generation(child, path):
    child.start("write_too_much", path, 1_000_000)
    (line,), status = child.end()
    assert status == 0
    assert line.startswith(f"Cannot write {path!r}: File too large. Free space")
    assert newest(path) == 1
    assert os.listdir(os.path.dirname(path)) == ["run.h5"]


def test_forbidden_folder_is_refused_with_a_remedy(child, path):
    os.chmod(os.path.dirname(path), 0o555)
    child.start("write_as_nobody", path)
    (line,), status = child.end()
    assert status == 0
    assert line.startswith(f"Cannot write {path!r}: Permission denied. Choose a path")
    os.chmod(os.path.dirname(path), 0o755)
