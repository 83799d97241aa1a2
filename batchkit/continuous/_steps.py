"""One block of a sweep: its instructions, and what they change for the lanes there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp

from ._kinds import read, write
from ._lanes import Lanes
from ._liveness import own
from ._program import Block, Branch, Finish, Operand, Pause, Value


@final
@dataclass(frozen=True)
class Assignment:
    """A value that the lanes leaving a block take along."""

    value: Value
    operand: Operand
    way: int | None = None  # only those that leave by this jump
    stored: bool = False  # written in place, for the right lanes only


@final
@dataclass(frozen=True)
class Step:
    """A block with its place in the sweep."""

    block: Block
    number: int
    reads: list[Value]
    assignments: list[Assignment]
    next: list[int]  # where the program counter goes, for each way to leave
    skips: bool  # whether it is passed over when no lane is there

    @property
    def written(self) -> list[Value]:
        """What it assigns to."""
        return list(dict.fromkeys(x.value for x in self.assignments))

    def execute(self, lanes: Lanes, shared: Mapping[Value, Any]) -> None:
        """Runs the block for the lanes that are about to enter it."""
        here = lanes.pc == self.number
        written = self.written

        def go(lanes_pc: Any, cells: dict[Value, Any]) -> Any:
            after = Lanes(lanes_pc, lanes.task, lanes.next_task, dict(cells))
            self._execute(here, after, shared)
            return after.pc, [after.cells[x] for x in written]

        def stay(pc: Any, cells: dict[Value, Any]) -> Any:
            count = pc.shape[0]
            return pc, [cells[x] if x in cells else x.zeros(count) for x in written]

        if self.skips:
            needed = list(dict.fromkeys([*self.reads, *written]))
            given = {x: lanes.cells[x] for x in needed if x in lanes.cells}
            keys = list(given)
            pc, new = jax.lax.cond(
                jnp.any(here),
                lambda pc, xs: go(pc, dict(zip(keys, xs, strict=True))),
                lambda pc, xs: stay(pc, dict(zip(keys, xs, strict=True))),
                lanes.pc,
                list(given.values()),
            )
        else:
            pc, new = go(lanes.pc, lanes.cells)
        lanes.pc = pc
        lanes.cells.update(zip(written, new, strict=True))

    def _execute(self, here: Any, lanes: Lanes, shared: Mapping[Value, Any]) -> None:
        end = self.block.end

        def on_a_lane(active: Any, values: list[Any]) -> tuple[list[Any], Any]:
            env: dict[Value, Any] = dict(shared)
            env.update(zip(self.reads, values, strict=True))
            for instruction in self.block.body:
                inputs = [read(x, env) for x in instruction.inputs]
                write(instruction, instruction.run(active, *inputs), env)
            outs = [read(x.operand, env) for x in self.assignments]
            way = read(end.index, env) if isinstance(end, Branch) else 0
            return outs, way

        values = [lanes.cells[x] for x in self.reads]
        size = here.shape[0]
        outs, way = jax.vmap(on_a_lane, axis_size=size)(here, values)
        way = jnp.clip(way.astype(jnp.int32), 0, len(self.next) - 1)
        for assignment, out in zip(self.assignments, outs, strict=True):
            if assignment.stored:
                lanes.cells[assignment.value] = out
            elif assignment.way is None:
                lanes.write(assignment.value, out, here)
            else:
                lanes.write(assignment.value, out, here & (way == assignment.way))
        goes_to = self.next[0]
        if len(self.next) > 1:
            goes_to = jnp.array(self.next, jnp.int32)[way]
        lanes.pc = jnp.where(here, goes_to, lanes.pc)


def step_of(
    block: Block,
    number: Mapping[Block, int],
    live: Mapping[Block, set[Value]],
    waiting: Mapping[Pause, int],
    slots: Mapping[Pause, list[tuple[Value, Operand]]],
    results: Mapping[Value, Value],
    finished: int,
) -> Step:
    """A block as a step of the sweep.

    **Arguments:**

    - `block`: the block.
    - `number`: the place of each block in the sweep.
    - `live`: what each block reads from before.
    - `waiting`: the program counter of a lane that waits at a pause.
    - `slots`: where the arguments of a pause are put, and what they are.
    - `results`: where the outputs of a task are put.
    - `finished`: the program counter of a lane whose task is done.
    """
    made = [x for i in block.body for x in i.outputs if x is not None]
    stored = {x for i in block.body if i.stores for x in i.outputs}
    after = _still_needed(block, live)
    assignments = [
        Assignment(x, x, stored=x in stored) for x in dict.fromkeys(made) if x in after
    ]
    match block.end:
        case Pause() as pause:
            assignments += [Assignment(slot, arg) for slot, arg in slots[pause]]
            following = [waiting[pause]]
        case Finish():
            assignments += [Assignment(slot, x) for x, slot in results.items()]
            following = [finished]
        case _:
            several = len(block.jumps) > 1
            for way, jump in enumerate(block.jumps):
                for param, arg in zip(jump.target.params, jump.args, strict=True):
                    assignments.append(Assignment(param, arg, way if several else None))
            following = [number[jump.target] for jump in block.jumps]
    return Step(
        block,
        number[block],
        list(dict.fromkeys(_reads(block, assignments))),
        assignments,
        following,
        skips=True,
    )


def _still_needed(block: Block, live: Mapping[Block, set[Value]]) -> set[Value]:
    """What is read after the block, other than what its end passes on."""
    if isinstance(block.end, Pause):
        return live[block.end.resume] - set(block.end.results)
    needed: set[Value] = set()
    for jump in block.jumps:
        needed |= live[jump.target] - set(jump.target.params)
    return needed


def _reads(block: Block, assignments: list[Assignment]) -> Iterator[Value]:
    """What a block reads that it did not make itself."""
    made: set[Value] = set()
    for instruction in block.body:
        yield from (x for x in own(instruction.inputs) if x not in made)
        made.update(x for x in instruction.outputs if x is not None)
    operands = [x.operand for x in assignments]
    if isinstance(block.end, Branch):
        operands.append(block.end.index)
    yield from (x for x in own(operands) if x not in made)
