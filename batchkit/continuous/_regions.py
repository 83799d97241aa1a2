"""Calls of the expensive function, each with its derivative, as one pause.

The gradient of a marked function comes as two equations: one computes the value and
what the derivative needs of the way there, the other pulls the derivative back through
it. Between them stands what computes the cotangent. All three together become one
region, so that what passes between them is never stored for a lane.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from ._equations import called, name_of_call
from ._flatten import Item
from ._pauses import AbstractPauses
from ._program import Operand, Value


@final
@dataclass(eq=False)
class Region:
    """Items that are computed together while a lane pauses."""

    items: list[Item]
    inputs: list[Value]
    outputs: list[Value]


def with_regions(
    items: Sequence[Item], outputs: Sequence[Operand], pauses: AbstractPauses
) -> list[Item | Region]:
    """The same items, in an order that keeps what belongs together side by side."""
    done: list[Item | list[Item]] = []
    rest: list[Item | list[Item]] = [
        [item] if pauses.at(item.eqn) and _differs(item) else item for item in items
    ]
    while rest:
        first = rest.pop(0)
        if isinstance(first, list):
            merged = _with_partner(first, rest, pauses)
            if merged is not None:
                rest = merged
                continue
        done.append(first)
    return [
        _region(each, done[i + 1 :], outputs) if isinstance(each, list) else each
        for i, each in enumerate(done)
    ]


def _differs(item: Item) -> bool:
    return any(x is not None and not x.shared for x in item.outputs)


def _with_partner(
    group: list[Item], rest: list[Item | list[Item]], pauses: AbstractPauses
) -> list[Item | list[Item]] | None:
    """The items from here on with the next partner of a group in it, if it has one."""
    place, partner = _first_partner(group, rest)
    if not partner:
        return None
    made = {id(x) for item in group for x in item.outputs}
    before: list[Item | list[Item]] = []
    dependent: list[Item | list[Item]] = []
    for each in rest[:place]:
        parts = each if isinstance(each, list) else [each]
        if any(id(x) in made for part in parts for x in part.inputs):
            dependent.append(each)
            made.update(id(x) for part in parts for x in part.outputs)
        else:
            before.append(each)
    wanted = {id(x) for item in partner for x in item.inputs}
    between: list[Item] = []
    later: list[Item | list[Item]] = []
    for each in reversed(dependent):
        parts = each if isinstance(each, list) else [each]
        if any(id(x) in wanted for part in parts for x in part.outputs):
            if any(pauses.inside(part.eqn, part.inputs) for part in parts):
                return None
            between[:0] = parts
            wanted.update(id(x) for part in parts for x in part.inputs)
        else:
            later.insert(0, each)
    return [*before, [*group, *between, *partner], *later, *rest[place + 1 :]]


def _first_partner(
    group: list[Item], rest: list[Item | list[Item]]
) -> tuple[int, list[Item]]:
    """The place of a partner and what it consists of; nothing if there is none."""
    for place, each in enumerate(rest):
        if isinstance(each, list) and any(_is_partner(each[0], x) for x in group):
            return place, each
    return 0, []


def _is_partner(item: Item, of: Item) -> bool:
    """Whether an item pulls back through `of`: the same name, but not the same call."""
    if name_of_call(item.eqn) != name_of_call(of.eqn) or not name_of_call(of.eqn):
        return False
    made = {id(x) for x in of.outputs}
    if not any(id(x) in made for x in item.inputs):
        return False
    return _callee(item) is not _callee(of)


def _callee(item: Item) -> Any:
    call = called(item.eqn)
    return None if call is None else call.jaxpr


def _region(
    group: list[Item], later: Sequence[Item | list[Item]], outputs: Sequence[Operand]
) -> Region:
    made = [x for item in group for x in item.outputs if x is not None]
    ids = {id(x) for x in made}
    inputs: dict[int, Value] = {}
    for item in group:
        for x in item.inputs:
            if isinstance(x, Value) and id(x) not in ids:
                inputs[id(x)] = x
    read = {id(x) for x in outputs}
    for each in later:
        for item in each if isinstance(each, list) else [each]:
            read.update(id(x) for x in item.inputs)
    return Region(group, list(inputs.values()), [x for x in made if id(x) in read])
