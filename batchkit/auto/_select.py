"""The choice of a batcher from a task and a budget, with the reason.

This is the whole rule:

1. `Continuous`, if tasks loop a different number of times around an expensive function,
   so that lanes of a `vmap` would wait for each other. A function is expensive from
   `MIN_OPERATIONS` floating-point operations on: below that, the work around it is more
   than the evaluations that are saved. There is one lane for every `TASKS_PER_LANE`
   tasks, so that few lanes are idle at the end; but at least `MIN_LANES`, with which a
   batched call is efficient, if each of them gets `MIN_TASKS_PER_LANE`.
2. Otherwise as many tasks at a time as fit the budget: `Vmap` if that is all of them,
   else `Chunked`. On a CPU they must also fit `CACHE_BYTES`, if one lane does: more
   lanes at once gain nothing there, and memory outside of the cache is slow.

If not even one lane of a `Continuous` fits, the second case applies. The constants are
measured by `benchmarks/auto.py`, which reports how often the choice is a good one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import jax

from .._util._formats import format_bytes
from ..batchers import AbstractBatcher, Chunked, Vmap
from ..batchers._call import Call, TracedTask
from ..batchers._marks import in_task
from ..continuous import Continuous
from ..continuous._continuous import compile_task
from ._budget import BudgetError
from ._lane_memory import (
    SAFETY_FACTOR,
    bound_of_lane,
    bytes_of_batcher,
    bytes_of_lanes,
    largest_arrays,
)
from ._search import largest_that_fits


MIN_OPERATIONS: Final = 2_000
TASKS_PER_LANE: Final = 8
MIN_LANES: Final = 16
MIN_TASKS_PER_LANE: Final = 3
CACHE_BYTES: Final = 16_000_000


@final
@dataclass(frozen=True)
class Selection:
    """The batcher that `Auto` uses for one call, with the reason.

    It is the result of `Auto.select`.

    **Arguments:**

    - `batcher`: the batcher.
    - `reason`: why it was chosen, as text with the numbers.
    - `bytes`: the bytes that XLA allocates for the lanes that run at once; `None` if
        nothing had to be compiled, since the arrays are far below the budget.
    - `budget`: the bytes available on each device.
    """

    batcher: AbstractBatcher
    reason: str
    bytes: int | None
    budget: int


def select(
    task: TracedTask, call: Call, batcher: object, budget: int, outer: int
) -> Selection:
    """Choose the batcher that runs a task, on behalf of `batcher`.

    The budget of a device is divided among the `outer` lanes.

    **Raises:**

    `BudgetError` if one lane does not fit; the refusal to split the tasks if they
    cannot be split and not all of them fit.
    """
    share, size = budget // outer, task.size
    refusal = call.refusal(task, batcher)
    measure = functools.cache(functools.partial(bytes_of_lanes, task, call.axis_name))
    bound = size * bound_of_lane(task)
    selection = None
    if refusal is None:
        if call.spmd_axis_name is None and not in_task():
            selection = _continuous(task, bound, share)
        selection = selection or _in_cache(task, bound, share, measure)
    if selection is not None:
        return selection
    if bound <= share:
        reason = f"all {size} tasks at once need less than {_of(bound, share)}"
        return Selection(Vmap(), reason, None, share)
    reason = f"all {size} tasks at once need {_of(measure(size), share)}"
    if measure(size) <= share:
        return Selection(Vmap(), reason, measure(size), share)
    if refusal is not None:
        refusal.add_note(f"{batcher} has to split the tasks: {reason}.")
        raise refusal
    found = largest_that_fits(measure, share, size)
    if found.size == 0:
        largest = largest_arrays(task.jaxpr.jaxpr)
        raise BudgetError(str(batcher), found.bytes, share, outer, largest)
    reason = (
        f"{found.size} of {size} tasks at once need {_of(found.bytes, share)}, "
        f"{found.size + 1} would need {format_bytes(found.bytes_at(found.size + 1))}"
    )
    return Selection(Chunked(found.size), reason, found.bytes, share)


def continuous_lanes(tasks: int, lengths_differ: bool, operations: float) -> int:
    """Return the number of lanes of a `Continuous`, or 0 if it would not be faster.

    `operations` are those of one call of the expensive function.
    """
    if not lengths_differ or operations < MIN_OPERATIONS:
        return 0
    return max(-(-tasks // TASKS_PER_LANE), min(MIN_LANES, tasks // MIN_TASKS_PER_LANE))


def _continuous(task: TracedTask, bound: int, budget: int) -> Selection | None:
    """Choose `Continuous`, if the rule says so and at least one lane fits."""
    program, pauses = compile_task(task)
    lengths_differ = bool(program.divergent_branches)
    lanes = continuous_lanes(task.size, lengths_differ, pauses.operations)
    if lanes == 0:
        return None
    reason = (
        f"{pauses.name} ({pauses.operations:,.0f} operations) is called in loops whose "
        "lengths differ"
    )
    if bound <= budget:
        reason += f"; {lanes} lanes need less than {_of(bound, budget)}"
        return Selection(Continuous(lanes), reason, None, budget)
    found = largest_that_fits(
        lambda lanes: bytes_of_batcher(task, Continuous(lanes)), budget, lanes
    )
    if found.size == 0:
        return None
    reason += f"; {found.size} lanes need {_of(found.bytes, budget)}"
    return Selection(Continuous(found.size), reason, found.bytes, budget)


def _in_cache(
    task: TracedTask, bound: int, budget: int, measure: Callable[[int], int]
) -> Selection | None:
    """Choose the `Chunked` that fits the cache, if the cache is the tighter limit."""
    if jax.default_backend() != "cpu" or min(bound, budget) <= CACHE_BYTES:
        return None
    if bound // task.size // SAFETY_FACTOR > CACHE_BYTES:
        return None
    found = largest_that_fits(measure, CACHE_BYTES, task.size)
    if found.size in (0, task.size):
        return None
    reason = (
        f"{found.size} of {task.size} tasks at once stay in the cache of a CPU; they "
        f"need {_of(found.bytes, budget)}"
    )
    return Selection(Chunked(found.size), reason, found.bytes, budget)


def _of(needed: int, budget: int) -> str:
    return f"{format_bytes(needed)} of {format_bytes(budget)}"
