"""Hosts that vanish: every process says so in time, and the run goes on without them.

Each fault strikes nested sampling, chains and shards on hosts with a network between
them. `build/hosts.md` gets a row for every process: the run, the fault, the number of
the process, its status, the time from the fault to its end, and its last words; and a
row for the run that goes on, with its result beside that of an undisturbed one.
"""

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchkit.run._file import read_file

from ..processes.test_processes import Results, assert_same, assert_same_run
from ..processes.together import ROOT, Ended, Together, found
from .network import Network, missing


pytestmark = pytest.mark.slow

KINDS = ("run", "chains", "shards")
every_kind = pytest.mark.parametrize("kind", KINDS)
DEVICES = 4  # of each host, as many as the helpers of the tests need
# Seconds after which a process counts as lost, and those that a busy machine may need
# beyond what is promised.
LOSS = 10
GRACE = 10
TABLE = ROOT / "build" / "hosts.md"
OF_FUNCTIONS = {"run": "run_nested", "chains": "run_chains", "shards": "run_shards"}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := missing():
        pytest.skip(reason)
    with Network(3) as network:
        yield network


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of all tests keep their compiled programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """Results of one process on one host, computed once."""
    folder = tmp_path_factory.mktemp("hosts")
    results: dict[str, Results] = {}

    def result(kind: str) -> Results:
        if kind not in results:
            (results[kind],) = found(kind, folder / kind, 1, DEVICES)
        return results[kind]

    return result


class Fault:
    """Some processes on hosts, what strikes them, and what they say."""

    def __init__(self, network: Network, cache: Path, kind: str, name: str):
        self._network = network
        self._cache = cache
        self._kind = kind
        self._name = name
        self._struck = time.monotonic()

    def start(
        self, folder: Path, hosts: tuple[int, ...] = (0, 1), **options: Any
    ) -> Together:
        on = options.pop("on", lambda process, command: command)
        return Together(
            self._kind,
            folder,
            len(hosts),
            DEVICES,
            on=lambda i, command: self._network.on(hosts[i], *on(i, command)),
            address=self._network.addresses[hosts[0]],
            cache=self._cache,
            **{"timeouts": (60, LOSS), **options},
        )

    def strikes(self) -> None:
        self._struck = time.monotonic()

    def end(self, started: Together, limit: float = LOSS + GRACE) -> list[Ended]:
        """Wait for the end of all processes, and note what each has said."""
        ended = started.end(limit)
        for i, process in enumerate(ended):
            after = f"{started.ended_at[i] - self._struck:.0f} s"
            self._note(i, process.status, after, said(process))
        return ended

    def goes_on(self, folder: Path, expected: Results, **options: Any) -> None:
        """Run again on what remains; it must end as if nothing had happened."""
        with self.start(folder, **options) as again:
            for result in again.found():
                assert_same_result(self._kind, result, expected)
            (first, *_) = ended = again.end()
            assert "resuming " in first.errors
        name = "evidence" if self._kind == "run" else "samples"
        found, undisturbed = again.found()[0][name], expected[name]
        words = f"off by {np.max(np.abs(found - undisturbed)):.1g} from undisturbed"
        if self._kind == "run":
            words = f"log-evidence {found[0]:.12f}, {words}"
        self._note(f"on {len(ended)} hosts", 0, "", words)

    def _note(self, *cells: Any) -> None:
        TABLE.parent.mkdir(exist_ok=True)
        words = " | ".join(map(str, (self._kind, self._name, *cells)))
        with TABLE.open("a") as table:
            table.write(f"| {words} |\n")


def said(process: Ended) -> str:
    """The last line that explains a loss, else of an error, else of all."""
    if process.status in (0, -signal.SIGKILL):
        return "(the result)" if process.status == 0 else "(killed)"
    lines = [x.strip() for x in process.errors.splitlines() if x.strip()]
    explains = re.compile(r"(batchkit|connect_processes): |run_\w+: another of the ")
    explained = [x for x in lines if explains.match(x)]
    errors = [x for x in lines if re.match(r"[\w.]+Error: ", x)]
    return (explained or errors or lines or ["-"])[-1].replace("|", "/")


