"""The loop over lanes: scheduling, evaluation, a sweep with lane refill, and again.

A turn of the loop evaluates the expensive function once for all lanes that wait for it,
and then sweeps through the blocks, each executed for the lanes at it. A lane whose task
is done is refilled within the same sweep: it writes its results to the task's place and
takes the next task, so that it misses no evaluation.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._basic_blocks import Branch, Value, execute, read
from ._common_subexpressions import CallKind
from ._layout import LaneLayout, PlacedBlock, RowStores
from ._packing import Packing


# With patience, lanes are held before a block until one in so many of the active lanes
# is held. Measured on NUTS: 5 and 8 are equally fast, and 3 is slower.
_SHARE = 8

# From this many operations on, a call in all lanes takes longer on a GPU of 10 TFLOP/s
# than a conditional, for which the host waits tens of microseconds.
_COSTLY = 1_000_000_000

# Up to so many lanes the square of their number is small for an accelerator.
_MAX_SQUARE = 1024


@final
@dataclass(frozen=True, eq=False)
class CallChoice:
    """The kind of call that is made in a turn."""

    ready: Array  # whether a call is made
    kind: Array
    # For each kind the lanes that have waited for it, summed over the calls of other
    # kinds since its own last one.
    credit: Array


@final
@dataclass(frozen=True, eq=False)
class Schedule:
    """Rules for which blocks and which call run, from the lanes' program counters."""

    returned_pc: int  # of lanes whose task is done
    idle_pc: int  # of lanes without a task
    waiting_pcs: Sequence[np.ndarray]  # for each kind, of the pauses that wait for it
    moving_pcs: np.ndarray  # of lanes that are never held
    patient: bool  # whether others are

    def min_lanes(self, pc: Array) -> Any:
        """Return how many lanes must be at a block for it to run in this sweep."""
        if not self.patient:
            return 1
        active = jnp.sum(pc != self.idle_pc)
        free = jnp.sum(pc > self.idle_pc) + jnp.sum(jnp.isin(pc, self.moving_pcs))
        share = -(-active // _SHARE)
        # Held lanes all continue once they are a share together, whatever their blocks.
        return jnp.where(active - free >= share, 1, share)

    def waiting(self, pc: Array) -> list[Array]:
        """Return for each kind of call which lanes wait for it."""
        return [jnp.isin(pc, pcs) for pcs in self.waiting_pcs]

    def choose_call(self, pc: Array, credit: Array, min_lanes: Any) -> CallChoice:
        """Choose the kind of call that most lanes wait for, if no lane is moving."""
        # Waiting lanes earn credit for their kind, so that a kind with few lanes is not
        # starved.
        counts = jnp.stack([jnp.sum(each) for each in self.waiting(pc)])
        counts = counts.astype(jnp.int32)
        moving = jnp.any(jnp.isin(pc, self.moving_pcs))
        moving |= (min_lanes <= 1) & jnp.any(pc <= self.returned_pc)
        ready = ~moving & jnp.any(counts > 0)
        kind = jnp.argmax(counts + credit)
        new_credit = (credit + counts).at[kind].set(0)
        new_credit = jnp.where(ready, new_credit, credit)
        return CallChoice(ready, kind, new_credit)


@final
@dataclass(eq=False)
class LaneState:
    """The state of the lanes during a turn; each step replaces what it changes."""

    pc: Array  # of each lane
    task: Array  # the index of each lane's task
    next_task: Array  # the first task that no lane has taken yet, for each lane
    credit: Array  # as in `CallChoice`
    slots: dict[Value, Array]
    outs: list[Array]  # the results of all tasks, packed
    rows: dict[RowStores, list[Array]]  # those that are stored row by row


@final
class LaneLoop:
    """The loop that computes all tasks of a program on a number of lanes."""

    def __init__(
        self, layout: LaneLayout, lanes: int, tasks: int, operations: float
    ) -> None:
        self._layout = layout
        self._operations = operations  # of a call in one lane
        self._lanes = lanes
        self._tasks = tasks
        self._program = layout.program
        self._kinds = layout.kinds
        pcs = layout.block_pc
        moving = [pcs[block] for block in pcs if block not in layout.held]
        self._schedule = Schedule(
            layout.returned_pc,
            layout.idle_pc,
            [
                np.array([layout.pause_pc[pause] for pause, *_ in kind.pauses])
                for kind in layout.kinds
            ],
            np.array(sorted([*moving, layout.returned_pc])),
            layout.patient,
        )

    def run(
        self, rows: Sequence[Array], closure: Mapping[int, Any], count: bool
    ) -> tuple[list[Any], tuple[Array, Array]]:
        """Compute all tasks, and count the evaluations made and needed."""
        layout = self._layout
        constants = self._program.constants
        # The arrays that take the place of the program's constants have their `id`.
        uniform: dict[Value, Any] = {x: closure.get(id(a), a) for x, a in constants}
        execute(self._program.prologue, True, uniform)
        row_stores = [x for placed in layout.sweep for x in placed.row_stores]
        zero = jnp.zeros((), int)
        # All lanes start as done, so that the first sweep gives them tasks; the results
        # of a task with this index, past the last one, are dropped.
        counters = [layout.returned_pc, self._tasks, 0]
        start = (
            [
                *(jnp.full(self._lanes, x, jnp.int32) for x in counters),
                *(x.zeros(self._lanes) for x in layout.carried),
            ],
            jnp.zeros(len(self._kinds), jnp.int32),
            layout.output_packing.zeros(self._tasks),
            [x.packing.zeros(self._tasks, x.length) for x in row_stores],
            (zero, zero) if count else None,
        )

        @jax.jit  # traced once for both kinds of device
        def turn(state: Any) -> Any:
            (pc, task, next_task, *carried), credit, outs, stored, counts = state
            slots = dict(zip(layout.carried, carried, strict=True))
            rows_of = dict(zip(row_stores, stored, strict=True))
            lanes = LaneState(pc, task, next_task, credit, slots, outs, rows_of)
            min_lanes = self._schedule.min_lanes(lanes.pc)
            made, needed = self._evaluate_calls(lanes, uniform, min_lanes)
            for placed in layout.sweep:
                if placed.block is self._program.entry:
                    self._refill(lanes, rows)
                self._execute(placed, lanes, uniform, min_lanes)
            if not self._kinds:
                needed = jnp.sum(lanes.pc != layout.idle_pc)
                made = jnp.where(needed > 0, self._lanes, 0)
            if counts is not None:
                counts = counts[0] + made, counts[1] + needed
            # Slots that are not carried are written again before they are read.
            carried = [lanes.slots[x] for x in layout.carried]
            carried = [lanes.pc, lanes.task, lanes.next_task, *carried]
            stored = [lanes.rows[x] for x in row_stores]
            return carried, lanes.credit, lanes.outs, stored, counts

        _, _, outs, stored, counts = by_platform(
            functools.partial(self._loop, turn),
            functools.partial(self._packed_loop, turn),
            start,
        )
        outs = layout.output_packing.unpack(outs)
        out_of = dict(uniform) | dict(zip(layout.output_slots, outs, strict=True))
        for stores, buffers in zip(row_stores, stored, strict=True):
            arrays = stores.packing.unpack(buffers, lead=2)
            out_of |= zip(stores.results, arrays, strict=True)
        outputs = [read(x, out_of) for x in self._program.exit.outputs]
        return outputs, counts if counts is not None else (zero, zero)

    def _loop(self, turn: Callable[[Any], Any], start: Any) -> Any:
        """Repeat turns until no lane has a task."""
        return jax.lax.while_loop(lambda state: self._is_active(state[0]), turn, start)

    def _packed_loop(self, turn: Callable[[Any], Any], start: Any) -> Any:
        """Repeat turns until no lane has a task, with the lanes' arrays packed."""
        layout = self._layout
        # The program counter, the index of the task, and the first task that no lane
        # has taken: this is the same for all lanes, but as a scalar of its own it would
        # be one kernel more in each turn.
        counters = [Value((), np.dtype(np.int32)) for _ in range(3)]
        # The expensive function may be a kernel of a library, which reads no columns.
        args = {x for slots in layout.arg_slots for x in slots}
        packing = Packing([*counters, *layout.carried], alone=args)

        # One turn, although the host waits for the device to read the condition: in two
        # XLA fuses across turns, and computes the same numbers in several kernels. NUTS
        # on a funnel then took 2.4 times as long on an H200.
        def body(state: Any) -> Any:
            carried, *rest = turn((packing.unpack(state[0]), *state[1:]))
            return packing.pack(carried), *rest

        def is_active(state: Any) -> Array:
            return self._is_active(packing.unpack(state[0]))

        packed, *rest = jax.lax.while_loop(
            is_active, body, (packing.pack(start[0]), *start[1:])
        )
        return packing.unpack(packed), *rest

    def _is_active(self, carried: Sequence[Array]) -> Array:
        """Return whether a lane has a task; its program counter comes first."""
        return jnp.any(carried[0] != self._layout.idle_pc)

    def _evaluate_calls(
        self, lanes: LaneState, uniform: Mapping[Value, Any], min_lanes: Any
    ) -> tuple[Any, Any]:
        """Make the calls of this turn; return the evaluations made and needed."""
        made = needed = jnp.zeros((), jnp.int32)
        if not self._kinds:
            return made, needed
        layout, pc = self._layout, lanes.pc
        choice = self._schedule.choose_call(pc, lanes.credit, min_lanes)
        lanes.credit = choice.credit
        is_costly = self._operations * self._lanes >= _COSTLY
        branch = jax.lax.cond if is_costly else _branch_on_cpu
        for i, kind in enumerate(self._kinds):
            waiting = jnp.isin(pc, self._schedule.waiting_pcs[i])
            is_called: Any = choice.ready & (choice.kind == i)
            if not is_costly:
                is_called = _on_cpu(is_called, jnp.ones_like(is_called))
            args = [lanes.slots[x] for x in layout.arg_slots[i]]
            results = branch(
                is_called,
                functools.partial(self._evaluate, kind, uniform),
                lambda *_, kind=kind: [x.zeros(self._lanes) for x in kind.results],
                waiting,
                args,
            )
            result_of = dict(zip(kind.results, results, strict=True))
            for pause, _, of_kind in kind.pauses:
                resumes = (pc == layout.pause_pc[pause]) & is_called
                for result, same in of_kind.items():
                    slot = layout.slots[result]
                    _store(lanes.slots, slot, result_of[same], resumes)
                resume_pc = layout.block_pc[pause.resume]
                lanes.pc = jnp.where(resumes, resume_pc, lanes.pc)
            made += jnp.where(is_called & jnp.any(waiting), self._lanes, 0)
            needed += jnp.where(is_called, jnp.sum(waiting), 0)
        return made, needed

    def _evaluate(
        self, kind: CallKind, uniform: Mapping[Value, Any], waiting: Any, args: Any
    ) -> list[Array]:
        """Evaluate a call in all lanes."""
        # Under an outer `jax.vmap` it may be that no lane waits, hence the mask.
        active = jnp.any(waiting)
        if kind.needs_valid_arguments:
            # Other lanes replay an active lane's arguments.
            lane = jnp.where(waiting, jnp.arange(self._lanes), jnp.argmax(waiting))
            args = [x[lane] for x in args]
        results = jax.vmap(
            lambda args: kind.evaluate(active, uniform, args), axis_size=self._lanes
        )(args)
        return list(map(_as_type_of, kind.results, results))

    def _refill(self, lanes: LaneState, rows: Sequence[Array]) -> None:
        """Write the results of done tasks, and give their lanes new tasks."""
        layout, entry = self._layout, self._program.entry
        pairs = zip(entry.params, rows, strict=True)
        row_of = {layout.slots[x]: row for x, row in pairs if x in layout.slots}
        is_done = lanes.pc == layout.returned_pc
        results = layout.output_packing.pack(
            [
                _as_type_of(x, lanes.slots[slot])
                for x, slot in layout.output_slots.items()
            ]
        )

        def refill() -> Any:
            place = jnp.where(is_done, lanes.task, self._tasks)
            outs = [
                out.at[place].set(result, mode="drop")
                for out, result in zip(lanes.outs, results, strict=True)
            ]
            taken = _cumulative_count(is_done)
            new_task = lanes.next_task + taken - 1
            is_refilled = is_done & (new_task < self._tasks)
            task = jnp.where(is_refilled, new_task, lanes.task)
            index = jnp.where(is_refilled, new_task, 0)
            slots = dict(lanes.slots)
            for slot, row in row_of.items():
                _store(slots, slot, row.at[index].get(mode="clip"), is_refilled)
            next_pc = jnp.where(is_refilled, layout.block_pc[entry], layout.idle_pc)
            pc = jnp.where(is_done, next_pc, lanes.pc)
            # Past the last task it grows by at most the number of lanes.
            next_task = lanes.next_task + taken[-1]
            return pc, task, next_task, outs, [slots[x] for x in row_of]

        def keep() -> Any:
            slots = self._contents(lanes, row_of)
            return lanes.pc, lanes.task, lanes.next_task, lanes.outs, slots

        # Behind a branch, as most sweeps end no task and this gathers and scatters.
        new = _branch_on_cpu(jnp.any(is_done), refill, keep)
        lanes.pc, lanes.task, lanes.next_task, lanes.outs, slots = new
        lanes.slots.update(zip(row_of, slots, strict=True))

    def _contents(self, lanes: LaneState, slots: Iterable[Value]) -> list[Array]:
        """Return what slots hold, and zeros for empty ones."""
        return [
            lanes.slots[x] if x in lanes.slots else x.zeros(self._lanes) for x in slots
        ]

    def _execute(
        self,
        placed: PlacedBlock,
        lanes: LaneState,
        uniform: Mapping[Value, Any],
        min_lanes: Any,
    ) -> None:
        """Execute a block for the lanes at it, if they are at least `min_lanes`."""
        active = lanes.pc == placed.pc
        place = jnp.where(active, lanes.task, self._tasks)

        def run() -> Any:
            pc, slots, rows = _execute_in_all(
                placed, lanes.pc, lanes.slots, active, uniform
            )
            stored = [
                [
                    buffer.at[place, index].set(row, mode="drop")
                    for buffer, row in zip(
                        lanes.rows[stores], stores.packing.pack(each), strict=True
                    )
                ]
                for stores, (index, each) in zip(placed.row_stores, rows, strict=True)
            ]
            return pc, [slots[x] for x in placed.written_slots], stored

        def skip() -> Any:
            stored = [lanes.rows[x] for x in placed.row_stores]
            return lanes.pc, self._contents(lanes, placed.written_slots), stored

        # A hot block has lanes in nearly every sweep, so a branch would cost more than
        # it saves.
        if placed.is_hot:
            lanes.pc, slots, stored = run()
        else:
            is_run = jnp.sum(active) >= min_lanes
            lanes.pc, slots, stored = _branch_on_cpu(is_run, run, skip)
        lanes.slots.update(zip(placed.written_slots, slots, strict=True))
        lanes.rows.update(zip(placed.row_stores, stored, strict=True))


def _cumulative_count(mask: Any) -> Array:
    """Return for each lane how many lanes up to it are in a mask."""
    count = mask.shape[0]
    if count > _MAX_SQUARE:
        return jnp.cumsum(mask, dtype=jnp.int32)
    # One kernel on a GPU, where a cumulative sum is several.
    lower = np.tri(count, dtype=bool)
    return _on_cpu(
        jnp.cumsum(mask, dtype=jnp.int32),
        jnp.sum(mask & lower, axis=1, dtype=jnp.int32),
    )


def _branch_on_cpu(
    predicate: Any, run: Callable[..., Any], skip: Callable[..., Any], *operands: Any
) -> Any:
    """Branch on a CPU; on an accelerator `run`, whatever the predicate."""
    # On a CPU a branch that is not taken saves its work. On an accelerator a
    # conditional makes the host wait for the device, which takes longer than the small
    # kernels in it; so `run` must change nothing where the predicate is false. XLA
    # removes a conditional whose predicate is a constant.
    predicate = _on_cpu(predicate, jnp.ones_like(predicate))
    return jax.lax.cond(predicate, run, skip, *operands)


def _on_cpu(this: Any, other: Any) -> Any:
    """Return one value on a CPU and the other one on an accelerator."""
    return by_platform(lambda this, _: this, lambda _, other: other, this, other)


def by_platform(
    cpu: Callable[..., Any], accelerator: Callable[..., Any], *operands: Any
) -> Any:
    """Call one of two functions, by the platform for which the program is lowered."""
    if jax.__version_info__ < (0, 10):
        # There `jax.linearize` of `platform_dependent` fails an assertion of JAX, so
        # the platform is that of the trace.
        on_cpu = jax.default_backend() == "cpu"
        return (cpu if on_cpu else accelerator)(*operands)
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=accelerator)


