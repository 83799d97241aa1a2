"""Which values each block still needs: what a lane has to remember, and no more."""

from collections.abc import Iterable, Iterator

from ._program import (
    Block,
    Instruction,
    Operand,
    Pause,
    Program,
    Value,
    operands,
)


def live_values(program: Program) -> dict[Block, set[Value]]:
    """The values, other than shared ones, that each block reads from before.

    A block's own parameters count if it, or a later one, reads them. What is computed
    only for somebody who is not read himself counts as not needed.
    """
    blocks = program.blocks()
    live: dict[Block, set[Value]] = {block: set() for block in blocks}
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            new = set(_before(block, live))
            if new != live[block]:
                live[block] = new
                changed = True
    return live


def live_after(block: Block, live: dict[Block, set[Value]]) -> set[Value]:
    """What is needed once the instructions of a block are done."""
    needed = set(own(operands(block.end)))
    if isinstance(block.end, Pause):
        needed |= live[block.end.resume] - set(block.end.results)
    for jump in block.jumps:
        target = live[jump.target]
        needed |= target - set(jump.target.params)
        pairs = zip(jump.target.params, jump.args, strict=True)
        needed.update(own(arg for param, arg in pairs if param in target))
    return needed


def needed_instructions(
    instructions: list[Instruction], needed: set[Value]
) -> list[Instruction]:
    """Those that lead to what is needed; `needed` becomes what they need themselves."""
    kept: list[Instruction] = []
    for instruction in reversed(instructions):
        outputs = [x for x in instruction.outputs if x is not None]
        has_effects = getattr(instruction.key, "effects", None)
        if not needed.intersection(outputs) and not has_effects:
            continue
        kept.insert(0, instruction)
        if not instruction.stores:  # which leaves the rest as it was
            needed.difference_update(outputs)
        needed.update(x for x in instruction.inputs if isinstance(x, Value))
    return kept


def own(operands: Iterable[Operand]) -> Iterator[Value]:
    """The values among some operands that each lane has for itself."""
    return (x for x in operands if isinstance(x, Value) and not x.shared)


def _before(block: Block, live: dict[Block, set[Value]]) -> Iterator[Value]:
    needed = live_after(block, live)
    needed_instructions(block.body, needed)
    return own(needed)
