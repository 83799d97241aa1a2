"""Processes that can be killed, locked out and interrupted.

Importing the package takes longer than most tests. So one process imports it, and forks
for each child; it has started no thread of JAX's, and its children use none. A child
prints lines; the last one is `exit` and its status, below zero for a signal.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from batchkit.run._checkpoint import CheckpointError
from batchkit.run._file import decode
from batchkit.run._saving import Interruptible
from batchkit.run._store import Store


class Children:
    """A handle on the process that forks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, what: str, *args: Any) -> int:
        """Start a child and return its id."""
        assert self._process.stdin is not None
        print(json.dumps([what, *args]), file=self._process.stdin, flush=True)
        return int(self.line())

    def line(self) -> str:
        """Return the next line that the child prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the child is gone"
        return line.rstrip("\n")

    def end(self) -> tuple[list[str], int]:
        """Wait for the child, and return its other lines and its status."""
        lines = [self.line()]
        while not lines[-1].startswith("exit "):
            lines.append(self.line())
        return lines[:-1], int(lines[-1].split()[1])


@contextmanager
def children() -> Iterator[Children]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", __name__],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Children(process)
        finally:
            # Also ends a child that a failed test has left running.
            os.killpg(process.pid, signal.SIGKILL)


def generation(step: int, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays of a generation, filled with its number."""
    arrays = {f"state/{i}": np.full(size // 16, step) for i in range(2)}
    return {"step": step}, arrays


def step_of(header: dict[str, Any], arrays: dict[str, Any]) -> int:
    """Return the number of a generation, if it is complete."""
    step = header["step"]
    assert set(arrays) == {"state/0", "state/1"}
    for array in arrays.values():
        assert (array == step).all()
    return step


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def write_for_ever(path: str, size: int) -> None:
    with Store(path) as store:
        found = store.read()
        step = step_of(*decode(*found)) if found else 0
        while True:
            step += 1
            header, arrays = generation(step, size)
            say("begin", step)
            store.write(header, arrays)
            say("end", step)


def write_and_die(path: str, at: int, before: bool) -> None:
    """Write one generation, and be killed at one of its system calls."""
    calls = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if before and calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for name in ("open", "close", "fsync", "link", "replace", "unlink", "ftruncate"):
        setattr(os, name, deadly(getattr(os, name)))
    with Store(path) as store:
        found = store.read()
        step = step_of(*decode(*found)) if found else 0
        store.write(*generation(step + 1, 1000))


def write_too_much(path: str, limit: int) -> None:
    """Write until the system refuses to let a file grow."""
    with Store(path) as store:
        store.write(*generation(1, 1000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            store.write(*generation(2, 2 * limit))
        except CheckpointError as error:
            say(error)


def write_as_nobody(path: str) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        with Store(path):
            pass
    except CheckpointError as error:
        say(error)


def be_locked_out(path: str) -> None:
    try:
        with Store(path):
            pass
    except CheckpointError as error:
        say(error)


def hold(path: str) -> None:
    with Store(path):
        say("held")
        time.sleep(60)


def interruptible() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruptible() as interrupts:
        say("ready")
        while interrupts.requested is None:
            time.sleep(0.001)
        say("requested", interrupts.requested.name)
        for _ in range(100):
            time.sleep(0.01)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    say("left")


def interrupted_afterwards() -> None:
    with Interruptible() as interrupts:
        pass
    say("ready")
    time.sleep(60)
    say(interrupts.requested)


def interruptible_but_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruptible() as interrupts:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
        say(interrupts.requested)
    say(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


def interruptible_in_a_thread() -> None:
    before = signal.getsignal(signal.SIGINT)

    def run() -> None:
        with Interruptible() as interrupts:
            say(signal.getsignal(signal.SIGINT) == before, interrupts.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def interruptible_with_other_handlers() -> None:
    """The earlier handler gets the second signal; one that is set inside stays."""
    signal.signal(signal.SIGTERM, lambda *_: say("before"))
    with Interruptible() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        say(interrupts.requested == signal.SIGTERM)
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)
    with Interruptible():
        signal.signal(signal.SIGTERM, lambda *_: say("inside"))
    signal.raise_signal(signal.SIGTERM)


def _child(what: str, args: list[Any]) -> None:
    status = 1
    say(os.getpid())
    try:
        globals()[what](*args)
        status = 0
    except KeyboardInterrupt:
        say("KeyboardInterrupt")
    finally:
        # Skip the clean-up of the process that it was forked from.
        os._exit(status)


def _main() -> None:
    # Where tests run in the background, Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        what, *args = json.loads(line)
        if (pid := os.fork()) == 0:
            _child(what, args)
        say("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    _main()
