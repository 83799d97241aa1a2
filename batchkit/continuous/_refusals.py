"""What lanes that run apart from each other cannot do."""

from collections.abc import Iterator
from typing import Any

import jax

from .._util._jaxprs import inner_jaxprs
from ..batchers._sharded import inside_shard_map
from ..batchers._traced_task import batch_dependent_draws
from ._equations import communicates, is_literal
from ._pauses import AbstractPauses
from ._program import Instruction, Pause, Program, Value
from ._running import run


def refuse_effects(jaxpr: Any, pauses: AbstractPauses, batcher: object) -> None:
    """Raises if a task has effects anywhere but in the expensive function."""
    # Lanes of one program over all devices come to a `shard_map` together.
    alone = not inside_shard_map()
    for eqn, is_expensive, is_spread in _innermost(jaxpr, pauses, False, False):
        if communicates(eqn) and not (is_spread and alone):
            raise ValueError(
                f"The function uses the collective {eqn.primitive.name!r}, but under "
                f"{batcher} lanes go their own ways, on every device in another order, "
                "so they cannot meet for it. Use `Vmap()`, or communicate outside of "
                "the mapped function."
            )
        if eqn.effects and not is_expensive:
            raise ValueError(
                f"The function has a side effect ({eqn.primitive.name}) outside of its "
                f"expensive function. Under {batcher} all lanes execute all of it, "
                "also when they have no business there, so the effect would happen "
                "too often. Move it into the function marked by "
                "`batchkit.expensive`, or use `Vmap()` or `Chunked`."
            )


def refuse_draws_by_batch(program: Program, batcher: object) -> None:
    """Raises if lanes draw random bits that depend on the lanes beside them.

    Tasks may carry a key that is the same for all of them. Under `jax.vmap` it stays
    one key then, but lanes at different turns have different keys.
    """
    for instruction in _instructions(program):
        drawn_by = _drawn_by(instruction)
        if drawn_by is not None:
            raise ValueError(
                f"The function draws random numbers by {drawn_by} in a loop. They are "
                "drawn for a whole batch from the first key of the batch, but under "
                f"{batcher} lanes are at different turns of the loop, so the draws "
                "would not be those of `jax.vmap`. Use threefry keys "
                "(`jax.random.key(seed, impl='threefry2x32')`), or `Vmap()`."
            )


def _instructions(program: Program) -> Iterator[Instruction]:
    for block in program.blocks():
        yield from block.body
        if isinstance(block.end, Pause):
            yield from block.end.region


def _drawn_by(instruction: Instruction) -> str | None:
    eqn, inputs = instruction.key, instruction.inputs
    if eqn is None:
        return None
    differ = [isinstance(x, Value) and not x.shared for x in inputs]
    avals = [x.aval for x in eqn.invars]

    def on_a_lane(*row: Any) -> list[Any]:
        lane = iter(row)
        values = [
            next(lane)
            if differs
            else x.val
            if is_literal(x)
            else jax.numpy.zeros(x.aval.shape, x.aval.dtype)
            for x, differs in zip(eqn.invars, differ, strict=True)
        ]
        return run(eqn, *values)

    row = [aval for aval, differs in zip(avals, differ, strict=True) if differs]
    return batch_dependent_draws([eqn], on_a_lane, row)


def _innermost(
    jaxpr: Any, pauses: AbstractPauses, is_expensive: bool, is_spread: bool
) -> Iterator[tuple[Any, bool, bool]]:
    """Each equation, whether it is in the expensive function, and in a `shard_map`."""
    for eqn in jaxpr.eqns:
        inside = is_expensive or pauses.at(eqn)
        spread = is_spread or eqn.primitive.name == "shard_map"
        inner = list(inner_jaxprs(eqn))
        if not inner:
            yield eqn, inside, spread
        for each in inner:
            yield from _innermost(each, pauses, inside, spread)
