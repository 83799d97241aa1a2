"""Where a lane may be, and where it keeps what it has.

The program counter of a lane is the number of the block that it is about to enter, or
tells that its task is done, that no task is left for it, or at which pause it waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from ._cells import cells_of
from ._kinds import Kind
from ._liveness import live_values, own
from ._program import Block, Operand, Pause, Program, Value


@final
@dataclass(frozen=True, eq=False)
class Places:
    """Program counters and cells."""

    number: Mapping[Block, int]  # a lane is about to enter it
    finished: int  # its task is done
    idle: int  # no task is left
    waiting: Mapping[Pause, int]  # it waits for a call of the expensive function
    live: Mapping[Block, set[Value]]  # what each block reads from before
    cells: Mapping[Value, Value]  # where each value is kept
    slots: Sequence[Sequence[Value]]  # where the arguments of each kind of call are put
    requests: Mapping[Pause, list[tuple[Value, Operand]]]  # and which they are
    results: Mapping[Value, Value]  # where the outputs of a task are put


def places_of(
    program: Program, order: Sequence[Block], kinds: Sequence[Kind]
) -> Places:
    """The places of a program.

    **Arguments:**

    - `program`: the blocks of one task.
    - `order`: the same in the order of a sweep.
    - `kinds`: which pauses wait for the same call.
    """
    live = live_values(program)
    idle = len(order) + 1
    waiting: dict[Pause, int] = {}
    requests: dict[Pause, list[tuple[Value, Operand]]] = {}
    slots: list[list[Value]] = []
    for kind in kinds:
        args = [x for x, c in zip(kind.args, kind.common, strict=True) if not c]
        mine = [Value(x.shape, x.dtype) for x in args]
        slots.append(mine)
        for pause, passed, _ in kind.pauses:
            waiting[pause] = idle + 1 + len(waiting)
            given = [x for x, c in zip(passed, kind.common, strict=True) if not c]
            requests[pause] = list(zip(mine, given, strict=True))
    return Places(
        number={block: i for i, block in enumerate(order)},
        finished=len(order),
        idle=idle,
        waiting=waiting,
        live=live,
        cells=cells_of(list(order), live),
        slots=slots,
        requests=requests,
        results={x: Value(x.shape, x.dtype) for x in own(program.finish.outputs)},
    )
