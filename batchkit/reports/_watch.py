"""Watching one trace: the user's functions and vmaps that it calls.

Neither may be changed or wrapped, so they are seen the way a profiler sees them. What
`sys.setprofile` had been set to before is put back.
"""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import Token
from types import FrameType
from typing import Any, final

import jax

from ..batchers import Site
from ..batchers._call import Call, leaf_axes
from ..batchers._watching import (
    Reached,
    bytes_per_task,
    enter,
    innermost,
    leave,
    start,
)
from ..rebuild._vmaps import CODE_OF_BOUNDARY, CODE_OF_MAPPED


@contextlib.contextmanager
def watching() -> Iterator[Reached]:
    """Yields a record that fills with everything that the body's traces reach."""
    root = Reached(None)
    observer = _Observer()
    token = start(root)
    with _profiler_replaced_by(observer):
        try:
            yield root
        finally:
            leave(token)


@contextlib.contextmanager
def _profiler_replaced_by(observer: Any) -> Iterator[None]:
    previous = sys.getprofile()
    # Before Python 3.12, this may be the object of `cProfile`, which only it can set.
    profile: Any = None if callable(previous) else previous
    if profile is not None:
        profile.disable()
    sys.setprofile(observer)
    try:
        yield
    finally:
        sys.setprofile(previous if profile is None else None)
        if profile is not None:
            profile.enable()


@final
class _Observer:
    """Is told of every call of a Python function in this thread."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # of the user's functions, by their code's id
        self._names_of: object = None
        self._known = 0
        self._open: list[tuple[FrameType, Token[Reached | None]]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and self._open and self._open[-1][0] is frame:
            leave(self._open.pop()[1])
        reached = innermost()
        if event != "call" or reached is None:
            return
        if frame.f_code is CODE_OF_MAPPED:
            vmap = _untouched_vmap(frame, reached)
            if vmap is not None:
                self._open.append((frame, enter(vmap)))
            return
        if self._names_of is not reached.known or self._known != len(reached.known):
            self._names_of, self._known = reached.known, len(reached.known)
            self._names = {id(code): name for code, name in list(reached.known.items())}
        name = self._names.get(id(frame.f_code))
        if name is not None and name not in reached.functions:
            reached.functions.append(name)


def _untouched_vmap(frame: FrameType, outer: Reached) -> Reached | None:
    """A vmap that no batcher runs: the user's, or one that was left alone."""
    caller = frame.f_back
    if caller is not None and caller.f_code is CODE_OF_BOUNDARY:
        caller = caller.f_back
    if caller is None:
        return None
    values = frame.f_locals
    fun = values["fun"]
    if (
        _module(caller) == Call.__module__
        or _is_ours(fun)
        or (_is_jax(caller) and _is_jax(fun))
    ):
        return None  # a batcher at work, or a part of JAX
    while caller.f_back is not None and (_is_jax(caller) or _is_ours(caller)):
        caller = caller.f_back
    mapped = (values["args"], values["kwargs"])
    try:
        axes = leaf_axes((values["in_axes"], 0), mapped)
        sizes = [
            leaf.shape[axis]
            for leaf, axis in zip(jax.tree.leaves(mapped), axes, strict=True)
            if axis is not None
        ]
    except (ValueError, TypeError, IndexError, AttributeError):
        return None  # wrong arguments, of which `jax.vmap` is about to complain
    tasks = sizes[0] if sizes else values["axis_size"] or 0
    name = getattr(fun, "__qualname__", type(fun).__name__)
    place = Site(
        _module(caller),
        caller.f_code.co_qualname,
        caller.f_lineno,
        f"jax.vmap of {name}",
    )
    return Reached(
        place,
        tasks=tasks,
        bytes_in=bytes_per_task(mapped, axes, tasks),
        note="not rebuilt, stays as it is",
        known=outer.known,
    )


def _module(of: Any) -> str:
    """The module of a frame or of a function."""
    if isinstance(of, FrameType):
        return str(of.f_globals.get("__name__"))
    return str(getattr(of, "__module__", None))


def _is_jax(of: Any) -> bool:
    return _module(of).split(".")[0] in ("jax", "functools")


def _is_ours(of: Any) -> bool:
    return _module(of).split(".")[0] in ("batchkit", "jaxtyping", "beartype")
