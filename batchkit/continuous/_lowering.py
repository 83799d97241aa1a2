"""Lowering: from the jaxpr of one task to basic blocks, with inlining.

Calls, loops and branches that hold a pause become blocks. Every other equation stays
one instruction, which `jax.vmap` maps over the lanes. Loops are inverted: a `while`
becomes a test before its first turn and a test at the end of each, so that a lane gets
from one pause to the next without entering a block twice.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from .._util._jaxprs import is_dropped
from ._basic_blocks import (
    BasicBlock,
    Branch,
    Immediate,
    Instruction,
    Jump,
    Operand,
    Pause,
    Return,
    TaskProgram,
    Value,
    varying,
)
from ._common_subexpressions import EquationKeys, operand_key
from ._equations import (
    Cond,
    Scan,
    WhileLoop,
    called_jaxpr,
    control_flow,
    evaluate_masked,
    has_while_loop,
    interpret,
    jit_name,
)
from ._operations import TURNS
from ._pause_points import AbstractPausePoints


def lower(jaxpr: ClosedJaxpr, points: AbstractPausePoints) -> TaskProgram:
    """Lower a task that pauses at `points`."""
    return _Lowering(points).program(jaxpr)


@final
class _Lowering:
    """Appends instructions to `_now`, the block under construction."""

    def __init__(self, points: AbstractPausePoints) -> None:
        self._points = points
        self._constants: dict[int, tuple[Value, Any]] = {}
        self._prologue: list[Instruction] = []
        self._keys = EquationKeys()
        self._hoisted: dict[Hashable, list[Value | None]] = {}  # outputs by key
        self._now = BasicBlock()
        self._loop_depth = 0
        self._branch_depth = 0
        self._trip_count = 1  # the product of the lengths of the loops around

    def program(self, jaxpr: ClosedJaxpr) -> TaskProgram:
        params = [Value(x.aval.shape, x.aval.dtype) for x in jaxpr.jaxpr.invars]
        entry = self._now = BasicBlock(params)
        self._now.terminator = Return(self._jaxpr(jaxpr, params))
        return TaskProgram(entry, list(self._constants.values()), self._prologue)

    def _jaxpr(self, jaxpr: ClosedJaxpr, inputs: Sequence[Operand]) -> list[Operand]:
        """Append a jaxpr, and return its results."""
        instructions, outputs = self._inline(jaxpr, inputs)
        for x in _fuse_calls(instructions, outputs, self._points):
            if isinstance(x, Pause):
                x.trip_count = self._trip_count
                x.resume.loop_depth = self._loop_depth
                self._now.terminator = x
                self._now = x.resume
            else:
                self._instruction(x)
        return outputs

    def _inline(
        self, jaxpr: ClosedJaxpr, inputs: Sequence[Operand]
    ) -> tuple[list[Instruction], list[Operand]]:
        """Return equations as instructions, with calls that hold a pause inlined."""
        # Loops and branches that hold a pause are instructions, too, for now.
        instructions: list[Instruction] = []

        def rule(eqn: Any, inputs: list[Operand]) -> Sequence[Any]:
            is_split = self._points.is_inside(eqn, inputs)
            call = called_jaxpr(eqn) if is_split else None
            if call is not None:
                return inline(call, inputs)
            if not is_split and self._is_uniform(eqn, inputs):
                return self._hoist(eqn, inputs)
            instructions.append(_evaluation(eqn, inputs, uniform=False))
            return instructions[-1].outputs

        def inline(jaxpr: ClosedJaxpr, inputs: Sequence[Operand]) -> list[Operand]:
            consts = [self._constant(array) for array in jaxpr.consts]
            return interpret(jaxpr.jaxpr, consts, inputs, Immediate, rule)

        outputs = inline(jaxpr, inputs)
        return instructions, outputs

    def _constant(self, array: Any) -> Value:
        """Return the value of an array that the task closes over."""
        if id(array) not in self._constants:
            aval = jax.typeof(array)
            self._constants[id(array)] = Value(aval.shape, aval.dtype, True), array
        return self._constants[id(array)][0]

    def _is_uniform(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        """Return whether an equation can be hoisted to the prologue."""
        if any(varying(inputs)) or eqn.effects:
            return False
        # A loop that is never reached might not end, so it stays behind its branch.
        is_conditional = self._loop_depth + self._branch_depth > 0
        return not (is_conditional and has_while_loop(eqn))

    def _hoist(self, eqn: Any, inputs: list[Operand]) -> list[Value | None]:
        """Compute an equation in the prologue, once for all equal ones."""
        # Elsewhere XLA finds common subexpressions: a value that is kept for another
        # block costs memory in every lane.
        dropped = tuple(map(is_dropped, eqn.outvars))
        key = self._keys.of(eqn), tuple(map(operand_key, inputs)), dropped
        if key not in self._hoisted:
            self._prologue.append(_evaluation(eqn, inputs, uniform=True))
            self._hoisted[key] = self._prologue[-1].outputs
        return self._hoisted[key]

    def _block(self, params: list[Value]) -> BasicBlock:
        """Make a block at the current loop depth."""
        return BasicBlock(params, loop_depth=self._loop_depth)

    def _instruction(self, instruction: Instruction) -> None:
        inputs, outputs = instruction.inputs, instruction.outputs
        is_split = self._points.is_inside(instruction.eqn, inputs)
        match control_flow(instruction.eqn, inputs) if is_split else None:
            case WhileLoop() as loop:
                self._while(loop, outputs)
            case Scan() as scan:
                self._scan(scan, outputs)
            case Cond() as cond:
                self._cond(cond, outputs)
            case None:
                self._now.body.append(instruction)

    def _while(self, loop: WhileLoop, outputs: Sequence[Value | None]) -> None:
        params = [x.varying_copy() for x in loop.init]
        after = self._block(_as_params(outputs, loop.init))
        self._loop_depth += 1
        turn = self._block(params)

        def test(values: Sequence[Operand], is_first: bool) -> None:
            (taken,) = self._jaxpr(loop.cond, [*loop.cond_consts, *values])
            leave = Jump(after, list(values), unlikely=is_first)
            self._now.terminator = Branch(taken, [leave, Jump(turn, list(values))])

        if self._points.is_anywhere(loop.cond):
            # Not inverted: a second copy of the test would be a second pause.
            head = self._block([x.varying_copy() for x in loop.init])
            self._trip_count *= TURNS
            self._now.terminator = Jump(head, list(loop.init))
            self._now = head
            test(head.params, is_first=False)
            self._now = turn
            values = self._jaxpr(loop.body, [*loop.body_consts, *params])
            self._now.terminator = Jump(head, values)
        else:
            test(loop.init, is_first=True)
            self._trip_count *= TURNS
            self._now = turn
            values = self._jaxpr(loop.body, [*loop.body_consts, *params])
            test(values, is_first=False)
        self._trip_count //= TURNS
        self._loop_depth -= 1
        self._now = after

    def _scan(self, scan: Scan, outputs: Sequence[Value | None]) -> None:
        carries = len(scan.init)
        buffers = outputs[carries:]
        after = self._block(_as_params(outputs[:carries], scan.init))
        if scan.length == 0:
            for buffer in buffers:
                if buffer is not None:
                    make = lambda _, b=buffer: [b.zeros()]
                    self._now.body.append(Instruction(make, [], [buffer]))
            self._now.terminator = Jump(after, list(scan.init))
            self._now = after
            return
        count = Value((), np.dtype(np.int32))
        self._loop_depth += 1
        turn = self._block([count, *(x.varying_copy() for x in scan.init)])
        self._now.terminator = Jump(turn, [Immediate(np.int32(0)), *scan.init])
        self._now = turn
        index: Operand = count
        if scan.reverse:
            index = self._append(lambda i: scan.length - 1 - i, count, like=count)
        rows = [
            self._append(
                lambda xs, i: jax.lax.dynamic_index_in_dim(xs, i, keepdims=False),
                xs,
                index,
                like=_row_of(xs),
            )
            for xs in scan.rows
        ]
        self._trip_count *= scan.length
        outs = self._jaxpr(scan.body, [*scan.consts, *turn.params[1:], *rows])
        self._trip_count //= scan.length
        for buffer, row in zip(buffers, outs[carries:], strict=True):
            if buffer is not None:
                self._now.body.append(
                    Instruction(
                        _store_row, [buffer, index, row], [buffer], in_place=True
                    )
                )
        next_count = self._append(lambda i: i + 1, count, like=count)
        taken = self._append(
            lambda i: i < scan.length, next_count, like=Value((), np.dtype(bool))
        )
        values = outs[:carries]
        self._now.terminator = Branch(
            taken,
            [Jump(after, values), Jump(turn, [next_count, *values])],
            is_scan=True,
        )
        self._loop_depth -= 1
        self._now = after

    def _cond(self, cond: Cond, outputs: Sequence[Value | None]) -> None:
        join = self._block([])
        jumps: list[Jump] = []
        before = self._now
        self._branch_depth += 1
        for branch in cond.branches:
            self._now = self._block([])
            jumps.append(Jump(self._now, []))
            outs = self._jaxpr(branch, cond.args)
            if not join.params:
                join.params = _as_params(outputs, outs)
            self._now.terminator = Jump(join, outs)
        self._branch_depth -= 1
        before.terminator = Branch(cond.index, jumps)
        self._now = join

    def _append(self, fun: Callable[..., Any], *inputs: Operand, like: Value) -> Value:
        """Append an instruction that stands for no equation, and return its output."""
        output = like.varying_copy()
        self._now.body.append(
            Instruction(lambda _, *xs: [fun(*xs)], list(inputs), [output])
        )
        return output


def _evaluation(eqn: Any, inputs: list[Operand], uniform: bool) -> Instruction:
    outputs = [
        None if is_dropped(x) else Value(x.aval.shape, x.aval.dtype, uniform)
        for x in eqn.outvars
    ]
    run = functools.partial(evaluate_masked, eqn)
    return Instruction(run, inputs, outputs, eqn)


def _store_row(active: Any, buffer: Any, index: Any, row: Any) -> list[Any]:
    """Store one row in place; an inactive lane stores past the end, and so nothing."""
    # A select between the old buffer and the new one would copy it at every turn.
    index = jnp.where(active, index, buffer.shape[0])
    return [buffer.at[index].set(row, mode="drop")]


def _row_of(xs: Operand) -> Value:
    rows = xs.varying_copy()
    return Value(rows.shape[1:], rows.dtype)


def _as_params(outputs: Sequence[Value | None], like: Sequence[Operand]) -> list[Value]:
    """Return the outputs as block parameters, with new ones for unused outputs."""
    return [
        x.varying_copy() if output is None else output
        for output, x in zip(outputs, like, strict=True)
    ]


# Call fusion: a call of the expensive function and its derivative are one pause. The
# gradient of a marked function is two equations: one computes the value and the
# residuals, the other pulls the cotangent back. With the instructions between them,
# which compute the cotangent, they become one region, so that no lane ever stores the
# residuals.


def _fuse_calls(
    instructions: Sequence[Instruction],
    outputs: Sequence[Operand],
    points: AbstractPausePoints,
) -> list[Instruction | Pause]:
    """Make a pause of each call, in an order that keeps a region together."""

    def is_call(group: list[Instruction]) -> bool:
        return points.is_call(group[0].eqn)

    done: list[list[Instruction]] = []
    groups = [[instruction] for instruction in instructions]
    while groups:
        first, *groups = groups
        fused = _with_derivative(first, groups, points) if is_call(first) else None
        if fused is None:
            done.append(first)
        else:
            groups = fused
    return [
        _pause(group, done[i + 1 :], outputs) if is_call(group) else group[0]
        for i, group in enumerate(done)
    ]


def _with_derivative(
    group: list[Instruction],
    rest: list[list[Instruction]],
    points: AbstractPausePoints,
) -> list[list[Instruction]] | None:
    """Move the next derivative of a call in `group` into it, or return None."""
    # None if there is no derivative, or if a pause stands between the two.
    is_derivative = (
        i
        for i, each in enumerate(rest)
        if any(_is_derivative(each[0], x) for x in group)
    )
    place = next(is_derivative, None)
    if place is None:
        return None
    made = _outputs(group)
    independent: list[list[Instruction]] = []
    dependent: list[list[Instruction]] = []
    for each in rest[:place]:
        if made.isdisjoint(_inputs(each)):
            independent.append(each)
        else:
            dependent.append(each)
            made |= _outputs(each)
    needed = _inputs(rest[place])
    between: list[Instruction] = []
    later: list[list[Instruction]] = []
    for each in reversed(dependent):
        if needed.isdisjoint(_outputs(each)):
            later.insert(0, each)
            continue
        if any(points.is_inside(x.eqn, x.inputs) for x in each):
            return None
        between[:0] = each
        needed |= _inputs(each)
    fused = [*group, *between, *rest[place]]
    return [*independent, fused, *later, *rest[place + 1 :]]


def _is_derivative(instruction: Instruction, of: Instruction) -> bool:
    """Return whether a call pulls back through `of`."""
    # Then it has the same name, reads what `of` computes, and calls another jaxpr.
    name = jit_name(instruction.eqn)
    if not name or name != jit_name(of.eqn):
        return False
    if _outputs([of]).isdisjoint(_inputs([instruction])):
        return False
    one, other = called_jaxpr(instruction.eqn), called_jaxpr(of.eqn)
    return one is not None and other is not None and one.jaxpr is not other.jaxpr


def _pause(
    region: list[Instruction],
    later: Sequence[list[Instruction]],
    outputs: Sequence[Operand],
) -> Pause:
    made = _outputs(region)
    inputs = [x for each in region for x in each.inputs if id(x) not in made]
    used = {id(x) for x in outputs}.union(*map(_inputs, later))
    results = [x for each in region for x in each.outputs if x is not None]
    results = [x for x in results if id(x) in used]
    args = list(dict.fromkeys(x for x in inputs if isinstance(x, Value)))
    return Pause(region, args, results, BasicBlock(results))


def _inputs(group: list[Instruction]) -> set[int]:
    return {id(x) for instruction in group for x in instruction.inputs}


def _outputs(group: list[Instruction]) -> set[int]:
    return {id(x) for each in group for x in each.outputs if x is not None}
