"""`explain`: the sites that a trace reaches; `memory`: the bytes that XLA allocates.

A function is traced as `jax.jit` would. The functions and vmaps of the user must not be
changed or wrapped, so a profiler set by `sys.setprofile` observes their calls; one that
was set before is restored.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextvars import Token
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, final

import equinox as eqx
import jax

from .._util._formats import format_bytes, html_table, table
from .._util._multihost import single_process
from ..batchers import AbstractBatcher, Site, Vmap
from ..batchers._call import Call, bytes_per_task, mapped_leaves
from ..batchers._trace_log import (
    LogEntry,
    Split,
    current_entry,
    enter,
    leave,
    site_of_frame,
    start_log,
    under_axis,
)
from ..devices._target import (
    Target,
    check_device,
    compile_for,
    device_of,
    platform_of,
    shapes_on,
    sharding_on,
)
from ..rebuild._values import CODE_OF_BOUNDARY, CODE_OF_MAPPED
from ._loops import LOOP_COLUMNS, Loop, loops_of


def trace(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: Target = None,
) -> jax.stages.Traced:
    """Trace `fun` for arguments or their shapes, as `jax.jit` would for a device.

    Arguments that are not arrays, such as Python numbers or functions, are constants of
    the program, unless `fun` is already jitted.
    """
    args, kwargs = shapes_on(device, (args, kwargs))
    arrays, static = eqx.partition((args, kwargs), _is_array)
    # Arguments say for which device a program is, and without any its results do.
    is_placed = device is None or bool(jax.tree.leaves(arrays))
    with single_process():
        if is_placed and isinstance(fun, jax.stages.Wrapped):  # made by jax.jit
            return fun.trace(*args, **kwargs)

        def on_arrays(arrays: Any) -> Any:
            args, kwargs = eqx.combine(arrays, static)
            return fun(*args, **kwargs)

        on_arrays.__name__ = getattr(fun, "__name__", on_arrays.__name__)
        if is_placed:
            return jax.jit(on_arrays).trace(arrays)
        return jax.jit(on_arrays, out_shardings=sharding_on(device)).trace(arrays)


def trace_uncached(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: Target = None,
) -> jax.stages.Traced:
    """Trace like `trace`, but trace jitted functions inside of `fun` again as well."""
    # Under a new axis name there are no cached traces, which would reach no site.
    return under_axis(object(), lambda: trace(fun, args, kwargs, device))


@contextlib.contextmanager
def recording() -> Iterator[LogEntry]:
    """Record the sites that traces in the body reach; yield the root of the log."""
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
    """Describe a vmap that no batcher runs; None if it is a part of one, or of JAX."""
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


@final
@dataclass(frozen=True)
class ReachedSite:
    """One site that a trace reached: a place where tasks are mapped.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    fun = bk.Chunked(4)(lambda x: jnp.sum(x**2))
    (reached,) = bk.explain(fun, jnp.ones((10, 3))).reached
    assert reached.batcher == "Chunked(4)"
    assert reached.layout == "3 chunks of 4 (2 repeated)"
    assert (reached.tasks, reached.at_once) == (10, 4)
    assert (reached.bytes_in, reached.bytes_out) == (12, 4)
    ```

    **Arguments:**

    - `site`: the place in the source, which may be in your own code.
    - `batcher`: the batcher that runs it, as you would write it; empty for a `jax.vmap`
        that is not rebuilt.
    - `tasks`: the number of tasks.
    - `layout`: how the batcher splits them, as text.
    - `at_once`: the number of tasks of this site that one device computes at the same
        time: its own lanes times those of every enclosing site.
    - `bytes_in`: bytes of the mapped arguments of one task.
    - `bytes_out`: bytes of the results of one task.
    - `functions`: those of your functions that are called inside.
    - `note`: remarks of the batcher, such as why it chose the layout.
    - `inside`: the sites that are reached while this site's tasks are traced.
    - `splits`: how its batcher and those inside it split the tasks, from the outside
        in; each has `tasks`, `rounds`, `devices`, `lanes` and the kind of loop over
        rounds, `"chunk"`, `"task"` or `"lane"`. Empty if all tasks run at once.
    """

    site: Site
    batcher: str
    tasks: int
    layout: str
    at_once: int
    bytes_in: int
    bytes_out: int
    functions: tuple[str, ...]
    note: str
    inside: tuple["ReachedSite", ...]
    splits: tuple[Split, ...] = ()


@final
@dataclass(frozen=True)
class MemoryUse:
    """The bytes that XLA allocates on each device for one call of a function.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    use = bk.memory(lambda x: x @ x.T, jnp.ones((100, 3)))
    assert use.argument == 100 * 3 * 4
    assert use.output == 100 * 100 * 4
    assert use.total == use.argument + use.output + use.temporary - use.alias
    ```

    **Arguments:**

    - `argument`: bytes of the arguments.
    - `output`: bytes of the results.
    - `temporary`: bytes of temporaries, needed while the program runs.
    - `alias`: bytes of results that overwrite donated arguments, and are counted in
        both.
    - `device`: the kind of the device that the program was compiled for, such as
        `"NVIDIA H100 80GB HBM3"`; `"cpu"` by default.
    """

    argument: int
    output: int
    temporary: int
    alias: int
    device: str = "cpu"

    @property
    def total(self) -> int:
        """Arguments, outputs and temporaries together, aliased bytes counted once."""
        return self.argument + self.output + self.temporary - self.alias

    def __repr__(self) -> str:
        text = table(_MEMORY_COLUMNS, self._rows())
        return text if self.device == "cpu" else f"{text}\n{self.device}. {UNSEEN}"

    def _repr_html_(self) -> str:
        return html_table(_MEMORY_COLUMNS, self._rows())

    def _rows(self) -> list[tuple[str, str, str]]:
        names = ("argument", "output", "temporary", "alias", "total")
        sizes = [(name, getattr(self, name)) for name in names]
        return [(name, format_bytes(size), f"{size:,}") for name, size in sizes]


@final
@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """The sites that one trace reached, and the memory of the compiled program.

    Prints as a table, in which nested sites are indented.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    explanation = bk.explain(bk.Chunked(4)(jnp.sin), jnp.ones(10))
    assert [x.tasks for x in explanation.reached] == [10]
    assert explanation.memory.total > 0
    ```

    **Arguments:**

    - `reached`: the sites, in the order in which the trace reached them.
    - `memory`: the bytes that XLA will allocate.
    - `loops`: what the loops of the compiled program launch, on an accelerator; empty
        for a CPU.
    """

    reached: tuple[ReachedSite, ...]
    memory: MemoryUse
    loops: tuple[Loop, ...] = ()

    def __repr__(self) -> str:
        rows = list(_rows(self.reached))
        sites = table(_COLUMNS, rows) if rows else "no site was reached"
        loops = [table(LOOP_COLUMNS, [x.row for x in self.loops])] if self.loops else []
        return "\n\n".join([sites, repr(self.memory), *loops])

    def _repr_html_(self) -> str:
        rows = list(_rows(self.reached))
        loops = html_table(LOOP_COLUMNS, [x.row for x in self.loops])
        tables = html_table(_COLUMNS, rows) + self.memory._repr_html_()
        return tables + loops if self.loops else tables


def _rows(sites: tuple[ReachedSite, ...], depth: int = 0) -> Iterator[tuple[str, ...]]:
    """Iterate over the rows of the table, each followed by those of inner sites."""
    for reached in sites:
        site = reached.site
        yield (
            "  " * depth + str(site),
            site.spelling,
            site.phase or "",
            str(reached.tasks),
            reached.batcher,
            reached.layout,
            str(reached.at_once),
            format_bytes(reached.bytes_in),
            format_bytes(reached.bytes_out) if reached.batcher else "",
            ", ".join(reached.functions),
            reached.note,
        )
        yield from _rows(reached.inside, depth + 1)


_COLUMNS = (
    "site",
    "spelling",
    "phase",
    "tasks",
    "batcher",
    "layout",
    "at once",
    "in/task",
    "out/task",
    "calls",
    "note",
)


def explain(
    fun: Callable[..., Any],
    *args: Any,
    device: Target = None,
    **kwargs: Any,
) -> Explanation:
    """List the sites that a function reaches, their layout, and the memory it needs.

    The function is traced once and compiled, but not run. Functions inside of it that
    are already jitted are traced as well. The list has the sites of rebuilt samplers,
    the batchers that you call yourself, and every `jax.vmap` that no batcher runs: your
    own, and those of a sampler that has not been rebuilt. Equal sites are listed once.
    For an accelerator, it also lists the loops of the compiled program.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(16))
    algorithm = nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -2.0 * jnp.sum((x - 1.0) ** 2),
        num_inner_steps=5,
    )
    print(bk.explain(jax.jit(algorithm.init), jnp.zeros((150, 2))))
    ```

    **Arguments:**

    - `fun`: a function, jitted or not, such as `algorithm.step`.
    - `*args`, `**kwargs`: its arguments; `jax.ShapeDtypeStruct` may stand for an array.
        A value that is not an array, such as a Python number, is a constant of the
        program, unless `fun` is jitted.
    - `device`: the device of JAX to compile for, present or
        [described][batchkit.described_device], or a mesh whose devices each have the
        arguments whole. By default the process's own.

    **Returns:**

    An [`Explanation`][batchkit.explain.Explanation]: the sites in the order in which
    they were reached, nested, and the memory of the compiled program.

    **Raises:**

    The errors of tracing or compiling `fun`, and `NotImplementedError` on a platform
    where XLA does not report the memory.
    """
    check_device("explain", device, or_mesh=True)
    with recording() as root:
        traced = trace_uncached(fun, args, kwargs, device)
    compiled = compile_for(traced, device)
    platform = platform_of(device)
    # Loops and branches of a TPU stay on it.
    waits = platform == "gpu"
    loops = () if platform == "cpu" else loops_of(compiled.as_text() or "", waits)
    return Explanation(reached_sites(root), memory_of(compiled, device), loops)


def reached_sites(entry: LogEntry, outer: int = 1) -> tuple[ReachedSite, ...]:
    """Make records of the sites inside an entry, once where JAX traces twice."""
    records: list[ReachedSite] = []
    for inner in entry.inside:
        # The innermost split says how many lanes one device runs.
        at_once = outer * (inner.splits[-1].lanes if inner.splits else inner.tasks)
        # From the outside in: `2 devices of 25, 2 chunks of 13`.
        layouts = map(_format_split, inner.splits)
        record = ReachedSite(
            site=inner.site,
            batcher=format_batcher(inner.batcher),
            tasks=inner.tasks,
            layout=", ".join(filter(None, layouts)) or "all at once",
            at_once=at_once,
            bytes_in=inner.bytes_in,
            bytes_out=inner.bytes_out,
            functions=tuple(inner.called),
            note=inner.note,
            inside=reached_sites(inner, at_once),
            splits=tuple(inner.splits),
        )
        if record not in records:
            records.append(record)
    return tuple(records)


def _format_split(split: Split) -> str:
    if split.kind == "task":
        return f"{split.rounds} one by one"
    if split.kind == "lane":
        return f"{split.lanes} lanes kept busy"
    repeated = f" ({split.repeated} repeated)" if split.repeated > 0 else ""
    if split.rounds > 1:
        return f"{split.rounds} chunks of {split.lanes}{repeated}"
    if split.devices > 1:
        return f"{split.devices} devices of {split.lanes}{repeated}"
    return ""


def format_batcher(value: Any) -> str:
    """Format a batcher as its user would write it: `Chunked(16)`."""
    if not isinstance(value, AbstractBatcher):
        return "" if value is None else repr(value)
    arguments: list[str] = []
    for name, parameter in inspect.signature(type(value)).parameters.items():
        argument = getattr(value, name, parameter.default)
        if argument == parameter.default or (
            parameter.default is None and argument == Vmap()
        ):
            continue
        kind = getattr(argument, "device_kind", None)
        text = format_batcher(argument) if kind is None else f"<{kind}>"
        is_short = type(argument) is int and not arguments
        arguments.append(text if is_short else f"{name}={text}")
    return f"{type(value).__name__}({', '.join(arguments)})"


_MEMORY_COLUMNS = ("memory", "size", "bytes")
# The end of a figure for an accelerator.
UNSEEN: Final = (
    "Not counted: workspaces of libraries (on a GPU cuBLAS and cuSOLVER), kernels that "
    "are tuned on the device itself, and fragmentation."
)


def memory(
    fun: Callable[..., Any],
    *args: Any,
    device: Target = None,
    **kwargs: Any,
) -> MemoryUse:
    """Compute the bytes that XLA allocates for `fun(*args, **kwargs)`.

    The function is compiled as under `jax.jit`, from the shapes of its arguments, and
    does not run. XLA's own figure for the peak is not used: on CPU it leaves out the
    temporaries. Allocations outside of XLA are not counted, such as those of host
    callbacks, nor on a GPU workspaces of linear algebra and what tuning of kernels
    takes. For a device that is not here, describe it:
    [`described_device`][batchkit.described_device].

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(4))
    algorithm = nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -jnp.sum(jnp.outer(x, jnp.ones(1000)) ** 2),
        num_inner_steps=5,
    )
    positions = jax.ShapeDtypeStruct((100, 2), jnp.float32)
    assert bk.memory(algorithm.init, positions).temporary < 100 * 2 * 1000 * 4
    ```

    **Arguments:**

    - `fun`: a function, jitted or not. Donated arguments of `jax.jit(fun)` count once.
    - `*args`, `**kwargs`: its arguments; `jax.ShapeDtypeStruct` may stand for an array.
        A value that is not an array, such as a Python number, is a constant of the
        program, unless `fun` is jitted.
    - `device`: the device of JAX to compile for, present or
        [described][batchkit.described_device], or a mesh whose devices each have the
        arguments whole. By default the process's own.

    **Returns:**

    A [`MemoryUse`][batchkit.explain.MemoryUse]: the bytes on each device.

    **Raises:**

    The errors of tracing or compiling `fun`, and `NotImplementedError` on a platform
    where XLA does not report the memory.
    """
    check_device("memory", device, or_mesh=True)
    traced = trace(fun, args, kwargs, device)
    return memory_of(compile_for(traced, device), device)


def memory_of(compiled: jax.stages.Compiled, device: Target = None) -> MemoryUse:
    """Read the figures of a compiled program."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise NotImplementedError(
            f"XLA does not report the memory of programs on {platform_of(device)!r}."
        )
    return MemoryUse(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.alias_size_in_bytes,
        device_of(device).device_kind,
    )
