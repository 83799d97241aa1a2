"""Where the lanes of a task pause: at calls of the expensive function, or in loops."""

import abc
from collections.abc import Sequence
from typing import Any, final

from .._util._jaxprs import inner_jaxprs
from ._equations import (
    Cond,
    Jaxpr,
    Scan,
    WhileLoop,
    called,
    control_flow,
    is_literal,
    name_of_call,
)
from ._program import Operand, Value


class AbstractPauses(abc.ABC):
    """A rule that says where a task pauses."""

    @abc.abstractmethod
    def at(self, eqn: Any) -> bool:
        """Whether an equation is a call that lanes make together."""

    @abc.abstractmethod
    def inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        """Whether an equation has to be taken apart, as a lane may pause inside it."""

    @abc.abstractmethod
    def anywhere(self, jaxpr: Jaxpr) -> bool:
        """Whether a lane may pause in a jaxpr, whatever it is applied to."""


@final
class AtCalls(AbstractPauses):
    """Pauses at each call of `jax.jit` that goes by a name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[int, tuple[Any, bool]] = {}

    def at(self, eqn: Any) -> bool:
        return name_of_call(eqn) == self._name

    def inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        del inputs
        return not self.at(eqn) and self._holds(eqn)

    def anywhere(self, jaxpr: Jaxpr) -> bool:
        return self._in_jaxpr(jaxpr.jaxpr)

    def _holds(self, eqn: Any) -> bool:
        # What is neither a call nor control flow cannot be taken apart.
        if called(eqn) is None and control_flow(eqn, eqn.invars) is None:
            return False
        return any(self._in_jaxpr(jaxpr) for jaxpr in inner_jaxprs(eqn))

    def _in_jaxpr(self, jaxpr: Any) -> bool:
        if id(jaxpr) not in self._found:
            found = any(self.at(eqn) or self._holds(eqn) for eqn in jaxpr.eqns)
            self._found[id(jaxpr)] = jaxpr, found
        return self._found[id(jaxpr)][1]


@final
class AtLoops(AbstractPauses):
    """Pauses at each turn of a loop that turns more often in one lane than in another.

    There is no call to make together then: a pause is the end of a turn.
    """

    def at(self, eqn: Any) -> bool:
        del eqn
        return False

    def inside(self, eqn: Any, inputs: Sequence[Operand]) -> bool:
        differ = [isinstance(x, Value) and not x.shared for x in inputs]
        return _outputs_differ(eqn, differ)[1]

    def anywhere(self, jaxpr: Jaxpr) -> bool:
        return _results_differ(jaxpr, [True] * len(jaxpr.jaxpr.invars))[1]


def _outputs_differ(eqn: Any, inputs: list[bool]) -> tuple[list[bool], bool]:
    """Which outputs differ between lanes if these inputs do.

    And whether there is a loop in it whose number of turns does.
    """
    call = called(eqn)
    if call is not None:
        return _results_differ(call, inputs)
    match control_flow(eqn, inputs):
        case WhileLoop() as loop:
            carry, loops = _carry_differs(loop.body, loop.body_consts, loop.init, ())
            (test,), inner = _results_differ(loop.cond, [*loop.cond_consts, *carry])
            if test:
                return [True] * len(carry), True
            return carry, loops or inner
        case Scan() as scan:
            carry, _ = _carry_differs(scan.body, scan.consts, scan.init, scan.rows)
            return _results_differ(scan.body, [*scan.consts, *carry, *scan.rows])
        case Cond() as cond:
            results = [_results_differ(branch, cond.args) for branch in cond.branches]
            columns = zip(*(outs for outs, _ in results), strict=True)
            outs = [any(column) or cond.index for column in columns]
            return outs, any(r[1] for r in results)
        case None:
            return [any(inputs)] * len(eqn.outvars), False


def _results_differ(jaxpr: Jaxpr, inputs: Sequence[bool]) -> tuple[list[bool], bool]:
    differs: dict[Any, bool] = dict.fromkeys(jaxpr.jaxpr.constvars, False)
    differs.update(zip(jaxpr.jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> bool:
        return not is_literal(atom) and differs[atom]

    loops = False
    for eqn in jaxpr.jaxpr.eqns:
        outs, inner = _outputs_differ(eqn, [read(atom) for atom in eqn.invars])
        loops = loops or inner
        differs.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars], loops


def _carry_differs(
    body: Jaxpr, consts: Sequence[bool], init: Sequence[bool], rows: Sequence[bool]
) -> tuple[list[bool], bool]:
    """Which carried values differ after any number of turns."""
    carry = list(init)
    while True:
        outs, loops = _results_differ(body, [*consts, *carry, *rows])
        new = [a or b for a, b in zip(carry, outs[: len(carry)], strict=True)]
        if new == carry:
            return carry, loops
        carry = new
