"""The loop over lanes: evaluate, sweep, and again, until the last task is done.

The state of a lane is a program counter, the index of its task and the values that
live across blocks. One turn of the loop evaluates the expensive function once for all
lanes that wait for it, and then sweeps through the blocks, each of them for the lanes
that are there. A lane whose task is done writes the results to the task's own place and
starts with the next task within the same sweep, so it misses no evaluation.
"""

from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._cells import cells_of
from ._kinds import kinds_of, read, write
from ._lanes import Lanes, as_value, select
from ._liveness import live_values, own
from ._order import goes_back, sweep_order
from ._program import Operand, Pause, Program, Value
from ._steps import step_of


# With patience, lanes are held before blocks off the inner loop until one in so many of
# those at work is. Measured on NUTS, where 5 and 8 are alike and 3 is too patient.
_SHARE = 8


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
        live = live_values(program)
        # What the program counter of a lane may be. Where a lane waits is above idle.
        self._finished = len(order)
        self._idle = len(order) + 1
        waiting: dict[Pause, int] = {}
        slots: dict[Pause, list[tuple[Value, Operand]]] = {}
        self._slots: list[list[Value]] = []
        for kind in self.kinds:
            common = kind.common
            args = [x for x, c in zip(kind.args, common, strict=True) if not c]
            mine = [Value(x.shape, x.dtype) for x in args]
            self._slots.append(mine)
            for pause, passed, _ in kind.pauses:
                waiting[pause] = self._idle + 1 + len(waiting)
                given = [x for x, c in zip(passed, common, strict=True) if not c]
                slots[pause] = list(zip(mine, given, strict=True))
        self._waiting = waiting
        number = {block: i for i, block in enumerate(order)}
        self._resume = {pause: number[pause.resume] for pause in waiting}
        self._start = number[program.start]
        self._outputs = list(program.finish.outputs)
        self._result = {x: Value(x.shape, x.dtype) for x in own(self._outputs)}
        self._cells = cells = cells_of(order, live)
        hot = max(block.loops for block in order)
        self._steps = [
            step_of(
                block,
                number,
                live,
                cells,
                waiting,
                slots,
                self._result,
                self._finished,
                hot,
            )
            for block in order
        ]
        back = goes_back(program, order)
        carried = {x for group in self._slots for x in group}
        for pause in waiting:
            carried |= {cells[x] for x in live[pause.resume] - set(pause.results)}
        cold = {step.block for step in self._steps if step.skips and patient}
        for block in back | cold:
            carried |= {cells[x] for x in live[block]}
        if program.start in back:
            carried |= set(self._result.values())
        # In the order in which the program computes them, which does not vary.
        written = [x for step in self._steps for x in step.written]
        entered = [*program.start.params, *(x for p in waiting for x in p.results)]
        reached = [*(cells.get(x, x) for x in entered), *written]
        self._carried = [x for x in dict.fromkeys(reached) if x in carried]
        self._patient = patient
        # Where a lane may be that an evaluation is not made without.
        on_their_way = {number[x] for x in order if x not in cold} | {self._finished}
        self._on_their_way = np.array(sorted(on_their_way))

    @property
    def bytes_per_lane(self) -> int:
        """What a lane remembers from one turn to the next."""
        return 8 + sum(x.bytes for x in self._carried)

    def run(
        self, rows: Sequence[Array], count: bool
    ) -> tuple[list[Any], tuple[Array, Array]]:
        """Computes all tasks.

        **Arguments:**

        - `rows`: the mapped arguments of all tasks, one for each parameter of the
            program's start that is needed.
        - `count`: whether to count evaluations.

        **Returns:**

        The outputs, with the tasks in front of those that differ between tasks, and the
        evaluations made and needed.
        """
        shared = self._shared()
        outs = [x.zeros(self.tasks) for x in self._result]
        zero = jnp.zeros((), int)
        state = (
            jnp.full(self.lanes, self._finished, jnp.int32),
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
            enough = self._enough(lanes)
            made, needed = self._evaluate(lanes, shared, enough)
            for i, step in enumerate(self._steps):
                if i == self._start:
                    outs = self._harvest(lanes, rows, outs)
                step.execute(lanes, shared, enough)
            if not self.kinds:
                needed = jnp.sum(lanes.pc != self._idle)
                made = jnp.where(needed > 0, self.lanes, 0)
            if counts is not None:
                counts = counts[0] + made, counts[1] + needed
            carried = [lanes.cells[x] for x in self._carried]
            place = (lanes.pc, lanes.task, lanes.next_task, lanes.credit)
            return *place, carried, outs, counts

        def going(state: Any) -> Array:
            return jnp.any(state[0] != self._idle)

        *_, outs, counts = jax.lax.while_loop(going, turn, state)
        results = dict(zip(self._result, outs, strict=True))
        found = [
            results[x] if isinstance(x, Value) and not x.shared else read(x, shared)
            for x in self._outputs
        ]
        return found, counts if counts is not None else (zero, zero)

    @property
    def differs(self) -> list[bool]:
        """Which outputs every task has for itself."""
        return [isinstance(x, Value) and not x.shared for x in self._outputs]

    def _shared(self) -> dict[Value, Any]:
        """What all lanes have in common."""
        env: dict[Value, Any] = dict(self.program.constants)
        for instruction in self.program.prologue:
            inputs = [read(x, env) for x in instruction.inputs]
            write(instruction, instruction.run(True, *inputs), env)
        return env

    def _enough(self, lanes: Lanes) -> Any:
        """How many lanes have to be at a block for it to run in this sweep."""
        if not self._patient:
            return 1
        at_work = jnp.sum(lanes.pc != self._idle)
        free = jnp.sum(lanes.pc > self._idle)
        free += jnp.sum(jnp.isin(lanes.pc, self._on_their_way))
        share = -(-at_work // _SHARE)
        # All that are held, wherever they are, go on as soon as they are a share.
        return jnp.where(at_work - free >= share, 1, share)

    def _evaluate(
        self, lanes: Lanes, shared: dict[Value, Any], enough: Any
    ) -> tuple[Any, Any]:
        """One call of the expensive function, for all lanes that wait for it."""
        if not self.kinds:
            return 0, 0
        waits = [
            jnp.isin(lanes.pc, np.array([self._waiting[p] for p, *_ in kind.pauses]))
            for kind in self.kinds
        ]
        counts = jnp.stack([jnp.sum(each) for each in waits]).astype(jnp.int32)
        # Lanes on their way to a pause are waited for. Then the many go first, but the
        # longer few have waited, the more they count.
        on_their_way = jnp.any(jnp.isin(lanes.pc, self._on_their_way))
        on_their_way |= (enough <= 1) & jnp.any(lanes.pc <= self._finished)
        ready = ~on_their_way & jnp.any(counts > 0)
        first = jnp.argmax(counts + lanes.credit)
        chosen = jnp.where(ready, 1 + first, 0)
        credit = (lanes.credit + counts).at[first].set(0)
        lanes.credit = jnp.where(ready, credit, lanes.credit)

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

        requests = [[lanes.cells[x] for x in slots] for slots in self._slots]
        branches = [nothing, *(evaluation(i) for i in range(len(self.kinds)))]
        outs = jax.lax.switch(chosen, branches, waits, requests)
        pc = lanes.pc
        for i, (kind, results) in enumerate(zip(self.kinds, outs, strict=True)):
            result_of = dict(zip(kind.results, results, strict=True))
            for pause, _, of_kind in kind.pauses:
                goes_on = (pc == self._waiting[pause]) & (chosen == 1 + i)
                for mine, its in of_kind.items():
                    lanes.write(self._cells[mine], result_of[its], goes_on)
                lanes.pc = jnp.where(goes_on, self._resume[pause], lanes.pc)
        needed = jnp.where(ready, counts[first], 0)
        return jnp.where(ready, self.lanes, 0), needed

    def _harvest(
        self, lanes: Lanes, rows: Sequence[Array], outs: list[Array]
    ) -> list[Array]:
        """Puts results in their places, and gives the lanes that are done new tasks."""
        pairs = zip(self.program.start.params, rows, strict=True)
        needed = {self._cells[x]: row for x, row in pairs if x in self._cells}
        done = lanes.pc == self._finished
        old = [lanes.cells.get(x) for x in needed]
        results = [lanes.cells.get(x) for x in self._result.values()]

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
            pc = jnp.where(done, jnp.where(goes_on, self._start, self._idle), pc)
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
