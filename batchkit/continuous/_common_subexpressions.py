"""Common subexpressions: equal equations are computed once, equal calls compiled once.

A sampler may call the same function in several of its loops. Calls that are the same
computation on arguments of the same types are of one kind, and lanes that wait at
different pauses wait for the same evaluation. JAX traces a function anew for each of
its derivatives, so equal jaxprs need not be the same objects: they are compared by
structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np

from .._util._jaxprs import is_literal, literal_value
from ._basic_blocks import Immediate, Instruction, Operand, Pause, Value, execute
from ._equations import closed_jaxpr, needs_valid_inputs


# Derivative rules, which are functions and cannot be compared. They are not called any
# more: derivatives are taken of a task before it is lowered.
_IGNORED: Final = {
    "custom_jvp_call": {"jvp_jaxpr_fun"},
    "custom_vjp_call": {"fwd_jaxpr_thunk", "bwd", "out_trees"},
}

# Calls of one kind may differ in uniform arguments of up to this many bytes, which are
# then copied for every lane. A second kind is cheaper than a copy of the data.
_MAX_COPIED_BYTES = 256


@final
@dataclass(eq=False)
class CallKind:
    """One computation, and the pauses that wait for it."""

    region: list[Instruction]
    args: list[Value]
    results: list[Value] = field(default_factory=list)
    # For each pause its arguments, in the order of `args`, and for each of its results
    # the one of `results` that it is.
    pauses: list[tuple[Pause, list[Value], dict[Value, Value]]] = field(
        default_factory=list
    )

    @property
    def is_common(self) -> list[bool]:
        """Return which arguments are the same uniform value at every pause."""
        return [
            arg.uniform and all(passed[i] is arg for _, passed, _ in self.pauses)
            for i, arg in enumerate(self.args)
        ]

    @property
    def needs_valid_arguments(self) -> bool:
        """Return whether inactive lanes may do harm with stale arguments."""
        return any(needs_valid_inputs(x.eqn) for x in self.region)

    def evaluate(
        self, active: Any, uniform: Mapping[Value, Any], args: Sequence[Any]
    ) -> list[Any]:
        """Evaluate the call for one lane, from the arguments that are not common."""
        env = dict(uniform)
        lane_args = iter(args)
        for arg, is_common in zip(self.args, self.is_common, strict=True):
            if not is_common:
                env[arg] = next(lane_args)
        execute(self.region, active, env)
        return [env[x] for x in self.results]


def call_kinds(pauses: Sequence[Pause]) -> list[CallKind]:
    """Sort pauses by the computation that they wait for."""
    kinds: list[CallKind] = []
    for pause in pauses:
        for kind in kinds:
            to_pause = _match(kind, pause)
            if to_pause is not None:
                break
        else:
            kind = CallKind(pause.region, list(pause.args))
            kinds.append(kind)
            made = [x for i in pause.region for x in i.outputs if x is not None]
            to_pause = {x: x for x in (*pause.args, *made)}
        to_kind = {of_pause: of_kind for of_kind, of_pause in to_pause.items()}
        results = {result: to_kind[result] for result in pause.results}
        kind.results += [x for x in results.values() if x not in kind.results]
        kind.pauses.append((pause, [to_pause[x] for x in kind.args], results))
    return kinds


def _match(kind: CallKind, pause: Pause) -> dict[Value, Value] | None:
    """Return a pause's counterpart of each value of a kind; None if they differ."""
    if len(kind.region) != len(pause.region) or len(kind.args) != len(pause.args):
        return None
    counterpart: dict[Value, Value] = {}

    def matches(x: Operand | None, y: Operand | None) -> bool:
        if isinstance(x, Value) and isinstance(y, Value):
            is_uniform = x.uniform or y.uniform
            if x is not y and is_uniform and x.bytes > _MAX_COPIED_BYTES:
                return False
            same_type = x.shape == y.shape and x.dtype == y.dtype
            return same_type and counterpart.setdefault(x, y) is y
        return (x is None and y is None) or _same_immediate(x, y)

    for one, other in zip(kind.region, pause.region, strict=True):
        if not (
            one.eqn is not None
            and other.eqn is not None
            and _same_equation(one.eqn, other.eqn)
            and all(map(matches, one.inputs, other.inputs))
            and all(map(matches, one.outputs, other.outputs))
        ):
            return None
    # Two values of the kind must not be one of the pause: it may pass them others.
    if len(set(counterpart.values())) != len(counterpart):
        return None
    return counterpart if all(arg in counterpart for arg in kind.args) else None