def assert_lost(process: Ended, kind: str) -> None:
    """It has ended with an error that says what has happened, and what to do."""
    assert process.status not in (0, -signal.SIGKILL), process
    words = f"{OF_FUNCTIONS[kind]}: another of the "
    assert words in process.errors, process.errors
    assert "processes has ended, or the network between them" in process.errors
    assert "Start all of them again, or those that remain: the run goes on" in (
        process.errors
    )


def assert_same_result(kind: str, actual: Results, expected: Results) -> None:
    if kind == "run":
        assert_same_run(actual, expected)
    else:
        assert_same(actual, expected, 1e-9)


@every_kind
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", ["killed", "frozen", "cut"])
def test_lost_host_ends_the_others_with_an_explanation(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
    kind: str,
    victim: int,
    how: str,
) -> None:
    fault = Fault(network, cache, kind, f"host {victim + 1} of 2 {how}")
    with fault.start(tmp_path, slow=0.2) as started, contextlib.ExitStack() as stack:
        started.wait_for_step(4)
        fault.strikes()
        if how == "cut":
            network.cut(victim)
            stack.callback(network.mend, victim)
        else:
            number = signal.SIGKILL if how == "killed" else signal.SIGSTOP
            started.processes[victim].send_signal(number)
        if how == "frozen":
            # As a host that hangs: its connections stay open, and nothing answers.
            started.wait_for_end_of(1 - victim, LOSS + GRACE)
            started.processes[victim].kill()
        ended = fault.end(started, GRACE if how == "killed" else LOSS + GRACE)
    survivors = [1 - victim] if how != "cut" else [0, 1]
    for i in survivors:
        assert_lost(ended[i], kind)
    assert read_file(tmp_path / "run.h5")[0]["step" if kind == "run" else "draws"] > 0
    fault.goes_on(tmp_path, undisturbed(kind), hosts=(1 - victim,))


@every_kind
@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_fails_by_itself_ends_the_others(
    network: Network, cache: Path, tmp_path: Path, kind: str, victim: int
) -> None:
    name = f"the process on host {victim + 1} raises LookupError"
    fault = Fault(network, cache, kind, name)
    with fault.start(tmp_path, slow=0.2) as started:
        started.wait_for_step(4)
        fault.strikes()
        started.processes[victim].send_signal(signal.SIGUSR1)
        ended = fault.end(started, GRACE)
    assert ended[victim].status == 1
    assert (
        ended[victim]
        .errors.rstrip()
        .endswith("LookupError: this process fails by itself")
    )
    # What the first process raises while it shows progress is raised in all.
    if "process 0 raised LookupError" not in ended[1 - victim].errors:
        assert_lost(ended[1 - victim], kind)


def test_process_that_fails_before_its_run_ends_the_others(
    network: Network, cache: Path, tmp_path: Path
) -> None:
    def on(process: int, command: list[str]) -> list[str]:
        return [*command[:-1], '{"unknown": 1}'] if process == 1 else command

    fault = Fault(network, cache, "run", "the process on host 2 fails before its run")
    with fault.start(tmp_path, on=on) as started:
        started.wait_for_end_of(1)
        fault.strikes()
        ended = fault.end(started, LOSS + GRACE)
    assert ended[1].status == 1
    assert "unexpected keyword argument 'unknown'" in ended[1].errors.splitlines()[-1]
    assert_lost(ended[0], "run")


def test_process_that_has_ended_waits_for_one_that_works_on(
    network: Network, cache: Path, tmp_path: Path
) -> None:
    def on(process: int, command: list[str]) -> list[str]:
        return ["env", f"LINGER={2 * LOSS}", *command] if process == 0 else command

    name = f"host 1 works on alone for {2 * LOSS} s after the run"
    fault = Fault(network, cache, "run", name)
    with fault.start(tmp_path, on=on) as started:
        ended = fault.end(started, 300)
    assert [x.status for x in ended] == [0, 0]
    assert all("end" in x.out.splitlines() for x in ended)


