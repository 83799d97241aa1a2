"""The loop over lanes: evaluate, sweep, and again, until the last task is done.

The state of a lane is a program counter, the index of its task and the values that
live across blocks. One turn of the loop evaluates the expensive function once for all
lanes that wait for it, and then sweeps through the blocks, each of them for the lanes
that are there. A lane whose task is done writes the results to the task's own place and
starts with the next task within the same sweep, so it misses no evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._kinds import kinds_of, read, write
from ._lanes import Lanes, as_value, put, select
from ._order import goes_back, sweep_order
from ._places import places_of
from ._program import Block, Program, Value
from ._schedule import schedule_of
from ._steps import step_of


@final
class Machine:
    """A program laid out on lanes."""

    def __init__(self, program: Program, lanes: int, tasks: int, patient: bool) -> None:
        """**Arguments:**

        - `program`: the blocks of one task.
        - `lanes`: the number of lanes.
        - `tasks`: the number of tasks, at least 1.
        - `patient`: whether what stands outside of the innermost loop waits for several
            lanes to be there. That pays if an evaluation costs little: a lane misses
            some, but all lanes are spared the work of few.
        """
        self.program = program
        self.lanes = lanes
        self.tasks = tasks
        self.kinds = kinds_of(program.pauses())
        order = sweep_order(program)
        self._places = places = places_of(program, order, self.kinds)
        hot = max(block.loops for block in order)
        self._steps = [step_of(block, places, hot) for block in order]
        held = {step.block for step in self._steps if step.skips and patient}
        self._schedule = schedule_of(places, self.kinds, held, patient)
        self._carried = self._what_is_carried(goes_back(program, order), held)

    def _what_is_carried(self, back: set[Block], held: set[Block]) -> list[Value]:
        """What lanes take from one turn to the next, in the order it is computed in."""
        program, places = self.program, self._places
        carried = {x for group in places.slots for x in group}
        for pause in places.waiting:
            kept = places.live[pause.resume] - set(pause.results)
            carried |= {places.cells[x] for x in kept}
        for block in back | held:
            carried |= {places.cells[x] for x in places.live[block]}
        if program.start in back:
            carried |= set(places.results.values())
        results = [x for pause in places.waiting for x in pause.results]
        entered = [*program.start.params, *results]
        written = [x for step in self._steps for x in step.written]
        reached = [*(places.cells.get(x, x) for x in entered), *written]
        return [x for x in dict.fromkeys(reached) if x in carried]

    @property
    def bytes_per_lane(self) -> int:
        """What a lane remembers from one turn to the next."""
        return 8 + sum(x.bytes for x in self._carried)

    def run(
        self, rows: Sequence[Array], closure: Mapping[int, Any], count: bool
    ) -> tuple[list[Any], tuple[Array, Array]]:
        """Computes all tasks.

        **Arguments:**

        - `rows`: the mapped arguments of all tasks, one for each parameter of the
            program's start that is needed.
        - `closure`: the arrays that take the place of the program's constants, by the
            `id` of these.
        - `count`: whether to count evaluations.

        **Returns:**

        The outputs, with the tasks in front of those that differ between tasks, and the
        evaluations made and needed.
        """
        shared = self._shared(closure)
        outs = [x.zeros(self.tasks) for x in self._places.results]
        zero = jnp.zeros((), int)
        state = (
            jnp.full(self.lanes, self._places.finished, jnp.int32),
            jnp.full(self.lanes, self.tasks, jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros(len(self.kinds), jnp.int32),
            [x.zeros(self.lanes) for x in self._carried],
            outs,
            (zero, zero) if count else None,
        )

        def turn(state: Any) -> Any:
            pc, task, next_task, credit, carried, outs, counts = state
            cells = dict(zip(self._carried, carried, strict=True))
            lanes = Lanes(pc, task, next_task, credit, cells)
            enough = self._schedule.enough(lanes.pc)
            made, needed = self._evaluate(lanes, shared, enough)
            for step in self._steps:
                if step.block is self.program.start:
                    outs = self._harvest(lanes, rows, outs)
                step.execute(lanes, shared, enough)
            if not self.kinds:
                needed = jnp.sum(lanes.pc != self._places.idle)
                made = jnp.where(needed > 0, self.lanes, 0)
            if counts is not None:
                counts = counts[0] + made, counts[1] + needed
            carried = [lanes.cells[x] for x in self._carried]
            place = (lanes.pc, lanes.task, lanes.next_task, lanes.credit)
            return *place, carried, outs, counts

        def going(state: Any) -> Array:
            return jnp.any(state[0] != self._places.idle)

        *_, outs, counts = jax.lax.while_loop(going, turn, state)
        results = dict(zip(self._places.results, outs, strict=True))
        found = [
            results[x] if isinstance(x, Value) and not x.shared else read(x, shared)
            for x in self.program.finish.outputs
        ]
        return found, counts if counts is not None else (zero, zero)

    @property
    def differs(self) -> list[bool]:
        """Which outputs every task has for itself."""
        return [
            isinstance(x, Value) and not x.shared for x in self.program.finish.outputs
        ]

    def _shared(self, closure: Mapping[int, Any]) -> dict[Value, Any]:
        """What all lanes have in common."""
        constants = self.program.constants
        env: dict[Value, Any] = {x: closure.get(id(a), a) for x, a in constants}
        for instruction in self.program.prologue:
            inputs = [read(x, env) for x in instruction.inputs]
            write(instruction, instruction.run(True, *inputs), env)
        return env

    def _evaluate(
        self, lanes: Lanes, shared: dict[Value, Any], enough: Any
    ) -> tuple[Any, Any]:
        """One call of the expensive function, for all lanes that wait for it."""
        if not self.kinds:
            return 0, 0
        choice = self._schedule.choice(lanes.pc, lanes.credit, enough)
        chosen = jnp.where(choice.ready, 1 + choice.kind, 0)
        lanes.credit = choice.credit

        def nothing(*_: Any) -> list[list[Array]]:
            return [[x.zeros(self.lanes) for x in kind.results] for kind in self.kinds]

        def evaluation(i: int) -> Any:
            kind = self.kinds[i]

            def evaluate(waits: Any, requests: Any) -> list[list[Array]]:
                # Whoever does not wait repeats what somebody asks who does: stale or
                # made up arguments could keep the function busy for ever. Under an
                # outer `jax.vmap` it may be that nobody waits.
                active = jnp.any(waits[i])
                mine = jnp.where(waits[i], jnp.arange(self.lanes), jnp.argmax(waits[i]))
                args = [x[mine] for x in requests[i]]
                results = jax.vmap(
                    lambda args: kind.evaluate(active, shared, args),
                    axis_size=self.lanes,
                )(args)
                return [
                    [
                        as_value(x, out)
                        for x, out in zip(kind.results, results, strict=True)
                    ]
                    if each is kind
                    else [x.zeros(self.lanes) for x in each.results]
                    for each in self.kinds
                ]

            return evaluate

        waits = self._schedule.waits(lanes.pc)
        requests = [[lanes.cells[x] for x in slots] for slots in self._places.slots]
        branches = [nothing, *(evaluation(i) for i in range(len(self.kinds)))]
        outs = jax.lax.switch(chosen, branches, waits, requests)
        pc, places = lanes.pc, self._places
        for i, (kind, results) in enumerate(zip(self.kinds, outs, strict=True)):
            result_of = dict(zip(kind.results, results, strict=True))
            for pause, _, of_kind in kind.pauses:
                goes_on = (pc == places.waiting[pause]) & (chosen == 1 + i)
                for mine, its in of_kind.items():
                    put(lanes.cells, places.cells[mine], result_of[its], goes_on)
                resume = places.number[pause.resume]
                lanes.pc = jnp.where(goes_on, resume, lanes.pc)
        needed = jnp.where(choice.ready, choice.count, 0)
        return jnp.where(choice.ready, self.lanes, 0), needed

    def _harvest(
        self, lanes: Lanes, rows: Sequence[Array], outs: list[Array]
    ) -> list[Array]:
        """Puts results in their places, and gives the lanes that are done new tasks."""
        program, places = self.program, self._places
        pairs = zip(program.start.params, rows, strict=True)
        needed = {places.cells[x]: row for x, row in pairs if x in places.cells}
        start = places.number[program.start]
        done = lanes.pc == places.finished
        old = [lanes.cells.get(x) for x in needed]
        results = [lanes.cells.get(x) for x in places.results.values()]

        def go(pc: Any, task: Any, next_task: Any, outs: Any, old: Any) -> Any:
            place = jnp.where(done, task, self.tasks)
            outs = [
                out if result is None else out.at[place].set(result, mode="drop")
                for out, result in zip(outs, results, strict=True)
            ]
            new = next_task + jnp.cumsum(done, dtype=jnp.int32) - 1
            goes_on = done & (new < self.tasks)
            task = jnp.where(goes_on, new, task)
            args: list[Any] = []
            for (x, row), before in zip(needed.items(), old, strict=True):
                taken = as_value(x, row.at[jnp.where(goes_on, new, 0)].get(mode="clip"))
                args.append(taken if before is None else select(goes_on, taken, before))
            pc = jnp.where(done, jnp.where(goes_on, start, places.idle), pc)
            next_task = jnp.minimum(next_task + jnp.sum(done), self.tasks)
            return pc, task, next_task.astype(jnp.int32), outs, args

        def stay(pc: Any, task: Any, next_task: Any, outs: Any, old: Any) -> Any:
            args = [
                x.zeros(self.lanes) if before is None else before
                for x, before in zip(needed, old, strict=True)
            ]
            return pc, task, next_task, outs, args

        state = (lanes.pc, lanes.task, lanes.next_task, outs, old)
        new = jax.lax.cond(jnp.any(done), go, stay, *state)
        lanes.pc, lanes.task, lanes.next_task, outs, args = new
        lanes.cells.update(zip(needed, args, strict=True))
        return outs
