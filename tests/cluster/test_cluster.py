"""The example for clusters: one program and three ways to start it on many hosts."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchkit as bk

from . import slurm, ssh
from .programs import (
    Started,
    command_of,
    copy_example,
    environment,
    missing,
    processes_in,
    wait_until,
)
from .slurm import Slurm


# Printed before the first step, when all processes have begun the run.
BEGUN = "compiled steps"


def log_evidence(folder: Path) -> float:
    run = bk.NestedRun.load(folder / "result.h5")
    assert run.converged
    return run.log_evidence


def is_process(command: list[str], number: str) -> bool:
    """Return True for the command of a process of the fit, and not of its shell."""
    return command[1:2] == ["fit.py"] and command[-2:] == ["--process", number]


def assert_resumed_once(log: str) -> None:
    (step,) = re.findall(r"resuming .*run\.h5, saved .* after step (\d+)", log)
    assert int(step) > 0
    assert log.count("SIGTERM: saved to") == 1
    assert "2 devices of 16" in log


def assert_all_ended(folder: Path) -> None:
    wait_until(
        lambda: processes_in(folder) == [],
        lambda: f"processes {processes_in(folder)} are left",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all tests, which share compiled programs."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def expected(folder: Path) -> float:
    """The log-evidence of an undisturbed run in one process."""
    place = copy_example(folder / "one process")
    with Started(place, "python", "fit.py", env=environment(place)) as started:
        assert started.end() == 0, started.log
        assert "resuming" not in started.log
    return log_evidence(place)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Slurm]:
    if reason := slurm.why_not():
        pytest.skip(reason)
    with Slurm(folder / "slurm") as started:
        yield started


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ssh.Server]:
    if reason := ssh.why_not():
        pytest.skip(reason)
    with ssh.Server(folder / "sshd") as started:
        yield started


# What the node of the tests has, instead of what the script asks for.
NODE = "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2"


@pytest.mark.slow
def test_slurm_job_resumes_after_sigterm(
    folder: Path, cluster: Slurm, expected: float
) -> None:
    place = copy_example(folder / "slurm signal")
    job = cluster.submit(place, *NODE, "slurm.sh")
    job.wait_for(BEGUN)
    job.signal("TERM")
    job.wait_for_restart()
    assert job.end() == "COMPLETED", job.log
    assert_resumed_once(job.log)
    assert log_evidence(place) == pytest.approx(expected, abs=1e-9)
    assert_all_ended(place)


@pytest.mark.slow
def test_slurm_job_is_queued_again_at_its_time_limit(
    folder: Path, cluster: Slurm
) -> None:
    """The signal is that of the script. The second start is cancelled, for good."""
    place = copy_example(folder / "slurm limit")
    # So many live points that the run has not ended by then.
    job = cluster.submit(place, *NODE, "slurm.sh", "--live-points=50000")
    job.wait_for(BEGUN)
    # From one to two minutes are left, so the signal is due. SLURM looks for limits
    # every 30 seconds.
    job.limit_minutes(job.minutes() + 2)
    job.wait_for_restart()
    # The limit is that from before, and on a busy machine would end this start, too.
    job.limit_minutes(60)
    assert "SIGTERM: saved to" in job.log
    job.wait_for("resuming ")
    job.cancel()
    assert job.end() == "CANCELLED"
    assert job.field("Restarts") == "1"
    assert_all_ended(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "is_repeated"),
    [
        ("touch run.h5; kill -TERM $$", True),
        # A job that has saved nothing.
        ("kill -TERM $$", False),
        # An error after the run was saved; the others go on.
        ("touch run.h5; test $SLURM_PROCID = 0 || exit 1; sleep 2", False),
        ("touch run.h5; kill -KILL $$", False),
        ("touch run.h5; exit 0", False),
    ],
)
def test_slurm_job_is_queued_again_after_sigterm_only(
    tmp_path: Path, cluster: Slurm, program: str, is_repeated: bool
) -> None:
    place = copy_example(tmp_path / "job")
    stub = place / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\necho started\n{program}\n")
    stub.chmod(0o755)
    path = os.pathsep.join([str(stub.parent), cluster.env["PATH"]])
    job = cluster.submit(place, *NODE, f"--export=ALL,PATH={path}", "slurm.sh")
    if is_repeated:
        job.wait_for_restart()
        job.cancel()
        assert job.end() == "CANCELLED"
    else:
        state = "COMPLETED" if "exit 0" in program else "FAILED"
        assert job.end() == state, job.log
        assert job.field("Restarts") == "0"
    assert "started" in job.log


@pytest.mark.slow
def test_mpirun_resumes_after_sigterm(folder: Path, expected: float) -> None:
    if reason := missing("mpirun"):
        pytest.skip(reason)
    place = copy_example(folder / "mpirun")
    env = {
        **environment(place),
        # Open MPI refuses to run as root, and two processes on one core, without them.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    command = "sh", "mpirun.sh", "-n", "2"
    with Started(place, *command, env=env) as started:
        started.wait_for(BEGUN)
        # mpirun alone would pass it on after ten seconds.
        for pid in processes_in(place):
            os.kill(pid, signal.SIGTERM)
        assert started.end() != 0, started.log
        assert_all_ended(place)
    with Started(place, *command, env=env) as started:
        assert started.end() == 0, started.log
        assert_resumed_once(started.log)
    assert log_evidence(place) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_ssh_resumes_after_sigterm(
    folder: Path, server: ssh.Server, expected: float
) -> None:
    # A name that has to be quoted.
    place = copy_example(folder / "by ssh, it's $HOME")
    command = "bash", "ssh.sh", "localhost", "127.0.0.1"
    with Started(place, *command, env=server.env) as started:
        started.wait_for(BEGUN)
        started.process.terminate()
        assert started.end() == 128 + signal.SIGTERM, started.log
        assert_all_ended(place)
    with Started(place, *command, env=server.env) as started:
        assert started.end() == 0, started.log
        assert_resumed_once(started.log)
    assert log_evidence(place) == pytest.approx(expected, abs=1e-9)
    assert_all_ended(place)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process 0", "process 1", "ssh.sh"])
def test_ssh_ends_all_when_one_is_killed(
    folder: Path, server: ssh.Server, victim: str
) -> None:
    place = copy_example(folder / f"by ssh, {victim} killed")
    command = "bash", "ssh.sh", "localhost", "127.0.0.1"
    with Started(place, *command, env=server.env) as started:
        started.wait_for(BEGUN)
        if victim == "ssh.sh":
            started.process.kill()
            wait_until(lambda: "SIGTERM: saved to" in started.log, lambda: started.log)
        else:
            (pid,) = [
                pid
                for pid in processes_in(place)
                if is_process(command_of(pid), victim.removeprefix("process "))
            ]
            os.kill(pid, signal.SIGKILL)
            assert started.end() != 0, started.log
            assert "a process has ended with status" in started.log
        assert_all_ended(place)
