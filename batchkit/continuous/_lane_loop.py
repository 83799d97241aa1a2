"""The loop over lanes: scheduling, evaluation, a sweep with lane refill, and again.

A turn of the loop evaluates the expensive function once for all lanes that wait for it,
and then sweeps through the blocks, each executed for the lanes at it. A lane whose task
is done is refilled within the same sweep: it writes its results to the task's place and
takes the next task, so that it misses no evaluation.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._basic_blocks import Branch, Value, execute, read
from ._common_subexpressions import CallKind
from ._layout import LaneLayout, PlacedBlock


# With patience, lanes are held before a block until one in so many of the active lanes
# is held. Measured on NUTS: 5 and 8 are equally fast, and 3 is slower.
_SHARE = 8


@final
@dataclass(frozen=True, eq=False)
class CallChoice:
    """The kind of call that is made in a turn."""

    ready: Array  # whether a call is made
    kind: Array
    credit: Array  # for each kind, after this turn
    count: Array  # how many lanes wait for this call


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
        """Choose the kind of call that most lanes wait for.

        No call is made while lanes are on their way to a pause. Waiting lanes earn
        credit for their kind, so that a kind with few lanes is not starved.

        **Arguments:**

        - `pc`: the program counter of each lane.
        - `credit`: for each kind, the lanes that have waited for it, summed over the
            calls of other kinds since its own last one.
        - `min_lanes`: the result of `min_lanes` for these lanes.
        """
        counts = jnp.stack([jnp.sum(each) for each in self.waiting(pc)])
        counts = counts.astype(jnp.int32)
        moving = jnp.any(jnp.isin(pc, self.moving_pcs))
        moving |= (min_lanes <= 1) & jnp.any(pc <= self.returned_pc)
        ready = ~moving & jnp.any(counts > 0)
        kind = jnp.argmax(counts + credit)
        new_credit = (credit + counts).at[kind].set(0)
        new_credit = jnp.where(ready, new_credit, credit)
        return CallChoice(ready, kind, new_credit, counts[kind])


@final
@dataclass(eq=False)
class LaneState:
    """The state of the lanes during a turn; each step replaces what it changes."""

    pc: Array  # of each lane
    task: Array  # the index of each lane's task
    next_task: Array  # the first task that no lane has taken yet
    credit: Array  # of each kind of call
    slots: dict[Value, Array]


@final
class LaneLoop:
    """The loop that computes all tasks of a program on a number of lanes."""

    def __init__(self, layout: LaneLayout, lanes: int, tasks: int) -> None:
        self._layout = layout
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
        """Compute all tasks.

        **Arguments:**

        - `rows`: the mapped arguments of all tasks, one for each parameter of the
            program's entry.
        - `closure`: the arrays to use for the program's constants, by their `id`.
        - `count`: whether to count evaluations.

        **Returns:**

        The outputs, with the tasks in front of those that differ between tasks, and the
        evaluations made and needed.
        """
        layout = self._layout
        constants = self._program.constants
        uniform: dict[Value, Any] = {x: closure.get(id(a), a) for x, a in constants}
        execute(self._program.prologue, True, uniform)
        outs = [x.zeros(self._tasks) for x in layout.output_slots]
        zero = jnp.zeros((), int)
        state = (
            # All lanes start as done, so that the first sweep gives them tasks; the
            # results of a task with this index, past the last one, are dropped.
            jnp.full(self._lanes, layout.returned_pc, jnp.int32),
            jnp.full(self._lanes, self._tasks, jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros(len(self._kinds), jnp.int32),
            [x.zeros(self._lanes) for x in layout.carried],
            outs,
            (zero, zero) if count else None,
        )

        def turn(state: Any) -> Any:
            pc, task, next_task, credit, carried, outs, counts = state
            slots = dict(zip(layout.carried, carried, strict=True))
            lanes = LaneState(pc, task, next_task, credit, slots)
            min_lanes = self._schedule.min_lanes(lanes.pc)
            made, needed = self._evaluate_call(lanes, uniform, min_lanes)
            for placed in layout.sweep:
                if placed.block is self._program.entry:
                    outs = self._refill(lanes, rows, outs)
                self._execute(placed, lanes, uniform, min_lanes)
            if not self._kinds:
                needed = jnp.sum(lanes.pc != layout.idle_pc)
                made = jnp.where(needed > 0, self._lanes, 0)
            if counts is not None:
                counts = counts[0] + made, counts[1] + needed
            # Slots that are not carried are written again before they are read.
            carried = [lanes.slots[x] for x in layout.carried]
            counters = lanes.pc, lanes.task, lanes.next_task, lanes.credit
            return *counters, carried, outs, counts

        def is_active(state: Any) -> Array:
            return jnp.any(state[0] != layout.idle_pc)

        *_, outs, counts = jax.lax.while_loop(is_active, turn, state)
        results = dict(uniform) | dict(zip(layout.output_slots, outs, strict=True))
        outputs = [read(x, results) for x in self._program.exit.outputs]
        return outputs, counts if counts is not None else (zero, zero)

    def _evaluate_call(
        self, lanes: LaneState, uniform: Mapping[Value, Any], min_lanes: Any
    ) -> tuple[Any, Any]:
        """Make one kind of call, or none; return the evaluations made and needed."""
        if not self._kinds:
            return 0, 0
        layout = self._layout
        choice = self._schedule.choose_call(lanes.pc, lanes.credit, min_lanes)
        # Branch 0 is no call.
        branch = jnp.where(choice.ready, 1 + choice.kind, 0)
        lanes.credit = choice.credit

        def no_results(kind: CallKind) -> list[Array]:
            return [x.zeros(self._lanes) for x in kind.results]

        def no_call(*_: Any) -> list[list[Array]]:
            return list(map(no_results, self._kinds))

        def call(i: int) -> Any:
            kind = self._kinds[i]

            def evaluate(waiting: Any, args: Any) -> list[list[Array]]:
                # Other lanes replay an active lane's arguments: with stale ones a loop
                # in the function might never end. Under an outer `jax.vmap` it may be
                # that no lane waits, hence the mask.
                active = jnp.any(waiting[i])
                lane = jnp.arange(self._lanes)
                lane = jnp.where(waiting[i], lane, jnp.argmax(waiting[i]))
                lane_args = [x[lane] for x in args[i]]
                results = jax.vmap(
                    lambda args: kind.evaluate(active, uniform, args),
                    axis_size=self._lanes,
                )(lane_args)
                return [
                    list(map(_as_type_of, kind.results, results))
                    if each is kind
                    else no_results(each)
                    for each in self._kinds
                ]

            return evaluate

        waiting = self._schedule.waiting(lanes.pc)
        args = [[lanes.slots[x] for x in slots] for slots in layout.arg_slots]
        calls = [no_call, *(call(i) for i in range(len(self._kinds)))]
        outs = jax.lax.switch(branch, calls, waiting, args)
        pc = lanes.pc
        for i, (kind, results) in enumerate(zip(self._kinds, outs, strict=True)):
            result_of = dict(zip(kind.results, results, strict=True))
            for pause, _, of_kind in kind.pauses:
                resumes = (pc == layout.pause_pc[pause]) & (branch == 1 + i)
                for result, same in of_kind.items():
                    slot = layout.slots[result]
                    _store(lanes.slots, slot, result_of[same], resumes)
                resume_pc = layout.block_pc[pause.resume]
                lanes.pc = jnp.where(resumes, resume_pc, lanes.pc)
        needed = jnp.where(choice.ready, choice.count, 0)
        return jnp.where(choice.ready, self._lanes, 0), needed

    def _refill(
        self, lanes: LaneState, rows: Sequence[Array], outs: list[Array]
    ) -> list[Array]:
        """Write the results of done tasks to `outs`, and give their lanes new tasks."""
        layout, entry = self._layout, self._program.entry
        pairs = zip(entry.params, rows, strict=True)
        row_of = {layout.slots[x]: row for x, row in pairs if x in layout.slots}
        is_done = lanes.pc == layout.returned_pc
        old = [lanes.slots.get(x) for x in row_of]
        results = [lanes.slots[x] for x in layout.output_slots.values()]

        def refill(pc: Any, task: Any, next_task: Any, outs: Any, old: Any) -> Any:
            place = jnp.where(is_done, task, self._tasks)
            outs = [
                out.at[place].set(result, mode="drop")
                for out, result in zip(outs, results, strict=True)
            ]
            new_task = next_task + jnp.cumsum(is_done, dtype=jnp.int32) - 1
            is_refilled = is_done & (new_task < self._tasks)
            task = jnp.where(is_refilled, new_task, task)
            args: list[Any] = []
            for (slot, row), before in zip(row_of.items(), old, strict=True):
                index = jnp.where(is_refilled, new_task, 0)
                new = _as_type_of(slot, row.at[index].get(mode="clip"))
                args.append(
                    new if before is None else _select(is_refilled, new, before)
                )
            next_pc = jnp.where(is_refilled, layout.block_pc[entry], layout.idle_pc)
            pc = jnp.where(is_done, next_pc, pc)
            next_task = jnp.minimum(next_task + jnp.sum(is_done), self._tasks)
            return pc, task, next_task.astype(jnp.int32), outs, args

        def keep(pc: Any, task: Any, next_task: Any, outs: Any, old: Any) -> Any:
            args = [
                slot.zeros(self._lanes) if before is None else before
                for slot, before in zip(row_of, old, strict=True)
            ]
            return pc, task, next_task, outs, args

        # Behind a branch, as most sweeps end no task and this gathers and scatters.
        state = (lanes.pc, lanes.task, lanes.next_task, outs, old)
        new = jax.lax.cond(jnp.any(is_done), refill, keep, *state)
        lanes.pc, lanes.task, lanes.next_task, outs, args = new
        lanes.slots.update(zip(row_of, args, strict=True))
        return outs

    def _execute(
        self,
        placed: PlacedBlock,
        lanes: LaneState,
        uniform: Mapping[Value, Any],
        min_lanes: Any,
    ) -> None:
        """Execute a block for the lanes at it, if they are at least `min_lanes`."""
        active = lanes.pc == placed.pc
        written = placed.written_slots

        def run(pc: Any, slots: dict[Value, Any]) -> Any:
            pc, slots = _execute_in_all(placed, pc, slots, active, uniform)
            return pc, [slots[x] for x in written]

        def skip(pc: Any, slots: dict[Value, Any]) -> Any:
            return pc, [
                slots[x] if x in slots else x.zeros(self._lanes) for x in written
            ]

        # A hot block has lanes in nearly every sweep, so a branch would cost more than
        # it saves.
        if placed.is_hot:
            lanes.pc, new = run(lanes.pc, lanes.slots)
        else:
            # Lists, because JAX sorts the keys of a dict, and slots have no order.
            touched = dict.fromkeys([*placed.reads.values(), *written])
            keys = [x for x in touched if x in lanes.slots]
            lanes.pc, new = jax.lax.cond(
                jnp.sum(active) >= min_lanes,
                lambda pc, xs: run(pc, dict(zip(keys, xs, strict=True))),
                lambda pc, xs: skip(pc, dict(zip(keys, xs, strict=True))),
                lanes.pc,
                [lanes.slots[x] for x in keys],
            )
        lanes.slots.update(zip(written, new, strict=True))


def _execute_in_all(
    placed: PlacedBlock,
    pc: Any,
    slots: Mapping[Value, Any],
    active: Any,
    uniform: Mapping[Value, Any],
) -> tuple[Any, dict[Value, Any]]:
    """Execute a block in all lanes, and keep what it computes for active ones."""
    end = placed.block.terminator
    slots = dict(slots)

    def on_a_lane(active: Any, values: list[Any]) -> tuple[list[Any], Any]:
        env = dict(uniform) | dict(zip(placed.reads, values, strict=True))
        execute(placed.block.body, active, env)
        exit_taken = read(end.index, env) if isinstance(end, Branch) else 0
        return [read(x.operand, env) for x in placed.writes], exit_taken

    values = [slots[x] for x in placed.reads.values()]
    outs, taken = jax.vmap(on_a_lane, axis_size=active.shape[0])(active, values)
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
    return jnp.where(active, next_pc, pc), slots


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
