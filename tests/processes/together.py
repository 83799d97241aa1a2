"""Programs of several processes: started, watched, killed, and what they left.

    python -m tests.processes.together NAME FOLDER PROCESS COUNT OPTIONS

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


@final
class Together:
    """Some processes that run one program; those that are left are killed at exit."""

    def __init__(
        self, name: str, folder: Path, processes: int, devices: int, **options: Any
    ) -> None:
        """**Arguments:**

        - `name`: what they run, a function of `programs.py`.
        - `folder`: where they leave what they have found.
        - `processes`, `devices`: how many there are, and how many devices each has.
            One process runs without `jax.distributed`.
        - `options`: the arguments of the function.
        """
        folder.mkdir(exist_ok=True)
        self._folder = folder
        port = _free_port()
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        for i in range(processes):
            command = [
                *(sys.executable, "-W", "ignore", "-m", __name__),
                *(name, folder, str(i), str(processes), str(port)),
                json.dumps(options),
            ]
            # Files, and not pipes: a process must not wait until somebody reads.
            with (
                open(folder / f"out-{i}", "wb") as out,
                open(folder / f"errors-{i}", "wb") as errors,
            ):
                started = subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=out, stderr=errors
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

    def end(self, limit: float = LIMIT) -> list[Ended]:
        """Waits until all of them have ended."""
        end = time.monotonic() + limit
        for process in self.processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"still running:\n{self._errors()}") from None
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


def _main(name: str, folder: Path, process: int, count: int, port: int) -> None:
    # Where tests run in the background, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            count,
            process,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )

    from . import programs

    made = getattr(programs, name)(folder, **json.loads(sys.argv[6]))
    np.savez(folder / f"found-{process}.npz", **made)
    say("end")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))
