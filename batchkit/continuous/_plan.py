"""A task taken apart: where its lanes pause, and the blocks between the pauses."""

from dataclasses import dataclass
from typing import final

from ..batchers._marks import MARKED, SUPPOSED
from ..batchers._traced_task import TracedTask
from ._cost import costliest, marked_calls, without_callers
from ._equations import opened
from ._lower import lowered
from ._pauses import AbstractPauses, AtCalls, AtLoops
from ._program import Program
from ._simplify import simplify


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """What `Continuous` makes of a task."""

    program: Program
    pauses: AbstractPauses
    note: str  # where lanes pause, in words
    name: str  # of the expensive function, if one is marked
    operations: float  # of one of its calls


def plan_of(task: TracedTask, expensive: str | None = None) -> Plan:
    """Takes a task apart.

    **Arguments:**

    - `task`: the task.
    - `expensive`: the name of the function to pause at; the costliest by default.

    **Raises:**

    `ValueError` if there is no marked function of that name.
    """
    pauses, note, name, operations = _pauses(task, expensive)
    program = lowered(opened(task.jaxpr), pauses)
    program.finish.outputs = task.with_values(program.finish.outputs)
    simplify(program)
    return Plan(program, pauses, note, name, operations)


def _pauses(
    task: TracedTask, expensive: str | None
) -> tuple[AbstractPauses, str, str, float]:
    calls = marked_calls(task.jaxpr.jaxpr)
    if not calls:
        return AtLoops(), "pauses at turns of loops", "", 0.0
    by_user = {k: v for k, v in calls.items() if k.startswith(MARKED)}
    candidates = by_user or without_callers(calls) or calls
    if expensive is not None:
        wanted = (MARKED + expensive, SUPPOSED + expensive)
        candidates = {k: v for k, v in calls.items() if k in wanted}
        if not candidates:
            names = sorted(_short(name) for name in calls)
            raise ValueError(
                f"Continuous(expensive={expensive!r}): the task calls no "
                "marked function of that name. Those that it calls are "
                f"{', '.join(map(repr, names))}; name one of them, or leave "
                "`expensive` out to take the costliest."
            )
    name, operations = costliest(candidates)
    others = ", ".join(sorted(_short(x) for x in calls if x != name))
    note = f"pauses at {_short(name)}"
    if others:
        note += f", not at {others}"
    return AtCalls(name), note, _short(name), operations


def _short(name: str) -> str:
    return name.removeprefix(MARKED).removeprefix(SUPPOSED)
