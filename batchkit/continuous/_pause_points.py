"""Pause points: calls of the expensive function, or turns of divergent loops.

Where no function is marked, lanes pause where their paths part. Divergence analysis, as
compilers for GPUs make it, finds these loops: from the values that vary between lanes
it computes which others vary, and which loops have a trip count that does.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from .._util._jaxprs import equations, inner_jaxprs
from ..batchers._marks import CANDIDATE, MARKED
from ._basic_blocks import Operand, Value
from ._equations import (
    Cond,
    Scan,
    WhileLoop,
    called_jaxpr,
    control_flow,
    has_loop,
    interpret,
    is_collective,
    jit_name,
)


class AbstractPausePoints(abc.ABC):
    """A rule that says where a task pauses."""

    @abc.abstractmethod
    def is_call(self, eqn: Any) -> bool:
        """Return whether an equation is a call that lanes make together."""

    @abc.abstractmethod
    def is_inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        """Return whether a lane may pause inside an equation, so that it is split."""

    @abc.abstractmethod
    def is_anywhere(self, jaxpr: ClosedJaxpr) -> bool:
        """Return whether a lane may pause in a jaxpr, for some inputs."""


@final
class CallPausePoints(AbstractPausePoints):
    """Pauses at each call of one marked function, by its name in the jaxpr."""

    def __init__(self, name: str) -> None:
        self._name = name
        # By the `id` of a jaxpr, which is kept so that no other one gets the same.
        self._found: dict[int, tuple[Any, bool]] = {}

    def is_call(self, eqn: Any) -> bool:
        return jit_name(eqn) == self._name

    def is_inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        del inputs
        return not self.is_call(eqn) and self._holds(eqn)

    def is_anywhere(self, jaxpr: ClosedJaxpr) -> bool:
        return self._in_jaxpr(jaxpr.jaxpr)

    def _holds(self, eqn: Any) -> bool:
        return _can_be_split(eqn) and any(map(self._in_jaxpr, inner_jaxprs(eqn)))

    def _in_jaxpr(self, jaxpr: Any) -> bool:
        if id(jaxpr) not in self._found:
            found = any(self.is_call(eqn) or self._holds(eqn) for eqn in jaxpr.eqns)
            self._found[id(jaxpr)] = jaxpr, found
        return self._found[id(jaxpr)][1]


@final
class LoopPausePoints(AbstractPausePoints):
    """Pauses at each turn of a loop whose trip count varies between lanes.

    So does that of a loop in a branch that only some lanes take. There is no call to
    make together: a pause is the end of a turn.
    """

    def is_call(self, eqn: Any) -> bool:
        del eqn
        return False

    def is_inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        vary = [isinstance(x, Value) and not x.uniform for x in inputs]
        return _varying_outputs(eqn, vary)[1]

    def is_anywhere(self, jaxpr: ClosedJaxpr) -> bool:
        return _varying_results(jaxpr, [True] * len(jaxpr.jaxpr.invars))[1]


@final
@dataclass(frozen=True, eq=False)
class PauseChoice:
    """Where the lanes of a task pause."""

    points: AbstractPausePoints
    note: str  # for `explain`
    name: str = ""  # of the expensive function, if one is marked
    operations: float = 0.0  # floating-point operations of one of its calls


def choose_pause_points(jaxpr: Any, expensive: str | None) -> PauseChoice:
    """Choose calls of `expensive`, or of the costliest marked function, or loops."""
    calls = _marked_calls(jaxpr)
    if not calls:
        return PauseChoice(LoopPausePoints(), "pauses at turns of loops")
    by_user = {k: v for k, v in calls.items() if k.startswith(MARKED)}
    candidates = by_user or _without_callers(calls) or calls
    if expensive is not None:
        wanted = (MARKED + expensive, CANDIDATE + expensive)
        candidates = {k: v for k, v in calls.items() if k in wanted}
        if not candidates:
            names = sorted(_short(name) for name in calls)
            raise ValueError(
                f"Continuous(expensive={expensive!r}): the task calls no "
                "marked function of that name. It calls "
                f"{', '.join(map(repr, names))}; name one of them, or leave "
                "`expensive` out to take the costliest."
            )
    costs = {name: max(map(_operations, eqns)) for name, eqns in candidates.items()}
    name = max(costs, key=lambda name: costs[name])
    note = f"pauses at {_short(name)}"
    if others := ", ".join(sorted(_short(x) for x in calls if x != name)):
        note += f", not at {others}"
    return PauseChoice(CallPausePoints(name), note, _short(name), costs[name])


def _short(name: str) -> str:
    return name.removeprefix(MARKED).removeprefix(CANDIDATE)


def _can_be_split(eqn: Any) -> bool:
    """Return whether an equation is a call or control flow.

    A lane cannot pause in the middle of others, such as a linear solver.
    """
    return called_jaxpr(eqn) is not None or control_flow(eqn, eqn.invars) is not None


def _marked_calls(jaxpr: Any) -> dict[str, list[Any]]:
    """Return the calls of each marked function that a lane can pause at, by name."""
    found: dict[str, list[Any]] = {}
    for eqn in jaxpr.eqns:
        name = jit_name(eqn)
        # A function that returns no arrays, such as one that makes another, is no call
        # to wait for.
        if eqn.outvars and name.startswith((MARKED, CANDIDATE)):
            found.setdefault(name, []).append(eqn)
        for inner in inner_jaxprs(eqn) if _can_be_split(eqn) else ():
            for name, calls in _marked_calls(inner).items():
                found.setdefault(name, []).extend(calls)
    return found


def _without_callers(calls: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the functions that call no other marked function.

    A sampling kernel costs more than the log-density that it calls, but lanes that
    wait for whole kernels wait for the slowest of them.
    """

    def calls_another(name: str, eqn: Any) -> bool:
        return any(_marked_calls(x).keys() - {name} for x in inner_jaxprs(eqn))

    return {
        name: eqns
        for name, eqns in calls.items()
        if not any(calls_another(name, eqn) for eqn in eqns)
    }


