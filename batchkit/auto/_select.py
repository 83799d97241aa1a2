"""From a task and a budget to a batcher, with the reason."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ..batchers import AbstractBatcher, Chunked, Vmap
from ..batchers._bytes import in_words
from ..batchers._call import Call, part_of_call
from ..batchers._marks import in_task
from ..batchers._task import Task
from ..continuous import Continuous
from ..continuous._plan import plan_of
from ._errors import BudgetError
from ._probe import (
    ROOM,
    bound_of_lane,
    bytes_of_lanes,
    bytes_of_program,
    largest_arrays,
)
from ._rule import bytes_that_pay, lanes_that_pay
from ._search import largest_that_fits
from ._selection import Selection


def select(
    task: Task, call: Call, batcher: object, budget: int, around: int
) -> Selection:
    """Chooses what computes a task.

    **Arguments:**

    - `task`: one task, and the rows of all.
    - `call`: where it is from.
    - `batcher`: the one that asks, for messages.
    - `budget`: the bytes on one device.
    - `around`: how many lanes of other sites there are around each lane of this one.

    **Raises:**

    `BudgetError` if one lane does not fit; the refusal to split the tasks if they
    cannot be split and not all of them fit.
    """
    mine = budget // around
    refusal = call.refusal(task, batcher)
    if refusal is None and call.spmd_axis_name is None and not in_task():
        selection = _continuous(task, mine)
        if selection is not None:
            return selection
    measure = functools.cache(functools.partial(bytes_of_lanes, task, call.axis_name))
    if refusal is None:
        selection = _in_cache(task, mine, measure)
        if selection is not None:
            return selection
    bound = task.size * bound_of_lane(task)
    if bound <= mine:
        reason = f"all {task.size} tasks at once need less than {_of(bound, mine)}"
        return Selection(Vmap(), reason, None, mine)
    # Of tasks that cannot be split, no other number makes a program.
    least = task.size if refusal is not None else 1
    found = largest_that_fits(measure, mine, task.size, least)
    if found.size == task.size:
        reason = f"all {task.size} tasks at once need {_of(found.bytes, mine)}"
        return Selection(Vmap(), reason, found.bytes, mine)
    if refusal is not None:
        needed = f"all {task.size} tasks at once need {_of(found.bytes, mine)}"
        refusal.add_note(f"{batcher} has to split the tasks: {needed}.")
        raise refusal
    if found.size == 0:
        largest = largest_arrays(task.jaxpr.jaxpr)
        raise BudgetError(str(batcher), found.bytes, mine, around, largest)
    reason = (
        f"{found.size} of {task.size} tasks at once need {_of(found.bytes, mine)}, "
        f"{found.size + 1} would need {in_words(found.of(found.size + 1))}"
    )
    return Selection(Chunked(found.size), reason, found.bytes, mine)


def run_task(
    batcher: AbstractBatcher, task: Task, axis_name: Any = None, spmd: Any = None
) -> Callable[..., list[Any]]:
    """A function of what a task closes over and of the rows, run by a batcher."""

    def run(closure: list[Any], rows: list[Any]) -> list[Any]:
        one = functools.partial(task.run, closure=closure)
        part = part_of_call(
            batcher.batch, one, task.lane_out_axes, task.size, spmd, axis_name
        )
        return part(*rows)

    return run


def _continuous(task: Task, budget: int) -> Selection | None:
    """Lanes that never wait, if they pay and at least one fits."""
    if in_task():
        return None
    plan = plan_of(task)
    lanes = lanes_that_pay(task.size, bool(plan.program.branches), plan.operations)
    if lanes == 0:
        return None

    reason = (
        f"{plan.name} ({plan.operations:,.0f} operations) is called in loops whose "
        "lengths differ"
    )
    bound = task.size * bound_of_lane(task)
    if bound <= budget:
        reason += f"; {lanes} lanes need less than {_of(bound, budget)}"
        return Selection(Continuous(lanes), reason, None, budget)

    def measure(lanes: int) -> int:
        return bytes_of_program(task, run_task(Continuous(lanes), task))

    found = largest_that_fits(measure, budget, lanes)
    if found.size == 0:
        return None
    reason += f"; {found.size} lanes need {_of(found.bytes, budget)}"
    return Selection(Continuous(found.size), reason, found.bytes, budget)


def _in_cache(
    task: Task, budget: int, measure: Callable[[int], int]
) -> Selection | None:
    """As many lanes as pay, where these are fewer than those that fit."""
    bound = bound_of_lane(task)
    pays = bytes_that_pay(budget, bound // ROOM, jax.default_backend())
    if pays == budget or bound * task.size <= pays:
        return None
    found = largest_that_fits(measure, pays, task.size)
    if found.size in (0, task.size):
        return None
    reason = (
        f"{found.size} of {task.size} tasks at once stay in the cache of a CPU; they "
        f"need {_of(found.bytes, budget)}"
    )
    return Selection(Chunked(found.size), reason, found.bytes, budget)


def _of(needed: int, budget: int) -> str:
    return f"{in_words(needed)} of {in_words(budget)}"
