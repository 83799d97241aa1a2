"""A task as basic blocks: what the loop over lanes executes.

Values are assigned once, except that a block's parameters take new ones at every jump
to it and that the rows of a scan's results are stored one by one. A value is `shared`
if no lane can have one of its own: it follows from what all tasks have in common.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp


@final
@dataclass(frozen=True, eq=False)
class Value:
    """Something that a program computes."""

    shape: tuple[int, ...]
    dtype: Any
    shared: bool = False

    @property
    def bytes(self) -> int:
        return jax.ShapeDtypeStruct(self.shape, self.dtype).size * self.dtype.itemsize

    def zeros(self, *lanes: int) -> jax.Array:
        """As many zeros, or keys made of zeros, as `lanes` lanes have of it."""
        return jnp.zeros((*lanes, *self.shape), self.dtype)


@final
@dataclass(frozen=True, eq=False)
class Number:
    """A constant that stands in the program itself."""

    value: Any  # an array or a scalar of NumPy


Operand: TypeAlias = Value | Number


@final
@dataclass(eq=False)
class Instruction:
    """One step of a block: `run(active, *inputs)` gives the outputs.

    `active` is whether the lane has business in this block. Others run it as well, and
    what they compute is dropped.
    """

    run: Callable[..., Sequence[Any]]
    inputs: list[Operand]
    outputs: list[Value | None]  # None where nobody reads it
    key: Any = None  # equal keys and inputs mean equal outputs
    stores: bool = False  # changes its first input, and only where active


@final
@dataclass(eq=False)
class Jump:
    """Goes on at the start of a block, whose parameters become `args`."""

    target: "Block"
    args: list[Operand]
    rare: bool = False  # past a loop without a single turn


@final
@dataclass(eq=False)
class Branch:
    """Takes one of several jumps."""

    index: Operand
    jumps: list[Jump]
    counts: bool = False  # the turns of a scan, of which every task makes as many


@final
@dataclass(eq=False)
class Pause:
    """Waits for a call of the expensive function, whose results `resume` takes."""

    region: list[Instruction]
    args: list[Value]
    results: list[Value]
    resume: "Block"
    times: int = 1  # how often a task comes by, if every task takes the same way


@final
@dataclass(eq=False)
class Finish:
    """The task is done."""

    outputs: list[Operand]


End: TypeAlias = Jump | Branch | Pause | Finish


@final
@dataclass(eq=False)
class Block:
    """Instructions that are always executed one after the other."""

    params: list[Value] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    end: Any = None  # an `End`, once it is known
    loops: int = 0  # how many loops stand around it

    @property
    def jumps(self) -> list[Jump]:
        """The jumps at its end."""
        match self.end:
            case Jump() as jump:
                return [jump]
            case Branch() as branch:
                return branch.jumps
            case Pause() | Finish():
                return []
            case _:
                raise AssertionError("a block without an end")

    @property
    def after(self) -> list["Block"]:
        """The blocks that may follow, also after a pause."""
        if isinstance(self.end, Pause):
            return [self.end.resume]
        return [jump.target for jump in self.jumps]


@final
@dataclass(eq=False)
class Program:
    """The blocks of a task."""

    start: Block
    constants: list[tuple[Value, Any]]  # what the task closes over
    prologue: list[Instruction]  # what all tasks have in common, computed once

    def blocks(self) -> list[Block]:
        """Every block that can be reached, `start` first."""
        found: dict[int, Block] = {}
        pending = [self.start]
        while pending:
            block = pending.pop()
            if id(block) not in found:
                found[id(block)] = block
                pending.extend(block.after)
        return list(found.values())

    @property
    def finish(self) -> Finish:
        """The one place where a task is done."""
        (finish,) = (b.end for b in self.blocks() if isinstance(b.end, Finish))
        return finish

    @property
    def branches(self) -> list[Branch]:
        """Where one task may go another way than the next."""
        ends = [block.end for block in self.blocks()]
        return [end for end in ends if isinstance(end, Branch) and not end.counts]

    def pauses(self) -> list[Pause]:
        """Every place where a task waits for the expensive function."""
        return [b.end for b in self.blocks() if isinstance(b.end, Pause)]


def operands(end: End) -> Iterator[Operand]:
    """What the end of a block reads, but for the arguments of its jumps."""
    match end:
        case Branch():
            yield end.index
        case Pause():
            yield from end.args
        case Finish():
            yield from end.outputs
        case Jump():
            pass
