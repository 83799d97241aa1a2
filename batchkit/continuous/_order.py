"""In which order one sweep goes through the blocks.

A sweep takes every lane from where it is to its next pause, so a block should come
after all those from which it is entered. Where that is impossible, since the graph has
circles that no pause interrupts, a lane that goes back waits for the next sweep. Past a
loop without a single turn hardly anybody ever goes, so those jumps count last.
"""

from collections.abc import Sequence

from ._program import Block, Finish, Pause, Program


def sweep_order(program: Program) -> list[Block]:
    """All blocks; those that end with `Finish` lead on to the start of a next task."""
    blocks = program.blocks()
    done: list[Block] = []
    seen: set[Block] = set()

    def visit(block: Block) -> None:
        stack = [(block, iter(_usual(block, program)))]
        seen.add(block)
        while stack:
            block, following = stack[-1]
            for target in following:
                if target not in seen:
                    seen.add(target)
                    stack.append((target, iter(_usual(target, program))))
                    break
            else:
                done.append(block)
                stack.pop()

    resumes = [pause.resume for pause in program.pauses()]
    for block in [program.start, *resumes, *blocks]:
        if block not in seen:
            visit(block)
    return done[::-1]


def goes_back(program: Program, order: Sequence[Block]) -> set[Block]:
    """The blocks that are entered from one that does not come before them."""
    place = {block: i for i, block in enumerate(order)}
    return {
        target
        for block in order
        for target in _following(block, program)
        if place[target] <= place[block]
    }


def _following(block: Block, program: Program) -> list[Block]:
    if isinstance(block.end, Pause):
        return []
    if isinstance(block.end, Finish):
        return [program.start]
    return [jump.target for jump in block.jumps]


def _usual(block: Block, program: Program) -> list[Block]:
    """Where one goes on without a pause, but for what is rare."""
    rare = {jump.target for jump in block.jumps if jump.rare}
    return [x for x in _following(block, program) if x not in rare]
