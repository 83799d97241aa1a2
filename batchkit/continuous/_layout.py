"""Layout: program counters, slots, and what each block reads from and writes to them.

A sweep executes the blocks in reverse postorder. Between blocks lanes keep their values
in slots, one row of an array each. Slot coalescing lets values share a slot whose live
ranges are disjoint: a value that is carried around a loop has a name before the loop,
one in it and one after it, and would be copied from each to the next at every turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeAlias, final

from ._basic_blocks import (
    BasicBlock,
    Branch,
    Instruction,
    Operand,
    Pause,
    Return,
    TaskProgram,
    Value,
    varying,
)
from ._common_subexpressions import call_kinds
from ._packing import Packing
from ._simplification import live_values


# A slot, and what a block stores in it at one of its exits.
_Store: TypeAlias = tuple[Value, Operand]


@final
@dataclass(frozen=True)
class SlotWrite:
    """A value that lanes store when they leave a block."""

    slot: Value
    operand: Operand
    exits: frozenset[int] | None = None  # the jumps at which they do; None: all
    in_place: bool = False  # an instruction has updated the slot, for active lanes only


@final
@dataclass(frozen=True, eq=False)
class RowStores:
    """Rows that a block writes to the results of all tasks, at one index."""

    index: Operand
    results: list[Value]
    rows: list[Operand]

    @property
    def length(self) -> int:
        return self.results[0].shape[0]

    @property
    def packing(self) -> Packing:
        """Return the buffers of the rows."""
        return Packing([Value(x.shape[1:], x.dtype) for x in self.results])


@final
@dataclass(frozen=True)
class PlacedBlock:
    """A block with its program counter and its slots."""

    block: BasicBlock
    pc: int
    body: list[Instruction]  # but for stores in the results of all tasks
    row_stores: list[RowStores]
    reads: dict[Value, Value]  # values that it reads, with their slots
    writes: list[SlotWrite]
    next_pc: list[int]  # for each exit
    is_hot: bool  # in nearly every sweep some lane is at it

    @property
    def written_slots(self) -> list[Value]:
        """Return the slots that it writes to, without repetition."""
        return list(dict.fromkeys(x.slot for x in self.writes))


@final
class LaneLayout:
    """A program laid out on lanes."""

    def __init__(self, program: TaskProgram, patient: bool) -> None:
        self.program = program
        # Whether lanes are held before blocks outside of the innermost loops until
        # there are several. This pays if an evaluation is cheap: a lane misses some of
        # them, but not all lanes execute a block that few are at.
        self.patient = patient
        self.kinds = call_kinds(program.pauses())
        order = _reverse_postorder(program)
        self.live = live_values(program)
        self.slots = _coalesced_slots(order, self.live)
        # The program counter of a lane is the place in the sweep of the block that it
        # is to execute next, or a number past the last block.
        self.block_pc = {block: pc for pc, block in enumerate(order)}
        self.returned_pc = len(order)  # its task is done
        self.idle_pc = self.returned_pc + 1  # no task is left
        self.pause_pc: dict[Pause, int] = {}  # it waits there
        # For each kind the slots of its arguments, and for each pause what it stores in
        # them. Common arguments need none.
        self.arg_slots: list[list[Value]] = []
        self._pause_stores: dict[Pause, list[_Store]] = {}
        for kind in self.kinds:
            varies = [not is_common for is_common in kind.is_common]
            slots = [x.varying_copy() for x in compress(kind.args, varies)]
            self.arg_slots.append(slots)
            for pause, passed, _ in kind.pauses:
                self.pause_pc[pause] = self.idle_pc + 1 + len(self.pause_pc)
                stores = zip(slots, compress(passed, varies), strict=True)
                self._pause_stores[pause] = list(stores)
        self.output_slots = {x: x.varying_copy() for x in varying(program.results)}
        self.output_packing = Packing(list(self.output_slots))
        depth = max(block.loop_depth for block in order)
        self.sweep = [self._placed(block, hot_depth=depth) for block in order]
        cold = {x.block for x in self.sweep if not x.is_hot}
        self.held = cold if patient else set[BasicBlock]()
        self.carried = self._carried_slots(order)

    @property
    def bytes_per_lane(self) -> int:
        """Return the bytes that a lane stores between two turns of the loop."""
        counters = 8  # the program counter and the index of the task
        return counters + sum(x.bytes for x in self.carried)

    @property
    def is_output_varying(self) -> list[bool]:
        """Return which outputs differ between tasks."""
        results = set(self.program.results)
        return [x in results for x in self.program.exit.outputs]

    def _carried_slots(self, order: Sequence[BasicBlock]) -> list[Value]:
        """Return the slots that are live from one turn of the loop to the next."""
        entry = self.program.entry
        backward = _backward_targets(self.program, order)
        carried = {x for slots in self.arg_slots for x in slots}
        for pause in self.pause_pc:
            kept = self.live[pause.resume] - set(pause.results)
            carried |= {self.slots[x] for x in kept}
        for block in backward | self.held:
            carried |= {self.slots[x] for x in self.live[block]}
        if entry in backward:
            carried |= set(self.output_slots.values())
        # In the order in which they are first written, so that equal programs have
        # equal layouts.
        results = [x for pause in self.pause_pc for x in pause.results]
        written = [self.slots.get(x, x) for x in (*entry.params, *results)]
        written += [x for placed in self.sweep for x in placed.written_slots]
        return [x for x in dict.fromkeys(written) if x in carried]

    def _placed(self, block: BasicBlock, hot_depth: int) -> PlacedBlock:
        """Lay out a block; those in the innermost loops, at `hot_depth`, are hot."""
        made = {x: None for i in block.body for x in i.outputs if x is not None}

        def kept(live: set[Value], assigned: Sequence[Value]) -> list[_Store]:
            return [(self.slots[x], x) for x in made if x in live.difference(assigned)]

        exits: list[
            tuple[Sequence[_Store], int]
        ] = []  # what is stored, the next counter
        match block.terminator:
            case Pause() as pause:
                stores = kept(self.live[pause.resume], pause.results)
                stores += self._pause_stores[pause]
                exits.append((stores, self.pause_pc[pause]))
            case Return():
                stores = [(slot, x) for x, slot in self.output_slots.items()]
                exits.append((stores, self.returned_pc))
            case _:
                for jump in block.jumps:
                    params = jump.target.params
                    stores = kept(self.live[jump.target], params)
                    slots = [self.slots[x] for x in params]
                    stores += zip(slots, jump.args, strict=True)
                    exits.append((stores, self.block_pc[jump.target]))
        taken: dict[_Store, set[int]] = {}
        for i, (stores, _) in enumerate(exits):
            for store in stores:
                taken.setdefault(store, set()).add(i)
        updated = {x for i in block.body if i.in_place for x in i.outputs}
        writes: list[SlotWrite] = []
        for (slot, x), where in taken.items():
            in_its_slot = isinstance(x, Value) and self.slots.get(x) is slot
            if in_its_slot and x not in made:
                continue  # the slot holds it already
            some_exits = None if len(where) == len(exits) else frozenset(where)
            in_place = in_its_slot and x in updated
            writes.append(SlotWrite(slot, x, some_exits, in_place))
        return PlacedBlock(
            block,
            self.block_pc[block],
            [i for i in block.body if not _stores_in_results(i)],
            _row_stores(block),
            {x: self.slots[x] for x in _reads(block, writes)},
            writes,
            [pc for _, pc in exits],
            block.loop_depth >= hot_depth,
        )


def _reads(block: BasicBlock, writes: Sequence[SlotWrite]) -> Iterator[Value]:
    """Yield the varying values that a block reads and does not compute."""
    made: set[Value] = set()
    for instruction in block.body:
        yield from (x for x in varying(instruction.inputs) if x not in made)
        made.update(x for x in instruction.outputs if x is not None)
    operands = [x.operand for x in writes]
    if isinstance(block.terminator, Branch):
        operands.append(block.terminator.index)
    yield from (x for x in varying(operands) if x not in made)


def _stores_in_results(instruction: Instruction) -> bool:
    return any(x is not None and x.in_results for x in instruction.outputs)


def _row_stores(block: BasicBlock) -> list[RowStores]:
    """Group the stores of a block by their index."""
    groups: dict[Any, RowStores] = {}
    for instruction in filter(_stores_in_results, block.body):
        buffer, index, row = instruction.inputs
        assert isinstance(buffer, Value)
        key = id(index), buffer.shape[0]
        group = groups.setdefault(key, RowStores(index, [], []))
        group.results.append(buffer)
        group.rows.append(row)
    return list(groups.values())


def _coalesced_slots(
    blocks: Sequence[BasicBlock], live: Mapping[BasicBlock, set[Value]]
) -> dict[Value, Value]:
    """Slot coalescing: return for each value the one that stands for its slot."""
    # Live ranges are sets of blocks, since slots are read at the start of a block and
    # written at its end.
    ranges: dict[Value, int] = {}  # a bit for each block
    for i, block in enumerate(blocks):
        for x in live[block]:
            ranges[x] = ranges.get(x, 0) | 1 << i
    slot: dict[Value, Value] = {x: x for x in ranges}
    members: dict[Value, list[Value]] = {x: [x] for x in ranges}
    # Only values between which there is a copy, the largest first: sharing saves it.
    for one, other in sorted(_copies(blocks), key=lambda pair: -pair[0].bytes):
        if one not in slot or other not in slot:
            continue
        a, b = slot[one], slot[other]
        same_type = (a.shape, a.dtype) == (b.shape, b.dtype)
        if a is b or ranges[a] & ranges[b] or not same_type:
            continue
        ranges[a] |= ranges[b]
        for x in members.pop(b):
            slot[x] = a
            members[a].append(x)
    return slot


def _copies(blocks: Sequence[BasicBlock]) -> Iterator[tuple[Value, Value]]:
    """Yield pairs of values of which one is copied to the other, or both from one."""
    for block in blocks:
        copied_to: dict[int, Value] = {}
        for jump in block.jumps:
            for param, arg in zip(jump.target.params, jump.args, strict=True):
                if isinstance(arg, Value) and not arg.uniform:
                    yield param, arg
                if id(arg) in copied_to:
                    yield param, copied_to[id(arg)]
                copied_to[id(arg)] = param


def _reverse_postorder(program: TaskProgram) -> list[BasicBlock]:
    """Return the blocks in reverse postorder of a depth-first search."""
    # So a block comes after those that jump to it, and one sweep takes a lane from one
    # pause to the next. At a back edge, which no pause interrupts, the lane waits for
    # the next sweep. Unlikely jumps are not followed: if a cycle has one, it becomes
    # the back edge.
    blocks = program.blocks()
    postorder: list[BasicBlock] = []
    seen: set[BasicBlock] = set()

    def likely(block: BasicBlock) -> Iterator[BasicBlock]:
        unlikely = {jump.target for jump in block.jumps if jump.unlikely}
        return (x for x in _next_in_sweep(block, program) if x not in unlikely)

    def visit(block: BasicBlock) -> None:
        # An explicit stack: a long task has more blocks than Python's recursion limit.
        stack = [(block, likely(block))]
        seen.add(block)
        while stack:
            block, targets = stack[-1]
            target = next((x for x in targets if x not in seen), None)
            if target is None:
                postorder.append(block)
                stack.pop()
            else:
                seen.add(target)
                stack.append((target, likely(target)))

    resumes = [pause.resume for pause in program.pauses()]
    for block in [program.entry, *resumes, *blocks]:
        if block not in seen:
            visit(block)
    return postorder[::-1]


def _backward_targets(
    program: TaskProgram, order: Sequence[BasicBlock]
) -> set[BasicBlock]:
    """Return the blocks that are entered from a block that does not precede them."""
    place = {block: i for i, block in enumerate(order)}
    return {
        target
        for block in order
        for target in _next_in_sweep(block, program)
        if place[target] <= place[block]
    }


def _next_in_sweep(block: BasicBlock, program: TaskProgram) -> list[BasicBlock]:
    """Return the blocks that a lane may execute next without a pause."""
    match block.terminator:
        case Pause():
            return []
        case Return():
            return [program.entry]  # of the next task
        case _:
            return [jump.target for jump in block.jumps]
