"""Errors that the loss of a process causes, aborts, and the end of a process."""

import os
import signal
import subprocess
import sys

import jax
import pytest

from batchkit.hosts._loss import _explanation, is_loss


# Of JAX 0.10.2 with gloo, and of reports on NCCL.
LOSSES = [
    "UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:547] closed by peer",
    "UNKNOWN: Gloo context initialization failed: timed out connecting",
    "UNAVAILABLE: Task 1 heartbeat timeout.",
    "DEADLINE_EXCEEDED: Barrier timed out",
    "ABORTED: Peer task 1 is in error",
    "INTERNAL: NCCL operation ncclAllGather(...) failed: remote process exited",
    "INTERNAL: remote process exited or there was a network error",
    "INTERNAL: Communicator aborted",
    "FAILED_PRECONDITION: Buffer Definition Event: Gloo AllReduce failed",
]
OTHERS = [
    "INVALID_ARGUMENT: the shape of connection_length is wrong",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate; nccl",
    "INTERNAL: CpuCallback error calling callback: Traceback ... ConnectionError: gone",
    "UNKNOWN: CpuCallback error: FileNotFoundError: /data/gloo/x.npy",
    "INTERNAL: Unable to solve",
    "the network has 3 layers: connection reset",
]


@pytest.mark.parametrize("text", LOSSES)
def test_errors_of_a_lost_connection_are_recognised(text: str) -> None:
    assert is_loss(jax.errors.JaxRuntimeError(text))
    assert is_loss(ValueError(text))
    assert not is_loss(TypeError(text))


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_are_not_taken_for_a_loss(text: str) -> None:
    assert not is_loss(jax.errors.JaxRuntimeError(text))
    assert not is_loss(ValueError(text))


def test_explanation_says_how_to_go_on(tmp_path) -> None:
    path = tmp_path / "run.h5"
    goes_on = f"those that remain: the run goes on from {str(path)!r}."
    assert _explanation("run_nested", path, fresh=False).endswith(goes_on)
    without = "those that remain, without `fresh=True`: the run goes on"
    assert without in _explanation("run_nested", path, fresh=True)
    starts_over = "those that remain: it was not saved, so it starts over."
    for nowhere in (None, 3):  # the run refuses the second
        assert _explanation("run_nested", nowhere, fresh=False).endswith(starts_over)


# One of several processes, as far as the file knows.
SEVERAL = """
import atexit, ctypes, faulthandler, os, signal, sys, threading
import jax
atexit.register(lambda: print("before the import"))
from batchkit.hosts import _loss

jax.distributed.is_initialized = lambda: True
_loss.is_multiprocess = lambda: True
_loss.is_first_process = lambda: False
atexit.register(lambda: print("after the import"))
"""
LOSS = 'jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout.")'


def _run(program: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-c", SEVERAL + program],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    "abort",
    [
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGABRT)",
        "t = threading.Thread(target=ctypes.CDLL(None).abort); t.start(); t.join()",
    ],
)
@pytest.mark.parametrize("dumps", [False, True])
def test_abort_is_explained_and_still_ends_the_process(abort: str, dumps: bool) -> None:
    program = f"""
if {dumps}:
    faulthandler.enable()
with _loss.explaining_loss("the advice"):
    {abort}
"""
    status, _, errors = _run(program)
    assert status == -signal.SIGABRT
    assert "batchkit: unless another cause stands above: the advice" in errors
    assert ("Fatal Python error: Aborted" in errors) == dumps


def test_abort_of_a_fork_is_not_explained() -> None:
    program = """
with _loss.explaining_loss("the advice"):
    child = os.fork()
    if child == 0:
        os.abort()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGABRT
"""
    assert _run(program) == (0, "after the import\nbefore the import\n", "")


@pytest.mark.parametrize("error", [LOSS, 'LookupError("of the user")'])
def test_process_that_an_exception_ends_leaves_at_once(error: str) -> None:
    status, out, errors = _run(f"""
with _loss.explaining_loss("the advice"):
    raise {error}
""")
    assert status == 1
    # JAX, which would wait for the others, comes before the import, too.
    assert out == "after the import\n"
    assert errors.rstrip().endswith("the advice") == (error == LOSS)


@pytest.mark.parametrize("error", [LOSS, 'LookupError("of the user")'])
def test_first_process_waits_for_the_words_of_others_unless_one_is_lost(
    error: str,
) -> None:
    status, out, _ = _run(f"""
_loss.is_first_process = lambda: True
_loss.time.sleep = lambda seconds: print(f"waits for {{seconds:.0f}} s")
raise {error}
""")
    assert status == 1
    waits = "" if error == LOSS else "waits for 3 s\n"
    assert out == f"after the import\n{waits}"


def test_caught_exception_leaves_the_status_as_it_is() -> None:
    program = f"""
try:
    with _loss.explaining_loss("the advice"):
        raise {LOSS}
except RuntimeError as error:
    assert error.__notes__ == ["the advice"]
    sys.exit(75)
"""
    assert _run(program) == (75, "after the import\nbefore the import\n", "")