@pytest.mark.parametrize("host", [0, 1])
def test_host_whose_name_leads_nowhere_is_named(
    network: Network, cache: Path, tmp_path: Path, host: int
) -> None:
    fault = Fault(network, cache, "run", f"host {host + 1} is 127.0.1.1 for itself")
    network.name_is(host, "127.0.1.1")
    try:
        with fault.start(tmp_path) as started:
            ended = fault.end(started, 100)
    finally:
        network.name_is(host, network.addresses[host])
    for i, process in enumerate(ended):
        assert process.status not in (0, -signal.SIGKILL)
        assert "reach the first one, but not each other" in process.errors
        address = "127.0.1.1" if i == host else network.addresses[i]
        assert f"'host{i + 1}': {address}. Where others" in process.errors


@every_kind
def test_two_of_three_hosts_go_on(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
    kind: str,
) -> None:
    fault = Fault(network, cache, kind, "host 3 of 3 killed")
    with fault.start(tmp_path, (0, 1, 2), slow=0.2) as started:
        started.wait_for_step(4)
        fault.strikes()
        started.processes[2].kill()
        ended = fault.end(started, GRACE)
    for process in ended[:2]:
        assert_lost(process, kind)
    fault.goes_on(tmp_path, undisturbed(kind), hosts=(0, 1))


@every_kind
@pytest.mark.parametrize("how", ["cut for 20 s", "slow, 50 ms and 5 % lost"])
def test_bad_network_is_waited_for(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
    kind: str,
    how: str,
) -> None:
    fault = Fault(network, cache, kind, f"link of host 2 {how}")
    options = {"slow": 0.2, "timeouts": (60, 60)}
    with fault.start(tmp_path, **options) as started:
        started.wait_for_step(4)
        fault.strikes()
        if how.startswith("slow"):
            with network.slow(1, delay=0.05, loss=0.05):
                started.wait_for_step(6)
        else:
            network.cut(1)
            try:
                time.sleep(20)
            finally:
                network.mend(1)
        fault.end(started, 300)
        for result in started.found():
            assert_same_result(kind, result, undisturbed(kind))


@every_kind
def test_late_host_is_waited_for(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
    kind: str,
) -> None:
    fault = Fault(network, cache, kind, "host 2 starts 15 s late")
    with fault.start(tmp_path, on=_late(15)) as started:
        fault.end(started, 300)
        for result in started.found():
            assert_same_result(kind, result, undisturbed(kind))


def test_host_that_is_too_late_is_named(
    network: Network, cache: Path, tmp_path: Path
) -> None:
    fault = Fault(network, cache, "run", "host 2 starts after start_timeout (15 s)")
    with fault.start(tmp_path, on=_late(40), timeouts=(15, LOSS)) as started:
        ended = fault.end(started, 100)
    for process in ended:
        assert process.status not in (0, -signal.SIGKILL)
        assert "the processes did not meet within 15 s" in process.errors


def _late(seconds: int) -> Callable[[int, list[str]], list[str]]:
    def on(process: int, command: list[str]) -> list[str]:
        wait = f'sleep {seconds}; exec "$@"'
        return ["sh", "-c", wait, "sh", *command] if process == 1 else command

    return on


@every_kind
def test_other_likelihood_is_refused(
    network: Network, cache: Path, tmp_path: Path, kind: str
) -> None:
    def on(process: int, command: list[str]) -> list[str]:
        return [*command[:-1], '{"other": true}'] if process == 1 else command

    fault = Fault(network, cache, kind, "host 2 has another likelihood")
    with fault.start(tmp_path, on=on) as started:
        ended = fault.end(started, 100)
    name = "log-density" if kind == "chains" else "likelihood"
    for process in ended:
        assert process.status == 1
        assert f"2 processes take part in one run, and do not agree on its {name}" in (
            process.errors
        )


def test_other_version_is_refused(
    network: Network, cache: Path, tmp_path: Path
) -> None:
    record = tmp_path / "other" / "batchkit_jax-99.0.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: batchkit-jax\nVersion: 99.0\n")

    def on(process: int, command: list[str]) -> list[str]:
        other = ["env", f"PYTHONPATH={record.parents[1]}"] if process == 1 else []
        return [*other, *command]

    fault = Fault(network, cache, "run", "host 2 has another version of batchkit")
    with fault.start(tmp_path / "run", on=on) as started:
        ended = fault.end(started, 100)
    for process in ended:
        assert process.status == 1
        assert "process 1 has batchkit 99.0" in process.errors
        assert "Install the same in each of them" in process.errors