def _execute_in_all(
    placed: PlacedBlock,
    pc: Any,
    slots: Mapping[Value, Any],
    active: Any,
    uniform: Mapping[Value, Any],
) -> tuple[Any, dict[Value, Any], list[tuple[Any, list[Any]]]]:
    """Execute a block in all lanes, and keep what it computes for active ones."""
    end = placed.block.terminator
    slots = dict(slots)

    def on_a_lane(active: Any, values: list[Any]) -> Any:
        env = dict(uniform) | dict(zip(placed.reads, values, strict=True))
        execute(placed.body, active, env)
        exit_taken = read(end.index, env) if isinstance(end, Branch) else 0
        rows = [
            (
                read(x.index, env),
                [
                    _as_type_of(out, read(row, env))
                    for out, row in zip(x.results, x.rows, strict=True)
                ],
            )
            for x in placed.row_stores
        ]
        return [read(x.operand, env) for x in placed.writes], exit_taken, rows

    values = [slots[x] for x in placed.reads.values()]
    outs, taken, rows = jax.vmap(on_a_lane, axis_size=active.shape[0])(active, values)
    # `jax.lax.switch` clamps its index, too.
    taken = jnp.clip(taken.astype(jnp.int32), 0, len(placed.next_pc) - 1)
    for write, out in zip(placed.writes, outs, strict=True):
        if write.in_place:
            slots[write.slot] = out
            continue
        where = active
        if write.exits is not None:
            exits = [taken == i for i in sorted(write.exits)]
            where = active & functools.reduce(jnp.logical_or, exits)
        _store(slots, write.slot, out, where)
    next_pc: Any = placed.next_pc[0]
    if len(placed.next_pc) > 1:
        next_pc = jnp.array(placed.next_pc, jnp.int32)[taken]
    return jnp.where(active, next_pc, pc), slots, rows


def _store(slots: dict[Value, Any], slot: Value, rows: Any, where: Any) -> None:
    """Store rows for some lanes, or for all of them if the slot is empty."""
    old = slots.get(slot)
    rows = _as_type_of(slot, rows)
    slots[slot] = rows if old is None else _select(where, rows, old)


def _as_type_of(value: Value, array: Any) -> Array:
    """Convert to the type of a value: loops do not keep weak types."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return array
    return jax.lax.convert_element_type(array, value.dtype)


def _select(where: Any, new: Any, old: Any) -> Array:
    """Select rows of `new` where `where` holds, and rows of `old` elsewhere."""
    return jnp.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)
