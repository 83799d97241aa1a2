"""A jaxpr without the calls in it that hide a pause."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from ._equations import Jaxpr, called, is_dropped, is_literal, literal_value
from ._pauses import AbstractPauses
from ._program import Number, Operand, Value


@final
@dataclass(eq=False)
class Item:
    """An equation with what it reads and what it computes."""

    eqn: Any
    inputs: list[Operand]
    outputs: list[Value | None]  # None for results that nobody reads


def flattened(
    jaxpr: Jaxpr,
    inputs: Sequence[Operand],
    constant: Callable[[Any], Value],
    pauses: AbstractPauses,
    is_shared: Callable[[Any, Iterable[Operand]], bool],
) -> tuple[list[Item], list[Operand]]:
    """The equations of a jaxpr in order, and what it computes.

    **Arguments:**

    - `jaxpr`: what is to be written out.
    - `inputs`: what it is applied to.
    - `constant`: gives the value of an array that is closed over.
    - `pauses`: where tasks pause. A call with a pause inside is replaced by what it
        calls.
    - `is_shared`: whether an equation without a pause, applied to these inputs, gives
        all lanes the same.
    """
    items: list[Item] = []

    def write(jaxpr: Jaxpr, inputs: Sequence[Operand]) -> list[Operand]:
        env: dict[Any, Operand] = {}
        for var, array in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            env[var] = constant(array)
        env.update(zip(jaxpr.jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Operand:
            return Number(literal_value(atom)) if is_literal(atom) else env[atom]

        for eqn in jaxpr.jaxpr.eqns:
            args = [read(atom) for atom in eqn.invars]
            inside = pauses.inside(eqn, args)
            call = called(eqn) if inside else None
            if call is not None:
                outs: Sequence[Any] = write(call, args)
            else:
                shared = not inside and is_shared(eqn, args)
                outs = [
                    None
                    if is_dropped(var)
                    else Value(var.aval.shape, var.aval.dtype, shared)
                    for var in eqn.outvars
                ]
                items.append(Item(eqn, args, list(outs)))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    return items, write(jaxpr, inputs)
