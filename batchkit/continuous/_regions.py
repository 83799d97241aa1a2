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

    def is_call(group: list[Item]) -> bool:
        differs = any(x is not None and not x.shared for x in group[0].outputs)
        return pauses.at(group[0].eqn) and differs

    done: list[list[Item]] = []
    groups = [[item] for item in items]
    while groups:
        first, *groups = groups
        merged = _with_partner(first, groups, pauses) if is_call(first) else None
        if merged is None:
            done.append(first)
        else:
            groups = merged
    return [
        _region(group, done[i + 1 :], outputs) if is_call(group) else group[0]
        for i, group in enumerate(done)
    ]


def _with_partner(
    group: list[Item], rest: list[list[Item]], pauses: AbstractPauses
) -> list[list[Item]] | None:
    """The groups from here on with the next partner of one in it, if it has one."""
    places = (
        i for i, each in enumerate(rest) if any(_is_partner(each[0], x) for x in group)
    )
    place = next(places, None)
    if place is None:
        return None
    made = _outputs(group)
    before: list[list[Item]] = []
    dependent: list[list[Item]] = []
    for each in rest[:place]:
        if made.isdisjoint(_inputs(each)):
            before.append(each)
        else:
            dependent.append(each)
            made |= _outputs(each)
    wanted = _inputs(rest[place])
    between: list[Item] = []
    later: list[list[Item]] = []
    for each in reversed(dependent):
        if wanted.isdisjoint(_outputs(each)):
            later.insert(0, each)
            continue
        if any(pauses.inside(item.eqn, item.inputs) for item in each):
            return None
        between[:0] = each
        wanted |= _inputs(each)
    whole = [*group, *between, *rest[place]]
    return [*before, whole, *later, *rest[place + 1 :]]


def _inputs(group: list[Item]) -> set[int]:
    return {id(x) for item in group for x in item.inputs}


def _outputs(group: list[Item]) -> set[int]:
    return {id(x) for item in group for x in item.outputs if x is not None}


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
    group: list[Item], later: Sequence[list[Item]], outputs: Sequence[Operand]
) -> Region:
    made = _outputs(group)
    inputs = [x for item in group for x in item.inputs if id(x) not in made]
    read = {id(x) for x in outputs}.union(*map(_inputs, later))
    results = [x for item in group for x in item.outputs if x is not None]
    return Region(
        group,
        list(dict.fromkeys(x for x in inputs if isinstance(x, Value))),
        [x for x in results if id(x) in read],
    )