def without_repetitions(
    instructions: Sequence[Instruction],
) -> tuple[list[Instruction], dict[int, Operand]]:
    """Drop instructions that repeat an earlier one.

    **Returns:**

    The remaining instructions, and by the `id` of each value that is gone the equal one
    that is left.
    """
    same: dict[int, Operand] = {}
    candidates: dict[Any, list[Instruction]] = {}
    kept: list[Instruction] = []
    for instruction in instructions:
        instruction.inputs = [same.get(id(x), x) for x in instruction.inputs]
        values = tuple(id(x) for x in instruction.inputs if isinstance(x, Value))
        # Comparing is slow, so only with those of the same primitive and inputs.
        alike = candidates.setdefault((str(instruction.eqn.primitive), values), [])
        twin = next((x for x in alike if _is_repetition(instruction, x)), None)
        if twin is None:
            alike.append(instruction)
            kept.append(instruction)
            continue
        for output, earlier in zip(instruction.outputs, twin.outputs, strict=True):
            if output is not None and earlier is not None:
                same[id(output)] = earlier
    return kept, same


def _is_repetition(instruction: Instruction, earlier: Instruction) -> bool:
    return (
        len(earlier.inputs) == len(instruction.inputs)
        and all(map(same_operand, earlier.inputs, instruction.inputs))
        and _same_equation(earlier.eqn, instruction.eqn)
        and all(
            x is not None or output is None
            for x, output in zip(earlier.outputs, instruction.outputs, strict=True)
        )
    )


def same_operand(one: Operand, other: Operand) -> bool:
    """Return whether two operands are one value, or constants of the same bits."""
    return one is other or _same_immediate(one, other)


def _same_immediate(one: Any, other: Any) -> bool:
    are_immediate = isinstance(one, Immediate) and isinstance(other, Immediate)
    return are_immediate and _same_bits(one.value, other.value)


def _same_bits(one: np.ndarray | np.generic, other: np.ndarray | np.generic) -> bool:
    # Not `==`: zero equals minus zero, and NaN does not equal NaN.
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _same_equation(one: Any, other: Any) -> bool:
    """Return whether two equations compute the same from the same inputs."""
    if one is other:
        return True
    ignored = _IGNORED.get(one.primitive.name, ())
    return (
        one.primitive is other.primitive
        and len(one.invars) == len(other.invars)
        and len(one.outvars) == len(other.outvars)
        and one.params.keys() == other.params.keys()
        and all(
            name in ignored or _same_param(value, other.params[name])
            for name, value in one.params.items()
        )
    )


def _same_param(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if _is_jaxpr(one):
        return _is_jaxpr(other) and _same_jaxpr(one, other)
    if isinstance(one, tuple | list):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(map(_same_param, one, other))
        )
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # a parameter may be of any type, whose `==` may do anything
        return False


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def _same_jaxpr(one: Any, other: Any) -> bool:
    first, second = closed_jaxpr(one), closed_jaxpr(other)
    if len(first.consts) != len(second.consts):
        return False
    if not all(a is b for a, b in zip(first.consts, second.consts, strict=True)):
        return False
    a, b = first.jaxpr, second.jaxpr
    if a is b:
        return True
    # Variables correspond if they are bound at the same place: both get its number.
    numbers: tuple[dict[Any, int], dict[Any, int]] = {}, {}

    def same_types(xs: Sequence[Any], ys: Sequence[Any]) -> bool:
        if len(xs) != len(ys):
            return False
        for x, y in zip(xs, ys, strict=True):
            if (x.aval.shape, x.aval.dtype) != (y.aval.shape, y.aval.dtype):
                return False
            numbers[0][x] = numbers[1][y] = len(numbers[0])
        return True

    def same_atom(x: Any, y: Any) -> bool:
        if is_literal(x) and is_literal(y):
            return _same_bits(literal_value(x), literal_value(y))
        if is_literal(x) or is_literal(y):
            return False
        return numbers[0].get(x) == numbers[1].get(y)

    def same_atoms(xs: Sequence[Any], ys: Sequence[Any]) -> bool:
        return len(xs) == len(ys) and all(map(same_atom, xs, ys))

    return (
        len(a.eqns) == len(b.eqns)
        and same_types(a.constvars, b.constvars)
        and same_types(a.invars, b.invars)
        and all(
            _same_equation(x, y)
            and same_atoms(x.invars, y.invars)
            and same_types(x.outvars, y.outvars)
            for x, y in zip(a.eqns, b.eqns, strict=True)
        )
        and same_atoms(a.outvars, b.outvars)
    )
