"""Pause points: calls of the expensive function, or turns of divergent loops.

Where no function is marked, lanes pause where their paths part. Divergence analysis, as
compilers for GPUs make it, finds these loops: from the values that vary between lanes
it computes which others vary, and which loops have a trip count that does.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from jax.extend.core import ClosedJaxpr

from .._util._jaxprs import inner_jaxprs
from ..batchers._call import size_of
from ..batchers._marks import CANDIDATE, MARKED
from ..batchers._splitting import UNVMAP
from ._basic_blocks import Operand, Value
from ._equations import (
    Cond,
    Scan,
    WhileLoop,
    called_jaxpr,
    control_flow,
    has_loop,
    interpret,
    jit_name,
)
from ._operations import count_operations


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
        self._found: dict[Any, bool] = {}  # by jaxpr

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
        if jaxpr not in self._found:
            found = any(self.is_call(eqn) or self._holds(eqn) for eqn in jaxpr.eqns)
            self._found[jaxpr] = found
        return self._found[jaxpr]


@final
class LoopPausePoints(AbstractPausePoints):
    """Pauses at the end of each turn of loops whose trip count varies by lane."""

    def is_call(self, eqn: Any) -> bool:
        del eqn
        return False

    def is_inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        vary = [isinstance(x, Value) and not x.uniform for x in inputs]
        divergence = Divergence()
        divergence.outputs(eqn, vary)
        return divergence.in_loops

    def is_anywhere(self, jaxpr: ClosedJaxpr) -> bool:
        return Divergence().of_task(jaxpr).in_loops


@final
@dataclass(frozen=True, eq=False)
class PauseChoice:
    """Where the lanes of a task pause."""

    points: AbstractPausePoints
    note: str  # for `explain`
    name: str = ""  # of the expensive function, if one is marked
    operations: float = 0.0  # of one of its calls


def choose_pause_points(jaxpr: Any) -> PauseChoice:
    """Choose calls of the costliest marked function, or turns of loops."""
    calls = _marked_calls(jaxpr)
    if not calls:
        return PauseChoice(LoopPausePoints(), "pauses at turns of loops")
    by_user = {k: v for k, v in calls.items() if k.startswith(MARKED)}
    candidates = by_user or _without_callers(calls) or calls
    costs = {
        name: max(sum(map(count_operations, inner_jaxprs(eqn))) for eqn in eqns)
        for name, eqns in candidates.items()
    }
    name = max(costs, key=lambda name: costs[name])
    note = f"pauses at {_short(name)}"
    if others := ", ".join(sorted(_short(x) for x in calls if x != name)):
        note += f", not at {others}"
    return PauseChoice(CallPausePoints(name), note, _short(name), costs[name])


def _short(name: str) -> str:
    return name.removeprefix(MARKED).removeprefix(CANDIDATE)


def _can_be_split(eqn: Any) -> bool:
    """Return whether an equation is a call or control flow."""
    # A lane cannot pause in the middle of others, such as a linear solver.
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
    """Return the functions that call no other marked function."""
    # A sampling kernel costs more than the log-density that it calls, but lanes that
    # wait for whole kernels wait for the slowest of them.

    def calls_another(name: str, eqn: Any) -> bool:
        return any(_marked_calls(x).keys() - {name} for x in inner_jaxprs(eqn))

    return {
        name: eqns
        for name, eqns in calls.items()
        if not any(calls_another(name, eqn) for eqn in eqns)
    }


def loop_operations(jaxpr: Any) -> float:
    """Return the operations of a turn of each `while` loop that is in no other."""
    total = 0.0
    for eqn in jaxpr.eqns:
        loop = control_flow(eqn, eqn.invars)
        if isinstance(loop, WhileLoop):
            total += count_operations(loop.cond.jaxpr)
            total += count_operations(loop.body.jaxpr)
        else:
            total += sum(map(loop_operations, inner_jaxprs(eqn)))
    return total


@final
class Divergence:
    """Divergence analysis: the values that vary between tasks, and where paths part."""

    def __init__(self) -> None:
        # An equation that is analysed several times, as in a loop whose carried values
        # turn out to vary, counts as it is analysed last: a value that varies never
        # ceases to.
        # Branches and loops at which tasks part.
        self.parting: set[Any] = set()
        # Of other equations, which of their operands vary.
        self._varying: dict[Any, Sequence[bool]] = {}

    @property
    def in_loops(self) -> bool:
        """True if tasks turn a different number of times in some loop."""
        # So do tasks of which only some take a branch with a loop in it, such as the
        # rest of a loop of bounded length.
        return any(map(has_loop, self.parting))

    def varies(self, eqn: Any) -> bool:
        """Return whether an equation computes something else for each task."""
        return eqn not in self._varying or any(self._varying[eqn])

    def common_bytes(self, eqn: Any) -> int:
        """Return the bytes of the arrays that an equation reads for all tasks."""
        if eqn not in self._varying:
            return 0
        pairs = zip(eqn.invars, self._varying[eqn], strict=True)
        common = [x.aval for x, varies in pairs if not varies]
        return sum(size_of(x) for x in common if getattr(x, "shape", ()))

    def of_task(self, jaxpr: ClosedJaxpr) -> "Divergence":
        """Analyse a jaxpr whose arguments all vary between tasks."""
        self._results(jaxpr, [True] * len(jaxpr.in_avals))
        return self

    def outputs(self, eqn: Any, inputs: Sequence[bool]) -> list[bool]:
        """Return which outputs of an equation vary if these inputs do."""
        call = called_jaxpr(eqn)
        if call is not None:
            return self._results(call, inputs)
        match control_flow(eqn, inputs):
            case WhileLoop() as loop:
                carry = self._carry(loop.body, loop.body_consts, loop.init, ())
                (test,) = self._results(loop.cond, [*loop.cond_consts, *carry])
                if not test:
                    return carry
                # Tasks are at different turns, so all that changes in a turn varies.
                carry = [True] * len(carry)
                self._results(loop.cond, [*loop.cond_consts, *carry])
                self._results(loop.body, [*loop.body_consts, *carry])
                self.parting.add(eqn)
                return carry
            case Scan() as scan:
                carry = self._carry(scan.body, scan.consts, scan.init, scan.rows)
                return self._results(scan.body, [*scan.consts, *carry, *scan.rows])
            case Cond() as cond:
                results = [self._results(side, cond.args) for side in cond.branches]
                if cond.index:
                    self.parting.add(eqn)
                return [any(x) or cond.index for x in zip(*results, strict=True)]
            case None:
                self._varying[eqn] = inputs
                # Equinox's reductions over a batch are the same for all its tasks.
                varies = any(inputs) and eqn.primitive.name not in UNVMAP
                return [varies] * len(eqn.outvars)

    def _results(self, jaxpr: ClosedJaxpr, inputs: Sequence[bool]) -> list[bool]:
        consts = [False] * len(jaxpr.jaxpr.constvars)
        return interpret(jaxpr.jaxpr, consts, inputs, lambda _: False, self.outputs)

    def _carry(
        self,
        body: ClosedJaxpr,
        consts: Sequence[bool],
        init: Sequence[bool],
        rows: Sequence[bool],
    ) -> list[bool]:
        """Iterate a loop's body to a fixed point: which carried values ever vary."""
        carry = list(init)
        while True:
            outs = self._results(body, [*consts, *carry, *rows])
            new = [a or b for a, b in zip(carry, outs[: len(carry)], strict=True)]
            if new == carry:
                return carry
            carry = new
