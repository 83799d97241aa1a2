"""One block of a sweep: its instructions, and what they change for the lanes there."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp

from ._kinds import read, write
from ._lanes import Lanes, put
from ._liveness import own
from ._places import Places
from ._program import Block, Branch, Finish, Operand, Pause, Value


@final
@dataclass(frozen=True)
class Assignment:
    """A value that the lanes leaving a block take along."""

    cell: Value
    operand: Operand
    ways: frozenset[int] | None = None  # only those that leave by these jumps
    stored: bool = False  # written in place, for the right lanes only


@final
@dataclass(frozen=True)
class Step:
    """A block with its place in the sweep."""

    block: Block
    number: int
    reads: dict[Value, Value]  # and the cell that each is in
    assignments: list[Assignment]
    next: list[int]  # where the program counter goes, for each way to leave
    skips: bool  # whether it is passed over when too few lanes are there

    @property
    def written(self) -> list[Value]:
        """What it assigns to."""
        return list(dict.fromkeys(x.cell for x in self.assignments))

    def execute(
        self, lanes: Lanes, shared: Mapping[Value, Any], enough: Any = 1
    ) -> None:
        """Runs the block for the lanes that are about to enter it, if they are enough.

        A block that is never passed over runs for any number.
        """
        here = lanes.pc == self.number
        written = self.written

        def go(pc: Any, cells: dict[Value, Any]) -> Any:
            pc, cells = self._execute(here, pc, dict(cells), shared)
            return pc, [cells[x] for x in written]

        def stay(pc: Any, cells: dict[Value, Any]) -> Any:
            count = pc.shape[0]
            return pc, [cells[x] if x in cells else x.zeros(count) for x in written]

        if self.skips:
            needed = list(dict.fromkeys([*self.reads.values(), *written]))
            given = {x: lanes.cells[x] for x in needed if x in lanes.cells}
            keys = list(given)
            pc, new = jax.lax.cond(
                jnp.sum(here) >= enough,
                lambda pc, xs: go(pc, dict(zip(keys, xs, strict=True))),
                lambda pc, xs: stay(pc, dict(zip(keys, xs, strict=True))),
                lanes.pc,
                list(given.values()),
            )
        else:
            pc, new = go(lanes.pc, lanes.cells)
        lanes.pc = pc
        lanes.cells.update(zip(written, new, strict=True))

    def _execute(
        self, here: Any, pc: Any, cells: dict[Value, Any], shared: Mapping[Value, Any]
    ) -> tuple[Any, dict[Value, Any]]:
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

        values = [cells[x] for x in self.reads.values()]
        outs, way = jax.vmap(on_a_lane, axis_size=here.shape[0])(here, values)
        way = jnp.clip(way.astype(jnp.int32), 0, len(self.next) - 1)
        for assignment, out in zip(self.assignments, outs, strict=True):
            if assignment.stored:
                cells[assignment.cell] = out
                continue
            where = here
            if assignment.ways is not None:
                taken = [way == i for i in sorted(assignment.ways)]
                where = here & functools.reduce(jnp.logical_or, taken)
            put(cells, assignment.cell, out, where)
        goes_to = self.next[0]
        if len(self.next) > 1:
            goes_to = jnp.array(self.next, jnp.int32)[way]
        return jnp.where(here, goes_to, pc), cells


def step_of(block: Block, places: Places, hot: int) -> Step:
    """A block as a step of the sweep.

    **Arguments:**

    - `block`: the block.
    - `places`: where lanes are, and where they keep what they have.
    - `hot`: blocks in as many loops as this, or more, have a lane in nearly every
        sweep, so that it does not pay to ask.
    """
    live, cells = places.live, places.cells
    passed: list[list[tuple[Value, Operand]]]
    match block.end:
        case Pause() as pause:
            kept = [live[pause.resume] - set(pause.results)]
            passed = [places.requests[pause]]
            following = [places.waiting[pause]]
        case Finish():
            kept = [set[Value]()]
            passed = [[(slot, x) for x, slot in places.results.items()]]
            following = [places.finished]
        case _:
            kept = [live[x.target] - set(x.target.params) for x in block.jumps]
            passed = [
                [
                    (cells[param], arg)
                    for param, arg in zip(x.target.params, x.args, strict=True)
                ]
                for x in block.jumps
            ]
            following = [places.number[x.target] for x in block.jumps]
    assignments = list(_assignments(block, cells, kept, passed))
    return Step(
        block,
        places.number[block],
        {x: cells[x] for x in _reads(block, assignments)},
        assignments,
        following,
        block.loops < hot,
    )


def _assignments(
    block: Block,
    cells: Mapping[Value, Value],
    kept: list[set[Value]],
    passed: list[list[tuple[Value, Operand]]],
) -> Iterator[Assignment]:
    """What a block writes, given for each way what is kept and what is passed on."""
    made = {x: None for i in block.body for x in i.outputs if x is not None}
    stored = {x for i in block.body if i.stores for x in i.outputs}
    ways: dict[tuple[Value, int], set[int]] = {}
    operands: dict[int, Operand] = {}
    for way, (values, pairs) in enumerate(zip(kept, passed, strict=True)):
        for x in made:
            if x in values:
                ways.setdefault((cells[x], id(x)), set()).add(way)
                operands[id(x)] = x
        for cell, operand in pairs:
            ways.setdefault((cell, id(operand)), set()).add(way)
            operands[id(operand)] = operand
    for (cell, key), taken in ways.items():
        x = operands[key]
        in_place = isinstance(x, Value) and cells.get(x) is cell
        if in_place and x not in made:
            continue  # it is there already
        everywhere = len(taken) == len(kept)
        yield Assignment(
            cell,
            x,
            None if everywhere else frozenset(taken),
            stored=in_place and x in stored,
        )


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