@every_kind
def test_full_disk_ends_all_with_an_error(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
    kind: str,
) -> None:
    disk = tmp_path / "disk"
    fault = Fault(network, cache, kind, "the disk of host 1 is full")
    on = lambda process, command: ["env", f"DISK={disk}", *command]
    with _small_disk(disk):
        with fault.start(tmp_path / "run", slow=0.2, on=on) as started:
            started.wait_for_step(4)
            fault.strikes()
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(2**16))
            ended = fault.end(started, GRACE)
        for process in ended:
            assert process.status == 1
            assert "CheckpointError" in process.errors
            assert "No space left on device" in process.errors
        filler.unlink()
        read_file(disk / "run.h5")
        fault.goes_on(tmp_path / "again", undisturbed(kind), on=on)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_only_the_first_host_needs_the_file_system(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
) -> None:
    """Where each host has a disk of its own, that of the first one has the file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    for host in range(2):
        (tmp_path / f"of host {host}").mkdir()

    def of_host(hosts: tuple[int, ...]) -> Callable[[int, list[str]], list[str]]:
        def on(process: int, command: list[str]) -> list[str]:
            own = tmp_path / f"of host {hosts[process]}"
            mount = f'mount --bind "{own}" "{disk}" && exec "$@"'
            return ["env", f"DISK={disk}", "sh", "-c", mount, "sh", *command]

        return on

    fault = Fault(network, cache, "run", "host 2 killed, host 1 alone has the file")
    with fault.start(tmp_path / "run", slow=0.2, on=of_host((0, 1))) as started:
        started.wait_for_step(4)
        fault.strikes()
        started.processes[1].kill()
        ended = fault.end(started, GRACE)
    assert_lost(ended[0], "run")
    assert list((tmp_path / "of host 1").iterdir()) == []
    fault = Fault(network, cache, "run", "gone on with host 2 first, without the file")
    with fault.start(tmp_path / "swapped", (1, 0), on=of_host((1, 0))) as swapped:
        ended = fault.end(swapped, 100)
    for process in ended:
        assert process.status == 1
        assert "process 1 on host1 has a checkpoint" in process.errors
    fault.goes_on(tmp_path / "again", undisturbed("run"), on=of_host((0, 1)))


def test_lock_of_a_lost_host_is_told_from_one_of_a_live_host(
    network: Network,
    cache: Path,
    undisturbed: Callable[[str], Results],
    tmp_path: Path,
) -> None:
    expected = undisturbed("run")
    fault = Fault(network, cache, "run", "a run on host 1 lives, host 2 starts it too")
    disk = tmp_path / "disk"
    disk.mkdir()
    on = lambda process, command: ["env", f"DISK={disk}", *command]
    with fault.start(tmp_path / "first", (0,), on=on, slow=1.0) as first:
        first.wait_for_step(4)
        fault.strikes()
        with fault.start(tmp_path / "refused", (1,), on=on) as second:
            (refused,) = fault.end(second, 100)
        assert refused.status == 1
        pid = first.processes[0].pid
        assert f"is in use by process {pid} on host1" in refused.errors

        fault = Fault(network, cache, "run", "host 1 is frozen, host 2 starts its run")
        first.processes[0].send_signal(signal.SIGSTOP)
        fault.strikes()
        with fault.start(tmp_path / "second", (1,), on=on) as second:
            (ended,) = fault.end(second, 200)
            assert f"no sign of life of process {pid} on host1" in ended.errors
            assert "resuming " in ended.errors
            assert_same_run(second.found()[0], expected)

        fault = Fault(network, cache, "run", "host 1 comes back while host 2 runs")
        with fault.start(
            tmp_path / "third", (1,), on=on, fraction=1e-3, slow=1.0
        ) as third:
            third.wait_for_step(1)
            fault.strikes()
            first.processes[0].send_signal(signal.SIGCONT)
            (ended,) = fault.end(first)
        assert ended.status == 1
        assert "was taken over by process" in ended.errors
