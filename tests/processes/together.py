"""Programs of several processes: started, watched, killed, and what they left.

    python -m tests.processes.together NAME FOLDER PROCESS COUNT ADDRESS ... OPTIONS

runs the function NAME of `programs.py` in one of them. The lines that it prints tell
how far it is. What it returns, a dict of arrays, is in the folder when it has ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, final

import numpy as np


ROOT: Final = Path(__file__).parents[2]

# Seconds after which JAX takes a process for dead, and seconds to the end of a test.
HEARTBEAT: Final = 10
LIMIT: Final = 240


@final
@dataclass(frozen=True)
class Ended:
    """How a process has ended."""

    status: int
    out: str
    errors: str

    @property
    def steps(self) -> list[int]:
        """The steps that it has shown."""
        return steps_in(self.out)


# Makes the command of a process from its number and its plain command.
On = Callable[[int, list[str]], list[str]]


def _here(process: int, command: list[str]) -> list[str]:
    return command


@final
class Together:
    """Some processes that run one program; those that are left are killed at exit."""

    def __init__(
        self,
        name: str,
        folder: Path,
        processes: int,
        devices: int,
        *,
        on: On = _here,
        address: str = "127.0.0.1",
        timeouts: tuple[int, int] = (LIMIT, HEARTBEAT),
        cache: Path | None = None,
        **options: Any,
    ) -> None:
        """**Arguments:**

        - `name`: what they run, a function of `programs.py`.
        - `folder`: where they leave what they have found.
        - `processes`, `devices`: how many there are, and how many devices each has.
            One process runs without `jax.distributed`.
        - `on`: makes the command of a process from its number and its plain command,
            which has the options in JSON last.
        - `address`: where the first of them is.
        - `timeouts`: `start_timeout` and `loss_timeout` of `connect_processes`.
        - `cache`: where compiled programs are kept, beside `folder` by default.
        - `options`: the arguments of the function.
        """
        folder.mkdir(exist_ok=True)
        self._folder = folder
        port = _free_port()
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(cache or folder.parent / "cache"),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        # When each of them was seen to have ended, by `time.monotonic`.
        self.ended_at: dict[int, float] = {}
        for i in range(processes):
            command = [
                *(sys.executable, "-W", "ignore", "-m", __name__),
                *(name, str(folder), str(i), str(processes), f"{address}:{port}"),
                *map(str, timeouts),
                json.dumps(options),
            ]
            # Files, and not pipes: a process must not wait until somebody reads.
            with (
                open(folder / f"out-{i}", "wb") as out,
                open(folder / f"errors-{i}", "wb") as errors,
            ):
                started = subprocess.Popen(
                    on(i, command), cwd=ROOT, env=env, stdout=out, stderr=errors
                )
            self.processes.append(started)

    def __enter__(self) -> "Together":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_for_step(self, step: int) -> None:
        """Waits until the first process has shown a step, or a later one."""
        end = time.monotonic() + LIMIT
        while max(steps_in(self._text("out", 0)), default=0) < step:
            ended = [x.poll() for x in self.processes]
            assert ended == [None] * len(ended), self._errors()
            assert time.monotonic() < end, self._errors()
            time.sleep(0.05)

    def wait_for_end_of(self, process: int, limit: float = LIMIT) -> None:
        """Waits until one of them has ended."""
        end = time.monotonic() + limit
        while self.processes[process].poll() is None:
            assert time.monotonic() < end, f"still running:\n{self._errors()}"
            time.sleep(0.05)
        self.ended_at.setdefault(process, time.monotonic())

    def end(self, limit: float = LIMIT) -> list[Ended]:
        """Waits until all of them have ended."""
        end = time.monotonic() + limit
        while len(self.ended_at) < len(self.processes):
            for i, process in enumerate(self.processes):
                if process.poll() is not None:
                    self.ended_at.setdefault(i, time.monotonic())
            assert time.monotonic() < end, f"still running:\n{self._errors()}"
            time.sleep(0.05)
        return [
            Ended(process.returncode, self._text("out", i), self._text("errors", i))
            for i, process in enumerate(self.processes)
        ]

    def found(self) -> list[dict[str, np.ndarray]]:
        """What each of them has returned, once all have ended well."""
        ended = self.end()
        assert [x.status for x in ended] == [0] * len(ended), self._errors()
        found = []
        for i in range(len(ended)):
            with np.load(self._folder / f"found-{i}.npz") as file:
                found.append(dict(file))
        return found

    def _text(self, what: str, process: int) -> str:
        return (self._folder / f"{what}-{process}").read_text("utf-8", "replace")

    def _errors(self) -> str:
        texts = [self._text("errors", i) for i in range(len(self.processes))]
        return "\n".join(f"process {i}: {x[-3000:]}" for i, x in enumerate(texts))


def found(
    name: str, folder: Path, processes: int, devices: int, **options: Any
) -> list[dict[str, np.ndarray]]:
    """What each process returns of a program that nobody disturbs."""
    with Together(name, folder, processes, devices, **options) as started:
        return started.found()


def steps_in(text: str) -> list[int]:
    """The steps that were shown in whole lines."""
    lines = [line.split() for line in text.splitlines(keepends=True) if "\n" in line]
    return [int(x[1]) for x in lines if len(x) == 2 and x[0] == "step"]


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _fail(*_: Any) -> None:
    raise LookupError("this process fails by itself")


def _main(
    name: str,
    folder: Path,
    process: int,
    count: int,
    address: str,
    start_timeout: int,
    loss_timeout: int,
    options: str,
) -> None:
    # Where tests run in the background, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, _fail)

    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if count > 1:
        import batchkit as bk

        bk.connect_processes(
            address,
            count,
            process,
            start_timeout=start_timeout,
            loss_timeout=loss_timeout,
        )

    from . import programs

    # Where it saves, if that is not the folder with what it has found.
    disk = Path(os.environ.get("DISK", folder))
    made = getattr(programs, name)(disk, **json.loads(options))
    np.savez(folder / f"found-{process}.npz", **made)
    # As a program that draws figures in one process.
    time.sleep(float(os.environ.get("LINGER", "0")))
    say("end")


if __name__ == "__main__":
    _main(
        sys.argv[1],
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5],
        int(sys.argv[6]),
        int(sys.argv[7]),
        sys.argv[8],
    )
