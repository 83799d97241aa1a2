"""Basic blocks: the intermediate representation of a task.

It is in static single assignment form, with block parameters instead of phi functions:
a value is assigned once, except that block parameters are assigned at every jump and
that the rows of a scan's results are stored in place. A value is `uniform` if it is the
same in all lanes, since it follows from what all tasks have in common, else varying.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp


@final
@dataclass(frozen=True, eq=False)
class Value:
    """A variable of a program. Slots, in which lanes keep values, are `Value` too."""

    shape: tuple[int, ...]
    dtype: Any
    uniform: bool = False
    # Rows of it are written to the results of all tasks, and no lane has a copy.
    in_results: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize

    def zeros(self, *lanes: int) -> jax.Array:
        """Return zeros, or keys made of zeros, for `lanes` lanes."""
        return jnp.zeros((*lanes, *self.shape), self.dtype)

    def varying_copy(self) -> "Value":
        """Return a new varying value of the same type."""
        return Value(self.shape, self.dtype)


@final
@dataclass(frozen=True, eq=False)
class Immediate:
    """A constant that is part of the program's text."""

    value: Any  # a NumPy array or scalar

    def varying_copy(self) -> Value:
        """Return a new varying value of the same type."""
        return Value(self.value.shape, self.value.dtype)


Operand: TypeAlias = Value | Immediate


@final
@dataclass(eq=False)
class Instruction:
    """One step of a block, which all lanes execute."""

    # From the mask of active lanes and the inputs to the outputs, which are dropped
    # where the mask is false.
    run: Callable[..., Sequence[Any]]
    inputs: list[Operand]
    outputs: list[Value | None]  # None where unused
    eqn: Any = None  # of JAX; None for instructions that lowering adds
    in_place: bool = False  # updates its first input, and only where active


@final
@dataclass(eq=False)
class Jump:
    """A jump to a block, whose parameters become `args`."""

    target: "BasicBlock"
    args: list[Operand]
    unlikely: bool = False  # around a loop of which no turn is taken


@final
@dataclass(eq=False)
class Branch:
    """A choice between jumps."""

    index: Operand
    jumps: list[Jump]
    is_scan: bool = False  # the back edge of a scan: equally often taken by all tasks


@final
@dataclass(eq=False)
class Pause:
    """A call of the expensive function, which all waiting lanes evaluate together."""

    region: list[Instruction]
    args: list[Value]
    results: list[Value]  # the parameters of `resume`
    resume: "BasicBlock"
    trip_count: int = 1  # calls in one task; a `while` loop turns `TURNS` times


@final
@dataclass(eq=False)
class Return:
    """The end of a task."""

    outputs: list[Operand]


Terminator: TypeAlias = Jump | Branch | Pause | Return


@final
@dataclass(eq=False)
class BasicBlock:
    """Instructions that are always executed one after the other."""

    params: list[Value] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    terminator: Any = None  # a `Terminator`, once lowering has reached it
    loop_depth: int = 0

    @property
    def jumps(self) -> list[Jump]:
        """Return the jumps of the terminator."""
        match self.terminator:
            case Jump() as jump:
                return [jump]
            case Branch() as branch:
                return branch.jumps
            case Pause() | Return():
                return []
            case _:
                raise AssertionError("a block without a terminator")

    @property
    def successors(self) -> list["BasicBlock"]:
        """Return the blocks that may follow, also after a pause."""
        if isinstance(self.terminator, Pause):
            return [self.terminator.resume]
        return [jump.target for jump in self.jumps]


@final
@dataclass(eq=False)
class TaskProgram:
    """The control-flow graph of a task."""

    entry: BasicBlock
    constants: list[tuple[Value, Any]]  # the arrays that the task closes over
    prologue: list[Instruction]  # of uniform values, executed once for all tasks

    def blocks(self) -> list[BasicBlock]:
        """Return all reachable blocks, `entry` first."""
        found: dict[int, BasicBlock] = {}
        pending = [self.entry]
        while pending:
            block = pending.pop()
            if id(block) not in found:
                found[id(block)] = block
                pending.extend(block.successors)
        return list(found.values())

    def terminators(self) -> list[Terminator]:
        """Return the terminators of all blocks."""
        return [block.terminator for block in self.blocks()]

    @property
    def exit(self) -> Return:
        """Return the only `Return`."""
        (found,) = (end for end in self.terminators() if isinstance(end, Return))
        return found

    @property
    def results(self) -> list[Value]:
        """Return the values of the exit that differ between tasks, each once."""
        values = (x for x in self.exit.outputs if isinstance(x, Value))
        return list(dict.fromkeys(x for x in values if not x.uniform))

    @property
    def divergent_branches(self) -> list[Branch]:
        """Return the branches at which tasks may take different paths."""
        branches = [end for end in self.terminators() if isinstance(end, Branch)]
        return [branch for branch in branches if not branch.is_scan]

    def pauses(self) -> list[Pause]:
        """Return all pauses."""
        return [end for end in self.terminators() if isinstance(end, Pause)]

    def instructions(self) -> Iterator[Instruction]:
        """Yield the instructions of all blocks and pauses, but not of the prologue."""
        for block in self.blocks():
            yield from block.body
            if isinstance(block.terminator, Pause):
                yield from block.terminator.region


def operands(end: Terminator) -> list[Operand]:
    """Return what a terminator reads, without the arguments of its jumps."""
    match end:
        case Branch():
            return [end.index]
        case Pause():
            return list(end.args)
        case Return():
            return end.outputs
        case Jump():
            return []


def varying(operands: Iterable[Operand]) -> Iterator[Value]:
    """Yield the operands that differ between lanes, and that lanes keep."""
    return (
        x
        for x in operands
        if isinstance(x, Value) and not x.uniform and not x.in_results
    )


def execute(
    instructions: Iterable[Instruction], active: Any, env: dict[Value, Any]
) -> None:
    """Execute instructions on the arrays in `env`, and add their outputs to it."""
    for instruction in instructions:
        inputs = [read(x, env) for x in instruction.inputs]
        outs = instruction.run(active, *inputs)
        for output, out in zip(instruction.outputs, outs, strict=True):
            if output is not None:
                env[output] = out


def read(x: Operand, env: dict[Value, Any]) -> Any:
    """Return the array that an operand stands for."""
    return x.value if isinstance(x, Immediate) else env[x]
