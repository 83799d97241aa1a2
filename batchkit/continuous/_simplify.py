"""Making a program smaller before it runs: every value saved is one less per lane."""

from collections import Counter
from typing import Any

from ._compare import same_equation, same_number
from ._liveness import live_after, live_values, needed_instructions
from ._program import (
    Block,
    Branch,
    Finish,
    Instruction,
    Jump,
    Number,
    Operand,
    Pause,
    Program,
    Value,
    operands,
)


def simplify(program: Program) -> None:
    """Removes parameters that never change, needless jumps, and what nobody reads."""
    _join_equal(program)
    _resolve_parameters(program)
    # What is not needed may be all that something else was needed for.
    while True:
        before = _size(program)
        _merge_blocks(program)
        _drop_unneeded(program)
        if _size(program) == before:
            return


def _size(program: Program) -> int:
    return sum(1 + len(x.params) + len(_read(x)) for x in program.blocks())


def _join_equal(program: Program) -> None:
    """Computes once what the prologue computes twice."""
    same: dict[int, Operand] = {}
    known: dict[Any, list[Instruction]] = {}
    kept: list[Instruction] = []
    for instruction in program.prologue:
        instruction.inputs = [same.get(id(x), x) for x in instruction.inputs]
        values = tuple(id(x) for x in instruction.inputs if isinstance(x, Value))
        alike = known.setdefault((str(instruction.key.primitive), values), [])
        twin = next((x for x in alike if _equal(x, instruction)), None)
        if twin is None:
            alike.append(instruction)
            kept.append(instruction)
            continue
        for mine, its in zip(instruction.outputs, twin.outputs, strict=True):
            if mine is not None and its is not None:
                same[id(mine)] = its
    program.prologue = kept
    _replace(program, same)


def _equal(one: Instruction, other: Instruction) -> bool:
    return (
        len(one.inputs) == len(other.inputs)
        and all(map(_same_operand, one.inputs, other.inputs))
        and same_equation(one.key, other.key)
        and all(
            mine is not None or its is None
            for mine, its in zip(one.outputs, other.outputs, strict=True)
        )
    )


def _resolve_parameters(program: Program) -> None:
    """Replaces parameters that are the same on every way to their block."""
    blocks = program.blocks()
    fixed = {program.start, *(p.resume for p in program.pauses())}
    jumps: dict[Block, list[Jump]] = {}
    for block in blocks:
        for jump in block.jumps:
            jumps.setdefault(jump.target, []).append(jump)
    same: dict[int, Operand] = {}

    def resolved(x: Operand) -> Operand:
        while id(x) in same:
            x = same[id(x)]
        return x

    changed = True
    while changed:
        changed = False
        for block, incoming in jumps.items():
            if block in fixed:
                continue
            for i, param in enumerate(block.params):
                if id(param) in same:
                    continue
                args = [resolved(jump.args[i]) for jump in incoming]
                others = [x for x in args if x is not param]
                if others and all(_same_operand(x, others[0]) for x in others):
                    same[id(param)] = others[0]
                    changed = True
    for block, incoming in jumps.items():
        keep = [id(param) not in same for param in block.params]
        block.params = _only(block.params, keep)
        for jump in incoming:
            jump.args = _only(jump.args, keep)
    _replace(program, {key: resolved(x) for key, x in same.items()})


def _merge_blocks(program: Program) -> None:
    """Appends to a block the one that always follows and never follows another."""
    entries = Counter(x for block in program.blocks() for x in block.after)
    for block in program.blocks():
        while isinstance(block.end, Jump) and entries[block.end.target] == 1:
            jump = block.end
            target = jump.target
            if target is block or target is program.start:
                break
            # A parameter that is left has one value only, so it was resolved.
            assert not target.params
            block.body += target.body
            block.end = target.end


def _drop_unneeded(program: Program) -> None:
    live = live_values(program)
    blocks = program.blocks()
    for block in blocks:
        needed = live_after(block, live)
        block.body = needed_instructions(block.body, needed)
        for jump in block.jumps:
            target = jump.target
            jump.args = _only(jump.args, [x in live[target] for x in target.params])
    for pause in program.pauses():
        pause.results = [x for x in pause.results if x in live[pause.resume]]
        needed = set(pause.results)
        pause.region = needed_instructions(pause.region, needed)
        pause.args = [x for x in pause.args if x in needed]
        pause.resume.params = pause.results
    for block in blocks:
        if isinstance(block.end, Pause) and not block.end.region:
            block.end = Jump(block.end.resume, [])
    for block in blocks:
        if block is not program.start:
            block.params = [x for x in block.params if x in live[block]]
    needed = {x for block in blocks for x in _read(block) if isinstance(x, Value)}
    program.prologue = needed_instructions(program.prologue, needed)
    program.constants = [pair for pair in program.constants if pair[0] in needed]


def _read(block: Block) -> list[Operand]:
    """Everything that a block reads."""
    body = list(block.body)
    if isinstance(block.end, Pause):
        body += block.end.region
    args = [x for jump in block.jumps for x in jump.args]
    inputs = [x for instruction in body for x in instruction.inputs]
    return [*inputs, *args, *operands(block.end)]


def _replace(program: Program, same: dict[int, Operand]) -> None:
    """Reads other values in place of some, everywhere."""
    if not same:
        return

    def new(xs: list[Any]) -> list[Any]:
        return [same.get(id(x), x) for x in xs]

    for instruction in program.prologue:
        instruction.inputs = new(instruction.inputs)
    for block in program.blocks():
        for instruction in block.body:
            instruction.inputs = new(instruction.inputs)
        for jump in block.jumps:
            jump.args = new(jump.args)
        match block.end:
            case Branch():
                (block.end.index,) = new([block.end.index])
            case Pause():
                for instruction in block.end.region:
                    instruction.inputs = new(instruction.inputs)
                args = new(block.end.args)
                unique = {id(x): x for x in args if isinstance(x, Value)}
                block.end.args = list(unique.values())
            case Finish():
                block.end.outputs = new(block.end.outputs)
            case _:
                pass


def _same_operand(one: Operand, other: Operand) -> bool:
    if isinstance(one, Number) and isinstance(other, Number):
        return same_number(one.value, other.value)
    return one is other


def _only(xs: list[Any], keep: list[bool]) -> list[Any]:
    return [x for x, kept in zip(xs, keep, strict=True) if kept]
