"""Tracing a function as a user would jit it, and recording the sites that it reaches.

The functions and vmaps of the user must not be changed or wrapped. A profiler set by
`sys.setprofile` observes their calls; a profiler that was set before is restored.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import Token
from types import FrameType
from typing import Any, final

import equinox as eqx
import jax

from .._util._multihost import single_process
from ..batchers._call import Call, bytes_per_task, mapped_leaves
from ..batchers._trace_log import (
    LogEntry,
    current_entry,
    enter,
    leave,
    site_of_frame,
    start_log,
    under_axis,
)
from ..rebuild._vmaps import CODE_OF_BOUNDARY, CODE_OF_MAPPED


def trace(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> jax.stages.Traced:
    """Trace `fun` for arguments or their shapes, as `jax.jit` would.

    Arguments that are not arrays, such as Python numbers or functions, are constants of
    the program, unless `fun` is already jitted.
    """
    with single_process():
        if isinstance(fun, jax.stages.Wrapped):  # made by jax.jit
            return fun.trace(*args, **kwargs)
        arrays, static = eqx.partition((args, kwargs), _is_array)

        def on_arrays(arrays: Any) -> Any:
            args, kwargs = eqx.combine(arrays, static)
            return fun(*args, **kwargs)

        return jax.jit(on_arrays).trace(arrays)


def trace_uncached(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> jax.stages.Traced:
    """Trace like `trace`, but trace jitted functions inside of `fun` again as well."""
    # Under a new axis name there are no cached traces, which would reach no site.
    return under_axis(object(), lambda: trace(fun, args, kwargs))


@contextlib.contextmanager
def recording() -> Iterator[LogEntry]:
    """Record the sites that are reached by traces in the body.

    Yields the root of the log, which fills while the body runs.
    """
    root = LogEntry(None)
    previous = sys.getprofile()
    # Before Python 3.12 this may be a `cProfile` object, which `sys.setprofile` cannot
    # set again. It has to be disabled and enabled.
    profile: Any = None if callable(previous) else previous
    if profile is not None:
        profile.disable()
    token = start_log(root)
    sys.setprofile(_Observer())
    try:
        yield root
    finally:
        leave(token)
        sys.setprofile(previous if profile is None else None)
        if profile is not None:
            profile.enable()


@final
class _Observer:
    """A profiler: called at every call of a Python function in this thread."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # of the user's functions, by id of their code
        self._names_source: object = None
        self._num_names = 0
        self._open: list[tuple[FrameType, Token[LogEntry | None]]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and self._open and self._open[-1][0] is frame:
            leave(self._open.pop()[1])
        entry = current_entry()
        if event != "call" or entry is None:
            return
        if frame.f_code is CODE_OF_MAPPED:
            vmap = _plain_vmap(frame, entry)
            if vmap is not None:
                self._open.append((frame, enter(vmap)))
            return
        # A lookup by id: hashing a code object takes longer than all else here.
        users = entry.user_functions
        if self._names_source is not users or self._num_names != len(users):
            self._names_source, self._num_names = users, len(users)
            self._names = {id(code): name for code, name in list(users.items())}
        name = self._names.get(id(frame.f_code))
        if name is not None and name not in entry.called:
            entry.called.append(name)


def _plain_vmap(frame: FrameType, outer: LogEntry) -> LogEntry | None:
    """Describe a call of a vmap that no batcher runs: a user's, or one left as it is.

    Returns None for a vmap that is a part of a batcher or of JAX.
    """
    caller = frame.f_back
    if caller is not None and caller.f_code is CODE_OF_BOUNDARY:
        caller = caller.f_back
    if caller is None:
        return None
    values = frame.f_locals
    fun = values["fun"]
    of_batcher = _module(caller) == Call.__module__ or _is_ours(fun)
    if of_batcher or (_is_jax(caller) and _is_jax(fun)):
        return None
    while caller.f_back is not None and (_is_jax(caller) or _is_ours(caller)):
        caller = caller.f_back
    in_axes, arguments = values["in_axes"], (values["args"], values["kwargs"])
    try:
        mapped = mapped_leaves((in_axes, 0), arguments)
        sizes = [leaf.shape[axis] for leaf, axis in mapped]
    except (ValueError, TypeError, IndexError, AttributeError):
        return None  # wrong arguments: `jax.vmap` is about to raise its error
    tasks = sizes[0] if sizes else values["axis_size"] or 0
    name = getattr(fun, "__qualname__", type(fun).__name__)
    return LogEntry(
        site_of_frame(caller, f"jax.vmap of {name}"),
        tasks=tasks,
        bytes_in=bytes_per_task(mapped, tasks),
        note="not rebuilt, stays as it is",
        user_functions=outer.user_functions,
    )


def _module(source: Any) -> str:
    """Name the module of a frame or of a function."""
    if isinstance(source, FrameType):
        return str(source.f_globals.get("__name__"))
    return str(getattr(source, "__module__", None))


def _is_jax(source: Any) -> bool:
    return _module(source).split(".")[0] in ("jax", "functools")


def _is_ours(source: Any) -> bool:
    return _module(source).split(".")[0] in ("batchkit", "jaxtyping", "beartype")


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
