"""Where the lanes keep values: one cell for several of them, where that is possible.

A value that is carried around a loop goes by several names: what the loop starts with,
what it is in a turn, what comes out at the end. Each of them would be written at every
turn, for every lane. Values that are never needed at the same time share a cell, and a
value that is handed on in its cell is not written at all.
"""

from collections.abc import Iterator, Mapping

from ._program import Block, Value


def cells_of(
    blocks: list[Block], live: Mapping[Block, set[Value]]
) -> dict[Value, Value]:
    """For each value the one whose cell it is kept in.

    **Arguments:**

    - `blocks`: the blocks of a program.
    - `live`: what each of them reads from before. Only between blocks are values in
        cells, so those that no block needs together can share one.
    """
    needed_in: dict[Value, int] = {}  # the blocks, as bits
    for i, block in enumerate(blocks):
        for x in live[block]:
            needed_in[x] = needed_in.get(x, 0) | 1 << i
    cell: dict[Value, Value] = {x: x for x in needed_in}
    members: dict[Value, list[Value]] = {x: [x] for x in needed_in}
    for one, other in sorted(_alike(blocks), key=lambda pair: -pair[0].bytes):
        if one not in cell or other not in cell:
            continue
        a, b = cell[one], cell[other]
        if a is b or needed_in[a] & needed_in[b]:
            continue
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            continue
        needed_in[a] |= needed_in[b]
        for x in members.pop(b):
            cell[x] = a
            members[a].append(x)
    return cell


def _alike(blocks: list[Block]) -> Iterator[tuple[Value, Value]]:
    """Pairs of values of which one becomes the other, or both become the same."""
    for block in blocks:
        becomes: dict[int, Value] = {}
        for jump in block.jumps:
            for param, arg in zip(jump.target.params, jump.args, strict=True):
                if isinstance(arg, Value) and not arg.shared:
                    yield param, arg
                if id(arg) in becomes:
                    yield param, becomes[id(arg)]
                becomes[id(arg)] = param
