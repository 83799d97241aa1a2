"""Context of the current trace: the number of outer lanes, flags, and the log.

A task may itself map: each outer lane then has its own copy of the inner lanes. A
batcher with a memory budget divides the budget by the number of outer lanes.

The key of JAX's cache of traces has the names of the enclosing axes. So a trace under a
flag reuses no cached trace without it, as it would under a context variable.

`explain` starts a log; batchers and rebuilt samplers write to it. Nothing here changes
what is computed. Without a log a batcher spends one lookup of a context variable.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Final, Literal, TypeVar, final

import jax


_OUTER_LANES: ContextVar[int] = ContextVar("outer_lanes", default=1)
_T = TypeVar("_T")
# Packages to skip when looking for the caller's frame.
_SKIPPED: Final = ("batchkit", "jax", "equinox", "functools", "jaxtyping", "beartype")


def num_outer_lanes() -> int:
    """Return the product of the lanes of all enclosing sites on one device."""
    return _OUTER_LANES.get()


@contextlib.contextmanager
def outer_lanes(lanes: int) -> Iterator[None]:
    """Multiply the number of outer lanes in the body."""
    token = _OUTER_LANES.set(_OUTER_LANES.get() * max(1, lanes))
    try:
        yield
    finally:
        _OUTER_LANES.reset(token)


def under_axis(name: Hashable, fun: Callable[[], _T]) -> _T:
    """Call a function while an axis of size one is bound under a name."""
    results: list[_T] = []

    def probe() -> tuple[()]:
        results.append(fun())
        return ()

    jax.vmap(probe, axis_name=name, axis_size=1)()
    return results[0]


def is_bound(name: Hashable) -> bool:
    """Return True while an axis of this name is bound."""
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


@final
@dataclass(frozen=True)
class Site:
    """One place in a package's source where a `vmap` is called.

    ```python
    import blackjax
    import batchkit as bk

    algorithm = blackjax.nss(
        logprior_fn=lambda x: -(x**2).sum(),
        loglikelihood_fn=lambda x: -(x**2).sum(),
        num_inner_steps=5,
    )
    likelihood, ravelling = [x for x in bk.sites(algorithm) if x.phase == "init"]
    assert likelihood.module == "blackjax.ns.nss"
    assert likelihood.spelling == "jax.vmap"
    ```

    `str(site)` names it as `module:qualname:line`.

    **Arguments:**

    - `module`: the name of the module, such as `"blackjax.ns.from_mcmc"`.
    - `qualname`: the function that calls the vmap, such as
        `"build_kernel.<locals>.kernel"`.
    - `line`: the line of the call in the module's file.
    - `spelling`: the vmap as written in the source: `"jax.vmap"`, `"vmap"`,
        `"@jax.vmap"` for a decorator, or the name of a variable that holds it.
    - `phase`: the part of the algorithm that reaches the site: `"init"`, `"step"`, or
        `None` if it is not known.
    """

    module: str
    qualname: str
    line: int
    spelling: str
    phase: str | None = None

    @property
    def name(self) -> str:
        """`module:qualname`, which the patterns of a policy are matched with."""
        return f"{self.module}:{self.qualname}"

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"


@final
@dataclass(frozen=True)
class Split:
    """How one batcher split its tasks: rounds x devices x lanes, the last ones padded.

    Rounds run one after the other, in each of them `lanes` tasks at once on every
    device.
    """

    tasks: int
    rounds: int
    devices: int
    lanes: int
    kind: Literal["chunk", "task", "lane"] = "chunk"  # of the loop over rounds
    mesh: Any = None  # of the devices, if there are several

    @property
    def repeated(self) -> int:
        """The number of tasks that run a second time, to pad the last round."""
        return self.rounds * self.devices * self.lanes - self.tasks


@final
@dataclass
class LogEntry:
    """One site that a trace reached."""

    site: Any
    batcher: Any = None
    tasks: int = 0
    bytes_in: int = 0  # of the mapped arguments of one task
    bytes_out: int = 0  # of its results
    note: str = ""
    user_functions: Mapping[CodeType, str] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)
    called: list[str] = field(default_factory=list)  # those of `user_functions`
    # Items are `LogEntry`; beartype cannot resolve a class that names itself.
    inside: list[Any] = field(default_factory=list)

    @property
    def meshes(self) -> list[Any]:
        """The meshes over which tasks are spread in it."""
        found = [x.mesh for x in self.splits if x.mesh is not None]
        return found + [mesh for entry in self.inside for mesh in entry.meshes]


_CURRENT: ContextVar[LogEntry | None] = ContextVar("current", default=None)


def current_entry() -> LogEntry | None:
    """Return the entry that the trace is inside of, or None without a log."""
    return _CURRENT.get()


def enter(entry: LogEntry) -> Token[LogEntry | None]:
    """Append an entry to the current one and make it current."""
    outer = _CURRENT.get()
    if outer is not None:
        outer.inside.append(entry)
    return _CURRENT.set(entry)


def start_log(root: LogEntry) -> Token[LogEntry | None]:
    """Start a new log at `root`, detached from any enclosing one."""
    return _CURRENT.set(root)


def leave(token: Token[LogEntry | None]) -> None:
    """Undo `enter` or `start_log`."""
    _CURRENT.reset(token)


@contextlib.contextmanager
def logging_disabled() -> Iterator[None]:
    """Disable the log in the body, for speculative traces."""
    with profiler_paused():
        token = _CURRENT.set(None)
        try:
            yield
        finally:
            leave(token)


@contextlib.contextmanager
def profiler_paused() -> Iterator[None]:
    """Pause the log's profiler in the body, which reaches no site."""
    # The profiler is called for every Python function, which slows down a long trace.
    profiler = sys.getprofile()
    is_paused = current_entry() is not None and callable(profiler)
    if is_paused:
        sys.setprofile(None)
    try:
        yield
    finally:
        if is_paused:
            sys.setprofile(profiler)


def log_split(
    tasks: int,
    rounds: int,
    devices: int,
    lanes: int,
    kind: Literal["chunk", "task", "lane"],
    mesh: Any = None,
) -> None:
    """Record how a batcher has split the tasks of a call."""
    entry = _CURRENT.get()
    if entry is not None:
        split = Split(tasks, rounds, devices, lanes, kind, mesh)
        if split not in entry.splits:  # the body of a loop may be traced twice
            entry.splits.append(split)


def log_note(text: str) -> None:
    """Record a remark of a batcher about the call that it runs."""
    entry = _CURRENT.get()
    if entry is not None and text not in entry.note.split("; "):
        entry.note = "; ".join(filter(None, (entry.note, text)))


def site_of_frame(frame: FrameType, spelling: str) -> Site:
    """Return the line that a frame executes as a site."""
    module = str(frame.f_globals.get("__name__"))
    return Site(module, frame.f_code.co_qualname, frame.f_lineno, spelling)


def calling_site(spelling: str) -> Site:
    """Return the line of the nearest caller outside batchkit and JAX as a site."""
    frame = inspect.currentframe()
    while frame is not None:
        site = site_of_frame(frame, spelling)
        if site.module.split(".")[0] not in _SKIPPED:
            return site
        frame = frame.f_back
    raise AssertionError("a batcher is called from some module")
