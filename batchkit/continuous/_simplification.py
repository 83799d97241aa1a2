"""Simplification: redundant block parameters (phi), liveness, dead-code elimination.

Fewer values are live across a pause then, so each lane stores less. A block parameter
that is always the same value is replaced by it, a block with one predecessor is merged
into that, and instructions whose results are not live are removed.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

from ._basic_blocks import (
    BasicBlock,
    Branch,
    Instruction,
    Jump,
    Operand,
    Pause,
    Return,
    TaskProgram,
    Value,
    operands,
    varying,
)
from ._common_subexpressions import operand_key


def simplify(program: TaskProgram) -> None:
    """Run all passes on a program, in place."""
    _eliminate_parameters(program)
    # Dead code may have been the only use of other code, and the only instructions of
    # a pause, after which blocks can be merged.
    size = None
    while size != _size(program):
        size = _size(program)
        _merge_blocks(program)
        _eliminate_dead_code(program)
    _store_in_results(program)


def live_values(program: TaskProgram) -> dict[BasicBlock, set[Value]]:
    """Liveness analysis: the varying values that are live at the start of blocks."""
    # A block's own parameters are live if it, or a block after it, reads them.
    blocks = program.blocks()
    live: dict[BasicBlock, set[Value]] = {block: set() for block in blocks}
    changed = True
    while changed:
        changed = False
        # Backwards, as uses propagate; then few rounds reach the fixed point.
        for block in reversed(blocks):
            needed = _live_at_end(block, live)
            _live_instructions(block.body, needed)
            new = set(varying(needed))
            if new != live[block]:
                live[block] = new
                changed = True
    return live


def _live_at_end(
    block: BasicBlock, live: Mapping[BasicBlock, set[Value]]
) -> set[Value]:
    """Return the values that are live after the instructions of a block."""
    needed = set(varying(operands(block.terminator)))
    if isinstance(block.terminator, Pause):
        needed |= live[block.terminator.resume] - set(block.terminator.results)
    for jump in block.jumps:
        target = live[jump.target]
        needed |= target - set(jump.target.params)
        pairs = zip(jump.target.params, jump.args, strict=True)
        needed.update(varying(arg for param, arg in pairs if param in target))
    return needed


def _live_instructions(
    instructions: Sequence[Instruction], needed: set[Value]
) -> list[Instruction]:
    """Drop dead instructions, and turn `needed` into what is needed before them."""
    kept: list[Instruction] = []
    for instruction in reversed(instructions):
        outputs = [x for x in instruction.outputs if x is not None]
        has_effects = getattr(instruction.eqn, "effects", None)
        in_results = any(x.in_results for x in outputs)
        if not needed.intersection(outputs) and not has_effects and not in_results:
            continue
        kept.insert(0, instruction)
        # An instruction that updates a buffer in place reads it, too.
        needed.difference_update(outputs)
        needed.update(x for x in instruction.inputs if isinstance(x, Value))
    return kept


def _eliminate_parameters(program: TaskProgram) -> None:
    """Replace block parameters that have the same argument at every jump."""
    fixed = {program.entry, *(pause.resume for pause in program.pauses())}
    incoming: dict[BasicBlock, list[Jump]] = {}
    for block in program.blocks():
        for jump in block.jumps:
            incoming.setdefault(jump.target, []).append(jump)
    same: dict[int, Operand] = {}

    def resolve(x: Operand) -> Operand:
        while id(x) in same:
            x = same[id(x)]
        return x

    changed = True
    while changed:  # a parameter may be the argument of another one
        changed = False
        for block, jumps in incoming.items():
            for i, param in enumerate(block.params):
                if block in fixed or id(param) in same:
                    continue
                args = [resolve(jump.args[i]) for jump in jumps]
                # A loop that passes its parameter on does not change it.
                others = [x for x in args if x is not param]
                if len(set(map(operand_key, others))) == 1:
                    same[id(param)] = others[0]
                    changed = True
    for block, jumps in incoming.items():
        keep = [id(param) not in same for param in block.params]
        block.params = list(compress(block.params, keep))
        for jump in jumps:
            jump.args = list(compress(jump.args, keep))
    _replace(program, {key: resolve(x) for key, x in same.items()})


def _merge_blocks(program: TaskProgram) -> None:
    """Merge each block with one predecessor into it, if that ends with a jump."""
    entries = Counter(x for block in program.blocks() for x in block.successors)
    for block in program.blocks():
        while isinstance(block.terminator, Jump):
            target = block.terminator.target
            if entries[target] > 1 or target in (block, program.entry):
                break
            # With one predecessor all parameters were redundant.
            assert not target.params
            block.body += target.body
            block.terminator = target.terminator


def _eliminate_dead_code(program: TaskProgram) -> None:
    live = live_values(program)
    blocks = program.blocks()
    for block in blocks:
        block.body = _live_instructions(block.body, _live_at_end(block, live))
        for jump in block.jumps:
            used = [x in live[jump.target] for x in jump.target.params]
            jump.args = list(compress(jump.args, used))
    for pause in program.pauses():
        pause.results = [x for x in pause.results if x in live[pause.resume]]
        needed = set(pause.results)
        pause.region = _live_instructions(pause.region, needed)
        pause.args = [x for x in pause.args if x in needed]
        pause.resume.params = pause.results
    for block in blocks:
        if isinstance(block.terminator, Pause) and not block.terminator.region:
            block.terminator = Jump(block.terminator.resume, [])
    for block in blocks:
        if block is not program.entry:  # whose parameters are the task's arguments
            block.params = [x for x in block.params if x in live[block]]
    needed = {x for block in blocks for x in _reads(block) if isinstance(x, Value)}
    program.prologue = _live_instructions(program.prologue, needed)
    program.constants = [pair for pair in program.constants if pair[0] in needed]


def _store_in_results(program: TaskProgram) -> None:
    """Write the rows of a scan's results to the results of all tasks at once."""
    # This is possible for a result that nothing else reads. It saves a copy of all rows
    # in each lane, and copying them to the results when the task ends.
    outputs = [id(x) for x in program.exit.outputs]
    read = Counter(outputs)
    for block in program.blocks():
        read.update(id(x) for x in _reads(block))
    stored = Counter(id(x.outputs[0]) for x in program.instructions() if x.in_place)
    # A store reads the rows before it, and the exit reads them all, twice in `read`.
    moved = {
        x: dataclasses.replace(x, in_results=True)
        for x in program.results
        if stored[id(x)] > 0
        and outputs.count(id(x)) == 1
        and read[id(x)] == stored[id(x)] + 2
    }
    _replace(program, {id(x): new for x, new in moved.items()})
    for instruction in program.instructions():
        instruction.outputs = [
            x if x is None else moved.get(x, x) for x in instruction.outputs
        ]


