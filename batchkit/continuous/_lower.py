"""From the jaxpr of one task to basic blocks.

Loops and branches that hold a pause become blocks; everything else stays one
instruction each, for JAX to map over the lanes. A `while` is turned inside out, into a
test before the first turn and a test after each, so that a lane goes from one pause to
the next without coming by the same block twice.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from ._equations import Cond, Jaxpr, Scan, WhileLoop, control_flow, may_not_end
from ._flatten import Item, flattened
from ._pauses import AbstractPauses
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
)
from ._regions import Region, with_regions
from ._running import run, run_guarded


def lowered(jaxpr: Jaxpr, pauses: AbstractPauses) -> Program:
    """The blocks of a task that pauses where `pauses` says."""
    return _Lowering(pauses).program(jaxpr)


@final
class _Lowering:
    """Writes blocks, one after the other; `_now` is the one being written."""

    def __init__(self, pauses: AbstractPauses) -> None:
        self._pauses = pauses
        self._constants: dict[int, tuple[Value, Any]] = {}
        self._prologue: list[Instruction] = []
        self._now = Block()
        self._loops = 0  # around what is being written
        self._branches = 0
        self._times = 1  # the turns of the scans around, multiplied

    def program(self, jaxpr: Jaxpr) -> Program:
        params = [Value(x.aval.shape, x.aval.dtype) for x in jaxpr.jaxpr.invars]
        start = self._now = Block(params)
        outputs = self._jaxpr(jaxpr, params)
        self._now.end = Finish(outputs)
        return Program(start, list(self._constants.values()), self._prologue)

    def _jaxpr(self, jaxpr: Jaxpr, inputs: Sequence[Operand]) -> list[Operand]:
        """Writes a jaxpr from here on, and returns what it computes."""
        items, outputs = flattened(
            jaxpr, inputs, self._constant, self._pauses, self._is_shared
        )
        for item in with_regions(items, outputs, self._pauses):
            if isinstance(item, Region):
                self._region(item)
            else:
                self._item(item)
        return outputs

    def _constant(self, array: Any) -> Value:
        """The value of an array that the task closes over."""
        if id(array) not in self._constants:
            aval = jax.typeof(array)
            self._constants[id(array)] = Value(aval.shape, aval.dtype, True), array
        return self._constants[id(array)][0]

    def _is_shared(self, eqn: Any, inputs: Iterable[Operand]) -> bool:
        """Whether an equation can be computed once, for all lanes and for good.

        A loop that may not end has to stay where it is, behind its branch.
        """
        if any(isinstance(x, Value) and not x.shared for x in inputs):
            return False
        return not eqn.effects and not (
            self._loops + self._branches > 0 and may_not_end(eqn)
        )

    def _block(self, params: list[Value]) -> Block:
        """A new block, in the loops that are around what is being written."""
        return Block(params, loops=self._loops)

    def _item(self, item: Item) -> None:
        if all(x is None or x.shared for x in item.outputs):
            self._prologue.append(_instruction(item))
            return
        inside = self._pauses.inside(item.eqn, item.inputs)
        flow = control_flow(item.eqn, item.inputs) if inside else None
        match flow:
            case WhileLoop():
                self._while(flow, item.outputs)
            case Scan():
                self._scan(flow, item.outputs)
            case Cond():
                self._cond(flow, item.outputs)
            case None:
                self._now.body.append(_instruction(item))

    def _region(self, region: Region) -> None:
        resume = self._block(region.outputs)
        body = [_instruction(item) for item in region.items]
        self._now.end = Pause(body, region.inputs, region.outputs, resume, self._times)
        self._now = resume

    def _while(self, loop: WhileLoop, outputs: Sequence[Value | None]) -> None:
        params = [_like(x) for x in loop.init]
        after = self._block(_for_each(outputs, loop.init))
        self._loops += 1
        turn = self._block(params)

        def test(values: Sequence[Operand], again: bool) -> None:
            (going,) = self._jaxpr(loop.cond, [*loop.cond_consts, *values])
            self._now.end = Branch(
                going,
                [Jump(after, list(values), rare=not again), Jump(turn, list(values))],
            )

        if self._pauses.anywhere(loop.cond):
            head = self._block([_like(x) for x in loop.init])
            self._now.end = Jump(head, list(loop.init))
            self._now = head
            test(head.params, again=True)
            self._now = turn
            values = self._jaxpr(loop.body, [*loop.body_consts, *params])
            self._now.end = Jump(head, values)
        else:
            test(loop.init, again=False)
            self._now = turn
            test(self._jaxpr(loop.body, [*loop.body_consts, *params]), again=True)
        self._loops -= 1
        self._now = after

    def _scan(self, scan: Scan, outputs: Sequence[Value | None]) -> None:
        carries = len(scan.init)
        buffers = outputs[carries:]
        after = self._block(_for_each(outputs[:carries], scan.init))
        if scan.length == 0:
            for buffer in buffers:
                if buffer is not None:
                    self._now.body.append(
                        Instruction(lambda _, b=buffer: [b.zeros()], [], [buffer])
                    )
            self._now.end = Jump(after, list(scan.init))
            self._now = after
            return
        count = Value((), np.dtype(np.int32))
        self._loops += 1
        turn = self._block([count, *(_like(x) for x in scan.init)])
        self._now.end = Jump(turn, [Number(np.int32(0)), *scan.init])
        self._now = turn
        place: Operand = count
        if scan.reverse:
            place = self._write(lambda i: scan.length - 1 - i, count, like=count)
        rows = [
            self._write(
                lambda xs, i: jax.lax.dynamic_index_in_dim(xs, i, keepdims=False),
                xs,
                place,
                like=_row_of(xs),
            )
            for xs in scan.rows
        ]
        self._times *= scan.length
        outs = self._jaxpr(scan.body, [*scan.consts, *turn.params[1:], *rows])
        self._times //= scan.length
        for buffer, row in zip(buffers, outs[carries:], strict=True):
            if buffer is not None:
                self._now.body.append(
                    Instruction(_store, [buffer, place, row], [buffer], stores=True)
                )
        after_this = self._write(lambda i: i + 1, count, like=count)
        going = self._write(
            lambda i: i < scan.length,
            after_this,
            like=Value((), np.dtype(bool)),
        )
        values = outs[:carries]
        self._now.end = Branch(
            going,
            [Jump(after, values), Jump(turn, [after_this, *values])],
            counts=True,
        )
        self._loops -= 1
        self._now = after

    def _cond(self, cond: Cond, outputs: Sequence[Value | None]) -> None:
        join = self._block([])
        jumps: list[Jump] = []
        before = self._now
        self._branches += 1
        for branch in cond.branches:
            self._now = self._block([])
            jumps.append(Jump(self._now, []))
            outs = self._jaxpr(branch, cond.args)
            if not join.params:
                join.params = _for_each(outputs, outs)
            self._now.end = Jump(join, outs)
        self._branches -= 1
        before.end = Branch(cond.index, jumps)
        self._now = join

    def _write(self, fun: Callable[..., Any], *inputs: Operand, like: Value) -> Value:
        """Writes an instruction of our own."""
        output = Value(like.shape, like.dtype)
        self._now.body.append(
            Instruction(lambda _, *xs: [fun(*xs)], list(inputs), [output])
        )
        return output


def _instruction(item: Item) -> Instruction:
    eqn = item.eqn
    guard = may_not_end(eqn)

    def on_a_lane(active: Any, *values: Any) -> Sequence[Any]:
        return run_guarded(eqn, active, *values) if guard else run(eqn, *values)

    return Instruction(on_a_lane, list(item.inputs), list(item.outputs), item.eqn)


def _store(active: Any, buffer: Any, place: Any, row: Any) -> list[Any]:
    """Writes one row in place; a lane without business here writes past the end."""
    place = jnp.where(active, place, buffer.shape[0])
    return [buffer.at[place].set(row, mode="drop")]


def _like(x: Operand) -> Value:
    """A value of its own for each lane, of the same type."""
    if isinstance(x, Value):
        return Value(x.shape, x.dtype)
    return Value(x.value.shape, x.value.dtype)


def _row_of(xs: Operand) -> Value:
    whole = _like(xs)
    return Value(whole.shape[1:], whole.dtype)


def _for_each(outputs: Sequence[Value | None], like: Sequence[Operand]) -> list[Value]:
    """The outputs as parameters of a block; those that nobody reads get a stand-in."""
    return [
        _like(x) if output is None else output
        for output, x in zip(outputs, like, strict=True)
    ]
