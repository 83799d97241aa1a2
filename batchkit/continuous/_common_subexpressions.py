"""Common subexpressions: equal equations are computed once, equal calls compiled once.

A sampler may call the same function in several of its loops. Calls that are the same
computation on arguments of the same types are of one kind, and lanes that wait at
different pauses wait for the same evaluation. JAX traces a function anew for each of
its derivatives, so equal jaxprs need not be the same objects. So a computation has a
key: its structure, with variables numbered in order of appearance.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

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
    values: list[Value]  # of the region, in order of appearance
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
    keys = EquationKeys()
    kinds: dict[Hashable, CallKind] = {}
    for pause in pauses:
        key, values = _region_key(keys, pause.region)
        kind = kinds.setdefault(key, CallKind(pause.region, list(pause.args), values))
        to_pause = dict(zip(kind.values, values, strict=True))
        to_kind = dict(zip(values, kind.values, strict=True))
        results = {result: to_kind[result] for result in pause.results}
        kind.results += [x for x in results.values() if x not in kind.results]
        kind.pauses.append((pause, [to_pause[x] for x in kind.args], results))
    return list(kinds.values())


def _region_key(
    keys: "EquationKeys", region: Sequence[Instruction]
) -> tuple[Hashable, list[Value]]:
    """Return a key that equal regions share, and the values in order of appearance."""
    numbers: dict[Value, int] = {}

    def operand(x: Operand | None) -> Hashable:
        if not isinstance(x, Value):
            return operand_key(x)
        is_fixed = x.uniform and x.bytes > _MAX_COPIED_BYTES
        number = numbers.setdefault(x, len(numbers))
        return number, x.shape, x.dtype, x if is_fixed else None

    key = tuple(
        (keys.of(x.eqn), tuple(map(operand, x.inputs)), tuple(map(operand, x.outputs)))
        for x in region
    )
    return key, list(numbers)


def operand_key(x: Operand | None) -> Hashable:
    """Return a key that a value, or constants of the same bits, share."""
    return _bits(x.value) if isinstance(x, Immediate) else x


def _bits(x: Any) -> Hashable:
    # Not `==`: zero equals minus zero, and NaN does not equal NaN.
    return x.dtype, x.shape, x.tobytes()


@final
class EquationKeys:
    """Keys that equations share which compute the same from the same inputs."""

    def __init__(self) -> None:
        # JAX hashes jaxprs by identity; equal ones get the same number here.
        self._jaxprs: dict[Any, int] = {}
        self._numbers: dict[Hashable, int] = {}

    def of(self, eqn: Any) -> Hashable:
        ignored = _IGNORED.get(eqn.primitive.name, ())
        params = {k: self._param(x) for k, x in eqn.params.items() if k not in ignored}
        return eqn.primitive, len(eqn.outvars), frozenset(params.items())

    def _param(self, x: Any) -> Hashable:
        if hasattr(x, "eqns") or hasattr(x, "jaxpr"):
            return self._jaxpr(x)
        if isinstance(x, tuple | list):
            return type(x), tuple(map(self._param, x))
        try:
            hash(x)
        except Exception:  # a parameter may be of any type
            return id(x)
        return type(x), x

    def _jaxpr(self, x: Any) -> int:
        """Return the number of a jaxpr; equal ones have the same."""
        if x not in self._jaxprs:
            key = self._structure(closed_jaxpr(x))
            self._jaxprs[x] = self._numbers.setdefault(key, len(self._numbers))
        return self._jaxprs[x]

    def _structure(self, closed: Any) -> Hashable:
        numbers: dict[Any, int] = {}

        def bind(xs: Sequence[Any]) -> Hashable:
            numbers.update({x: len(numbers) + i for i, x in enumerate(xs)})
            return tuple((x.aval.shape, x.aval.dtype) for x in xs)

        def read(xs: Sequence[Any]) -> Hashable:
            return tuple(
                _bits(literal_value(x)) if is_literal(x) else numbers[x] for x in xs
            )

        jaxpr = closed.jaxpr
        types = bind(jaxpr.constvars), bind(jaxpr.invars)
        eqns = [(self.of(x), read(x.invars), bind(x.outvars)) for x in jaxpr.eqns]
        consts = tuple(map(id, closed.consts))
        return consts, types, tuple(eqns), read(jaxpr.outvars)
