"""Explanations of errors and aborts that the loss of another process causes.

A program of several processes cannot go on without one of them. A lost process or
network shows in one of two ways. A collective fails, which is an exception; or JAX
misses heartbeats, or its connection to the first process, and calls `abort()` in a
thread of its own, with a C++ stack and exit status 134. Neither says what the user can
do. So exceptions get a note, and a handler of SIGABRT writes the same text last.

A process that an exception has ended, that one or another, leaves at once. JAX would
let it wait for the others, which in turn wait for it in a collective.
"""

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, ParamSpec, TypeVar

import jax

from .._util._multihost import is_first_process, is_multiprocess


_P = ParamSpec("_P")
_T = TypeVar("_T")

# What JAX, gloo and NCCL write if a connection has failed. Their exceptions are
# JaxRuntimeError or ValueError, as are many with other causes.
_FAILED: Final = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|(UNKNOWN|INTERNAL|FAILED_PRECONDITION):.*"
    "(gloo|nccl|heartbeat|coordination service|remote process exited|network error"
    "|communicator|connection (closed|reset|refused)|broken pipe|socket closed)",
    re.DOTALL | re.IGNORECASE,
)
# In errors of functions that JAX calls back, which may be about any connection.
_OF_CALLBACK: Final = re.compile("callback|Traceback", re.IGNORECASE)
_ERRORS: Final = (jax.errors.JaxRuntimeError, ValueError)
# Seconds for which the first process lets the others write what they have to say. JAX
# aborts them when it ends.
_FIRST_WAITS: Final = 3.0

_at_abort = (
    "batchkit: unless another cause stands above, another process has ended, or the "
    "network has failed."
)


def is_loss(error: BaseException) -> bool:
    """Return True if an exception looks as if the loss of a process were its cause."""
    text = str(error)
    is_match = isinstance(error, _ERRORS) and _FAILED.match(text) is not None
    return is_match and _OF_CALLBACK.search(text) is None


@contextlib.contextmanager
def explaining_loss(explanation: str) -> Iterator[None]:
    """Add an explanation to errors and aborts in the body that a loss causes.

    Outside of such bodies aborts have a general explanation.
    """
    global _at_abort
    _install()
    general = _at_abort
    _at_abort = f"batchkit: unless another cause stands above: {explanation}"
    try:
        yield
    except _ERRORS as error:
        if is_loss(error):
            error.add_note(explanation)
        raise
    finally:
        _at_abort = general


def explains_loss(run: Callable[_P, _T]) -> Callable[_P, _T]:
    """Explain errors and aborts that the loss of a process causes during a run.

    `run` is a function with the arguments `checkpoint` and `fresh`. With one process
    nothing changes.
    """

    @functools.wraps(run)
    def explained(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not is_multiprocess():
            return run(*args, **kwargs)
        fresh = kwargs.get("fresh") is True
        explanation = _explanation(run.__name__, kwargs.get("checkpoint"), fresh)
        with explaining_loss(explanation):
            return run(*args, **kwargs)

    return explained


def _explanation(caller: str, checkpoint: Any, fresh: bool) -> str:
    path = getattr(checkpoint, "path", checkpoint)
    goes_on = "it was not saved, so it starts over"
    if isinstance(path, str | os.PathLike):
        goes_on = f"the run goes on from {os.path.realpath(str(path))!r}"
    return (
        f"{caller}: another of the {jax.process_count()} processes has ended, or the "
        f"network between them has failed; this is process {jax.process_index()}, and "
        "it cannot go on alone. Start all of them again, or those that remain"
        f"{', without `fresh=True`' if fresh else ''}: {goes_on}."
    )


def _leave() -> None:
    """End one of several processes at once that an exception has ended."""
    if not jax.distributed.is_initialized() or not is_multiprocess():
        return
    error = getattr(sys, "last_value", None)  # the uncaught exception
    if error is None or isinstance(error, KeyboardInterrupt):
        return
    if is_first_process() and not is_loss(error):
        time.sleep(_FIRST_WAITS)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(1)


# Handlers that are registered later run earlier: those of users, but not JAX's.
atexit.register(_leave)


# Python runs its own handlers of signals between two instructions of the main thread,
# and `abort()` ends the process as soon as the handler in C returns: only that one is
# in time. JAX aborts in a thread that does not hold the interpreter's lock, while the
# main thread waits for a collective without it, so Python can run here. Should the main
# thread hold the lock, the process ends when it releases it.
_handler: Any = None
# The process in which the handler is installed, and the handler before.
_installed: list[tuple[int, int | None]] = []
if sys.platform != "win32":
    _libc = ctypes.CDLL(None)
    _set_handler = _libc.signal
    _set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    _set_handler.restype = ctypes.c_void_p
    _raise = getattr(_libc, "raise")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def _write_explanation(number: int) -> None:
        process, before = _installed[-1]
        if process == os.getpid():  # not in a fork of it
            os.write(2, f"\n{_at_abort}\n".encode())
        _set_handler(number, before)
        # For the handler before, when this one returns; `abort` raises only once more.
        _raise(number)

    _handler = _write_explanation


def _install() -> None:
    if _handler is not None and not _installed:
        before = _set_handler(signal.SIGABRT, _handler)
        _installed.append((os.getpid(), before))


def uninstall() -> None:
    """Restore the handler of SIGABRT from before, where there is one process."""
    if _installed:
        _set_handler(signal.SIGABRT, _installed.pop()[1])