def loop_operations(jaxpr: Any) -> float:
    """Return the operations of a turn of each `while` loop, those inside it once."""
    total = 0.0
    for eqn in jaxpr.eqns:
        loop = control_flow(eqn, eqn.invars)
        if isinstance(loop, WhileLoop):
            total += _operations_of(loop.cond) + _operations_of(loop.body)
        else:
            total += sum(map(loop_operations, inner_jaxprs(eqn)))
    return total


def _operations(eqn: Any) -> float:
    """Return the floating-point operations of a call."""
    call = called_jaxpr(eqn)
    assert call is not None
    return _operations_of(call)


def _operations_of(jaxpr: ClosedJaxpr) -> float:
    """Return the floating-point operations as XLA counts them: loops once."""
    if any(map(is_collective, equations(jaxpr.jaxpr))):
        return 0.0  # outside of its named axis it cannot be compiled
    types = [x.aval for x in jaxpr.jaxpr.invars]
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in types]
    try:
        analysis = jax.jit(jaxpr_as_fun(jaxpr)).lower(*args).cost_analysis()
    except ValueError:
        # Inside `jax.shard_map` arrays have the mesh in their type.
        return 0.0
    # Some backends return one analysis for each computation, or none at all.
    if isinstance(analysis, list | tuple):
        analysis = analysis[0]
    costs = analysis or {}
    return costs.get("flops", 0.0) + costs.get("transcendentals", 0.0)


def _varying_outputs(eqn: Any, inputs: list[bool]) -> tuple[list[bool], bool]:
    """Return which outputs vary if these inputs do, and whether a loop diverges."""
    call = called_jaxpr(eqn)
    if call is not None:
        return _varying_results(call, inputs)
    match control_flow(eqn, inputs):
        case WhileLoop() as loop:
            carry, diverges = _varying_carry(loop.body, loop.body_consts, loop.init, ())
            (test,), inner = _varying_results(loop.cond, [*loop.cond_consts, *carry])
            if test:
                return [True] * len(carry), True
            return carry, diverges or inner
        case Scan() as scan:
            carry, _ = _varying_carry(scan.body, scan.consts, scan.init, scan.rows)
            return _varying_results(scan.body, [*scan.consts, *carry, *scan.rows])
        case Cond() as cond:
            results = [_varying_results(branch, cond.args) for branch in cond.branches]
            columns = zip(*(outs for outs, _ in results), strict=True)
            outs = [any(column) or cond.index for column in columns]
            # A loop in a branch that only some lanes take, such as the rest of a loop
            # of bounded length.
            parts = cond.index and any(has_loop(x.jaxpr) for x in cond.branches)
            return outs, parts or any(diverges for _, diverges in results)
        case None:
            return [any(inputs)] * len(eqn.outvars), False


def _varying_results(
    jaxpr: ClosedJaxpr, inputs: Sequence[bool]
) -> tuple[list[bool], bool]:
    diverging: list[bool] = []

    def rule(eqn: Any, inputs: list[bool]) -> list[bool]:
        outs, diverges = _varying_outputs(eqn, inputs)
        diverging.append(diverges)
        return outs

    consts = [False] * len(jaxpr.jaxpr.constvars)
    outs = interpret(jaxpr.jaxpr, consts, inputs, lambda _: False, rule)
    return outs, any(diverging)


def _varying_carry(
    body: ClosedJaxpr,
    consts: Sequence[bool],
    init: Sequence[bool],
    rows: Sequence[bool],
) -> tuple[list[bool], bool]:
    """Iterate a loop's body to a fixed point: which carried values vary in any turn."""
    carry = list(init)
    while True:
        outs, diverges = _varying_results(body, [*consts, *carry, *rows])
        new = [a or b for a, b in zip(carry, outs[: len(carry)], strict=True)]
        if new == carry:
            return carry, diverges
        carry = new
