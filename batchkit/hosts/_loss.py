"""Explanations of errors and aborts that the loss of another process causes.

A program of several processes cannot go on without one of them. A lost process or
network shows in one of two ways. A collective fails, which is an exception; or JAX
misses heartbeats, or its connection to the first process, and calls `abort()` in a
thread of its own, with a C++ stack and exit status 134. Neither says what the user can
do. So exceptions get a note, and a handler of SIGABRT writes the same text last.
"""

import atexit
import contextlib
import ctypes
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, ParamSpec, TypeVar

import jax

from .._util._multihost import is_multiprocess


_P = ParamSpec("_P")
_T = TypeVar("_T")

# What JAX, gloo and NCCL write if a connection has failed, after the kind of error.
# Their exceptions are JaxRuntimeError or ValueError, as are many with other causes.
_FAILED: Final = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|[A-Z_]+:.*"
    "(?i:gloo|nccl|heartbeat|coordination service|socket|connection)",
    re.DOTALL,
)
_ERRORS: Final = (jax.errors.JaxRuntimeError, ValueError)

_at_abort = (
    "batchkit: JAX has ended this process, for the reason above. If a task stopped "
    "sending heartbeats, or the coordination service cannot be reached, another "
    "process has ended or the network has failed."
)
_is_lost = False


@contextlib.contextmanager
def explaining_loss(explanation: str) -> Iterator[None]:
    """Add an explanation to errors and aborts in the body that a loss causes.

    Outside of such bodies aborts have a general explanation.
    """
    global _at_abort, _is_lost
    _install()
    general = _at_abort
    # Aborts have other causes, too.
    _at_abort = f"batchkit: {explanation} JAX may name another cause above."
    try:
        yield
    except _ERRORS as error:
        if _FAILED.match(str(error)):
            error.add_note(explanation)
            _is_lost = True
        raise
    finally:
        _at_abort = general


def explains_loss(run: Callable[_P, _T]) -> Callable[_P, _T]:
    """Explain errors and aborts that the loss of a process causes during a run.

    `run` is a function with the argument `checkpoint`. With one process nothing
    changes.
    """

    @functools.wraps(run)
    def explained(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not is_multiprocess():
            return run(*args, **kwargs)
        explanation = _explanation(run.__name__, kwargs.get("checkpoint"))
        with explaining_loss(explanation):
            return run(*args, **kwargs)

    return explained


def _explanation(caller: str, checkpoint: Any) -> str:
    path = getattr(checkpoint, "path", checkpoint)
    goes_on = (
        "it was not saved, so it starts over"
        if path is None
        else f"the run goes on from {str(path)!r}"
    )
    return (
        f"{caller}: another of the {jax.process_count()} processes has ended, or the "
        f"network between them has failed; this is process {jax.process_index()}, and "
        "it cannot go on alone. Start all of them again, or those that remain: "
        f"{goes_on}."
    )


def _install() -> None:
    if _handler is None or _installed:
        return
    _installed.append(_set_handler(signal.SIGABRT, _handler))
    atexit.register(_leave)


def _leave() -> None:
    """End at once after a loss: JAX would wait for the lost process, and then abort."""
    if _is_lost:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(1)


# Python runs its own handlers of signals between two instructions of the main thread,
# and `abort()` ends the process as soon as the handler in C returns: only that one is
# in time. JAX aborts in a thread that does not hold the interpreter's lock, while
# the main thread waits for a collective without it, so Python can run here.
_handler: Any = None
# The handler from before, once ours is installed.
_installed: list[int | None] = []
if sys.platform != "win32":
    _set_handler = ctypes.CDLL(None).signal
    _set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    _set_handler.restype = ctypes.c_void_p
    _Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)

    @_Handler
    def _write_explanation(number: int) -> None:
        os.write(2, f"\n{_at_abort}\n".encode())
        before = _installed[0]
        _set_handler(number, before)
        if before not in (None, int(signal.SIG_IGN)):
            _Handler(before)(number)

    _handler = _write_explanation
