"""One phase of a sampler as a program of a batcher: what fits, and what is fastest.

What fits is found without running anything: the kind of batcher is the one that `Auto`
gives to the sites, and XLA's bytes for the program as a whole must be within the
budget. What is fastest is found by running several layouts that fit: of every kind
a few sizes, a factor of four apart, and then half and twice the size of the best.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import jax

from .._util._formats import format_bytes
from ..batchers import AbstractBatcher, Chunked, Sequential, Vmap
from ..batchers._chunked import balanced_chunks
from ..batchers._trace_log import LogEntry
from ..continuous import Continuous
from ..devices._target import Device, compile_for, compile_if_it_fits, device_of
from ..explain import MemoryUse
from ..explain._explain import format_batcher, memory_of, recording, trace_uncached
from ..run._resumable import Reporter
from ._auto import Auto
from ._lane_memory import BudgetError, largest_arrays, largest_that_fits
from ._layout_timing import ROUNDS, SideBySide
from ._phase_layout import PhaseLayout, layout_file


# A budget that everything fits, so that `Auto` chooses the kind of batcher only.
_UNLIMITED: Final = 1 << 62
# So many times are in a reason.
_NUM_SHOWN: Final = 4


@final
class Measuring(NamedTuple):
    """How layouts are measured."""

    started: float  # by `time.perf_counter`
    max_seconds: float
    folder: Path | None  # of the files that remember what was measured
    progress: bool


@final
class PhaseProgram:
    """A program whose tasks one batcher lays out, for a device and a budget."""

    def __init__(
        self,
        phase: str,
        make: Callable[[AbstractBatcher], Callable[..., Any]],
        args: tuple[Any, ...],
        budget: int,
        device: Device = None,
    ) -> None:
        """Describe `make(batcher)(*args)`; shapes may stand for arrays."""
        self.phase = phase
        self._make = make
        self._args = args
        self._budget = budget
        self._device = device
        self._memory: dict[AbstractBatcher, MemoryUse] = {}
        self._auto = Auto(_UNLIMITED, device=device)
        self.longest = 0.0  # seconds of a compilation

    def trace(self, batcher: AbstractBatcher) -> jax.stages.Traced:
        return trace_uncached(self._make(batcher), self._args, {}, self._device)

    def run(self, batcher: AbstractBatcher, *args: Any) -> Any:
        """Compile and call the program, with values of its arguments."""
        return self.trace(batcher).lower().compile()((args, {}))

    def memory(self, batcher: AbstractBatcher) -> MemoryUse:
        """Return the bytes that XLA allocates for the program under a batcher."""
        if batcher not in self._memory:
            start = time.perf_counter()
            compiled = compile_for(self.trace(batcher), self._device)
            self._memory[batcher] = memory_of(compiled, self._device)
            self.longest = max(self.longest, time.perf_counter() - start)
        return self._memory[batcher]

    @functools.cached_property
    def _sites(self) -> list[LogEntry]:
        """The sites that compute something, laid out by `Auto`."""
        with recording() as root:
            self.trace(self._auto)
        # The user's functions may call another `Auto`.
        sites = [x for x in _entries(root) if x.batcher == self._auto]
        return [x for x in sites if "only moves data" not in x.note]

    @property
    def _tasks(self) -> set[int]:
        """The numbers of tasks at the sites; one task if there is no site."""
        return {x.tasks for x in self._sites if x.tasks > 0} or {1}

    @property
    def _num_tasks(self) -> int:
        return max(self._tasks)

    def fitting(self) -> PhaseLayout:
        """Choose the kind of layout that `Auto` does, and a size that fits as a whole.

        Raise `BudgetError` if one task at a time does not fit.
        """
        lanes, why = self._split("lane")
        if lanes and (size := self._largest(Continuous, lanes)) > 0:
            need = "1 lane needs" if size == 1 else f"{size} lanes need"
            larger = Continuous(size + 1) if size < lanes else None
            return self._layout(Continuous(size), f"{why}; {need}", larger)
        chunk, why_chunk = self._split("chunk")
        one, why_one = self._split("task")
        if one and not chunk and self.memory(Sequential()).total <= self._budget:
            return self._layout(Sequential(), f"{why_one}; it needs")
        most = chunk or self._num_tasks
        size = self._largest(self._in_chunks, most)
        if size == 0:
            one_task = self._in_chunks(1)
            largest = largest_arrays(self.trace(one_task).jaxpr.jaxpr)
            needed = self.memory(one_task).total
            raise BudgetError(f"plan({self.phase})", needed, self._budget, 1, largest)
        batcher = self._in_chunks(size)
        if not isinstance(batcher, Chunked):
            why = f"all {self._num_tasks} tasks at once need"
            return self._layout(batcher, why if self._sites else "it needs")
        if size == most:
            return self._layout(batcher, f"{why_chunk}; it needs")
        why = f"{batcher.size} of {self._num_tasks} tasks at once need"
        return self._layout(batcher, why, self._in_chunks(size + 1))

    def _split(self, kind: str) -> tuple[int, str]:
        """Return the most tasks at once that `Auto` gives to a kind, and its reason."""
        found = [
            (split.lanes, _why(site))
            for site in self._sites
            for split in site.splits
            # One chunk is all tasks at once.
            if split.kind == kind and (kind == "lane" or split.rounds > 1)
        ]
        return max(found, default=(0, ""))

    def _in_chunks(self, size: int) -> Chunked | Vmap:
        """Return the batcher that cuts all sites like `Chunked(size)`.

        Chunks are of equal size, so a smaller size often stands for the same layout.
        """
        cut = [balanced_chunks(n, min(n, size))[1] for n in self._tasks]
        return Vmap() if max(cut) == self._num_tasks else Chunked(max(cut))

    def _largest(self, make: Callable[[int], AbstractBatcher], most: int) -> int:
        """Return the largest size that fits, of which the next does not; or 0."""

        def needed(size: int) -> int:
            return self.memory(make(size)).total

        size = largest_that_fits(needed, self._budget, most).size
        # The search may end where it predicts that the next size does not fit.
        while 0 < size < most and needed(size + 1) <= self._budget:
            size += 1
        return size

    def _layout(
        self, batcher: AbstractBatcher, why: str, larger: AbstractBatcher | None = None
    ) -> PhaseLayout:
        """Describe a layout that fits, and a larger one that does not."""
        memory = self.memory(batcher)
        reason = f"{why} {format_bytes(memory.total)} of {format_bytes(self._budget)}"
        if larger is None:
            return PhaseLayout(batcher, memory, reason)
        needed = self.memory(larger).total
        reason += f", {format_batcher(larger)} would need {format_bytes(needed)}"
        return PhaseLayout(batcher, memory, reason, (larger, needed))

    def fastest(
        self,
        options: Measuring,
        start: Callable[[], tuple[Any, ...]],
        following: Callable[[Any], tuple[Any, ...]] | None = None,
        share: float = 1.0,
        before: float = 0.0,
    ) -> PhaseLayout:
        """Measure which layout is the fastest of those that fit, or recall it.

        **Arguments:**

        - `start`: makes values of the arguments.
        - `following`: makes those of the next round from the results of a call.
        - `share`: the share of the time after which the measurement ends.
        - `before`: seconds that `start` and the first call are expected to take.
        """

        def measure() -> tuple[PhaseLayout, bool]:
            return self._measured(options, start, following, share, before)

        if options.folder is None:
            return measure()[0]
        kind, traced = device_of(self._device).device_kind, self.trace(Vmap())
        file = layout_file(options.folder, self.phase, traced, kind, self._budget)
        ends = options.started + share * options.max_seconds
        return file.layout(ends - time.perf_counter(), measure)

    def _measured(
        self,
        options: Measuring,
        start: Callable[[], tuple[Any, ...]],
        following: Callable[[Any], tuple[Any, ...]] | None,
        share: float,
        before: float,
    ) -> tuple[PhaseLayout, bool]:
        """Return the fastest layout, and whether there was time for all of them."""
        fitting = self.fitting()
        candidates = layouts_to_measure(self._num_tasks, fitting.batcher)
        if len(candidates) == 1:
            return fitting, True
        args: tuple[Any, ...] | None = None
        too_large: dict[type[AbstractBatcher], int] = {}
        done = itertools.count()

        def show(text: str) -> None:
            reporter.show(text, next(done), len(candidates) + ROUNDS - 1)

        def all_candidates() -> Iterator[AbstractBatcher]:
            yield from candidates
            if times.medians:
                near = sizes_beside(next(iter(times.medians)), self._num_tasks)
                new = [x for x in near if x not in candidates]
                candidates.extend(new)
                yield from new

        def prepare(batcher: AbstractBatcher) -> Callable[[], Any] | None:
            nonlocal args
            name = format_batcher(batcher)
            show(name)
            kind, size = _kind_and_size(batcher, self._num_tasks)
            if size >= too_large.get(kind, math.inf):
                return None
            traced = self._traced(batcher)
            if traced is None:
                return None
            with reporter.waiting(f"compiling {name}"):
                compiled = compile_if_it_fits(traced.lower())
                args = args or start()
            if compiled is not None:
                self._memory[batcher] = memory_of(compiled, self._device)
            if compiled is None or self._memory[batcher].total > self._budget:
                too_large[kind] = size
                return None
            return lambda: jax.block_until_ready(compiled((args, {})))

        def advance(fastest: Callable[[], Any]) -> None:
            nonlocal args
            show("all in turn")
            if following is not None:
                args = following(fastest())

        times = SideBySide(prepare, advance, self.longest, before)
        with Reporter(options.progress, f"measuring {self.phase}", "") as reporter:
            deadline = options.started + share * options.max_seconds
            times.measure(all_candidates(), deadline)
        layout = self._first_of(times.medians, fitting)
        if not times.is_complete:
            limit = f"max_seconds={options.max_seconds:g} ended the measurement"
            plural = "" if times.num_tried == 1 else "s"
            reason = f"{layout.reason}; {limit} after {times.num_tried} layout{plural}"
            layout = dataclasses.replace(layout, reason=reason)
        return layout, times.is_complete

    def _traced(self, batcher: AbstractBatcher) -> jax.stages.Traced | None:
        """Trace it; None if it refuses the tasks, or runs them as another layout."""
        try:
            with recording() as root:
                traced = self.trace(batcher)
        # A callback without a rule for `jax.vmap` is the second.
        except (ValueError, NotImplementedError):
            return None
        kinds = {split.kind for site in _entries(root) for split in site.splits}
        has_lanes = "lane" in kinds
        return traced if has_lanes or not isinstance(batcher, Continuous) else None

    def _first_of(
        self, medians: dict[AbstractBatcher, float], fitting: PhaseLayout
    ) -> PhaseLayout:
        """Describe the layout of the least time, if there are several to choose from.

        Layouts come in the order of their times.
        """
        seconds = {format_batcher(x): taken for x, taken in medians.items()}
        if len(medians) < 2:
            return dataclasses.replace(fitting, seconds=seconds)
        batcher = next(iter(medians))
        if batcher != fitting.batcher:
            fitting = self._layout(batcher, "it needs")
        times = [f"{name} {_format_seconds(x)}" for name, x in seconds.items()]
        shown = ", ".join(times[:_NUM_SHOWN])
        reason = f"fastest of {len(times)}: {shown}; {fitting.reason}"
        return dataclasses.replace(fitting, reason=reason, seconds=seconds)


def layouts_to_measure(tasks: int, first: AbstractBatcher) -> list[AbstractBatcher]:
    """List layouts of every kind, small sizes before large ones, after a given one."""
    if tasks == 1:
        return [first]
    sizes = [4**i for i in range(1, tasks.bit_length()) if 4**i < tasks]
    chunks = [*map(Chunked, sizes), Vmap()]
    lanes = [*map(Continuous, sizes), Continuous(tasks)]
    rows = itertools.zip_longest([Sequential()], chunks, lanes)
    found = [x for row in rows for x in row if x is not None]
    return list(dict.fromkeys([first, *found]))


def sizes_beside(batcher: AbstractBatcher, tasks: int) -> list[AbstractBatcher]:
    """List layouts of half and of twice the size, without that of all tasks."""
    kind, size = _kind_and_size(batcher, tasks)
    return [kind(x) for x in (size // 2, 2 * size) if 1 < x < tasks]


def _kind_and_size(
    batcher: AbstractBatcher, tasks: int
) -> tuple[type[Chunked] | type[Continuous], int]:
    """Return the size by which layouts of a kind are ordered, as is their memory."""
    match batcher:
        case Continuous():
            return Continuous, batcher.lanes
        case Chunked():
            return Chunked, batcher.size
        case Sequential():
            return Chunked, 1
    return Chunked, tasks


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _why(site: LogEntry) -> str:
    """Return why `Auto` chose the batcher of a site, without the bytes that it needs.

    Notes of a site are clauses. The last two are `Auto`'s, and the last is of bytes.
    """
    return site.note.split("; ")[-2]


def _entries(entry: LogEntry) -> Iterator[LogEntry]:
    """Iterate over the entries inside of an entry, at any depth."""
    for inner in entry.inside:
        yield inner
        yield from _entries(inner)