def _size(program: TaskProgram) -> int:
    return sum(1 + len(x.params) + len(_reads(x)) for x in program.blocks())


def _reads(block: BasicBlock) -> list[Operand]:
    """Return everything that a block and its pause read."""
    body = list(block.body)
    if isinstance(block.terminator, Pause):
        body += block.terminator.region
    inputs = [x for instruction in body for x in instruction.inputs]
    args = [x for jump in block.jumps for x in jump.args]
    return [*inputs, *args, *operands(block.terminator)]


def _replace(program: TaskProgram, same: Mapping[int, Operand]) -> None:
    """Replace values, given by their `id`, wherever they are read."""
    if not same:
        return

    def new(xs: list[Any]) -> list[Any]:
        return [same.get(id(x), x) for x in xs]

    for instruction in [*program.prologue, *program.instructions()]:
        instruction.inputs = new(instruction.inputs)
    for block in program.blocks():
        for jump in block.jumps:
            jump.args = new(jump.args)
        match block.terminator:
            case Branch() as branch:
                (branch.index,) = new([branch.index])
            case Pause() as pause:
                args = [x for x in new(pause.args) if isinstance(x, Value)]
                pause.args = list(dict.fromkeys(args))
            case Return() as end:
                end.outputs = new(end.outputs)
            case _:
                pass
