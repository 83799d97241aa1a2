"""Programs in folders of their own, with what they print in a file."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, final


EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "cluster"

# Seconds to the end of what a test waits for, on a busy machine.
LIMIT: Final = 300


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of programs that start in a folder.

    `python` is that of the tests, and every process has one device of the CPU.
    """
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return {
        **env,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def copy_example(folder: Path) -> Path:
    """Copy the example to a new folder, as a user does."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@final
class Started:
    """A program in a session of its own, all of which is killed at exit."""

    def __init__(self, folder: Path, *command: str, env: dict[str, str]) -> None:
        self._log = folder / "log"
        # A file, and not a pipe: the program must not wait until the test reads.
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in processes_of_session(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def log(self) -> str:
        """The text that it has printed, and programs before it in its folder."""
        return self._log.read_text("utf-8", "replace")

    def wait_for(self, words: str) -> None:
        """Wait until it has printed some words."""

        def is_printed() -> bool:
            ended = self.process.poll() is not None
            assert words in self.log or not ended, f"it has ended:\n{self.log}"
            return words in self.log

        wait_until(is_printed, lambda: self.log)

    def end(self) -> int:
        """Wait until it has ended, and return its status."""
        wait_until(lambda: self.process.poll() is not None, lambda: self.log)
        return self.process.wait()


def wait_until(is_true: Callable[[], bool], describe: Callable[[], str]) -> None:
    """Wait until something is true; fail with a description when that takes long."""
    end = time.monotonic() + LIMIT
    while not is_true():
        assert time.monotonic() < end, f"after {LIMIT} s:\n{describe()}"
        time.sleep(0.1)


def processes_of_session(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found: list[int] = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.getsid(pid) == session:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is a folder."""
    found: list[int] = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(folder.resolve()):
                found.append(pid)
        except OSError:  # it has ended, or is another user's
            continue
    return found


def command_of(pid: int) -> list[str]:
    """Return the command line of a process, by its parts."""
    text = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    return text.removesuffix("\0").split("\0")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def missing(*names: str) -> str:
    """Return which of some programs are not on this machine, as a reason to skip."""
    lacking = [name for name in names if find(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def find(name: str) -> str | None:
    """Return the path of a program; daemons are not on the path of all users."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"])
    return shutil.which(name, path=path)
