"""The different calls of the expensive function, each of which is compiled once.

A sampler may call the same function in several of its loops. Where calls are the same
computation on arguments of the same type, they are one kind, and lanes that wait in
different places wait for the same evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from ._compare import same_equation, same_number
from ._program import Instruction, Number, Operand, Pause, Value


# Bytes of what calls may differ in although all tasks have it in common. Of a larger
# array, such as the data, a second kind is cheaper than a copy for every lane.
_SMALL = 256


@final
@dataclass(eq=False)
class Kind:
    """One computation, and the pauses that wait for it."""

    region: list[Instruction]
    args: list[Value]
    results: list[Value] = field(default_factory=list)
    # For each pause what it passes, in the order of `args`, and for each of its results
    # the one of `results` that it is.
    pauses: list[tuple[Pause, list[Value], dict[Value, Value]]] = field(
        default_factory=list
    )

    @property
    def common(self) -> list[bool]:
        """Which arguments are the same shared value at every pause."""
        return [
            arg.shared and all(passed[i] is arg for _, passed, _ in self.pauses)
            for i, arg in enumerate(self.args)
        ]

    def evaluate(
        self, active: Any, shared: dict[Value, Any], args: Sequence[Any]
    ) -> list[Any]:
        """The results for one lane, from the arguments that are not common."""
        env: dict[Value, Any] = dict(shared)
        lanes = iter(args)
        for arg, common in zip(self.args, self.common, strict=True):
            if not common:
                env[arg] = next(lanes)
        for instruction in self.region:
            outs = instruction.run(active, *(read(x, env) for x in instruction.inputs))
            write(instruction, outs, env)
        return [env[x] for x in self.results]


def read(x: Operand, env: dict[Value, Any]) -> Any:
    """The array that an operand stands for."""
    return x.value if isinstance(x, Number) else env[x]


def write(instruction: Instruction, outs: Sequence[Any], env: dict[Value, Any]) -> None:
    """Remembers what an instruction computed."""
    for output, out in zip(instruction.outputs, outs, strict=True):
        if output is not None:
            env[output] = out


def kinds_of(pauses: Sequence[Pause]) -> list[Kind]:
    """The kinds among some pauses."""
    kinds: list[Kind] = []
    for pause in pauses:
        for kind in kinds:
            its = _match(kind, pause)
            if its is not None:
                break
        else:
            kind = Kind(pause.region, list(pause.args))
            kinds.append(kind)
            its = {x: x for x in (*pause.args, *_made(pause.region))}
        of_pause = {mine: theirs for theirs, mine in its.items()}
        for result in pause.results:
            if of_pause[result] not in kind.results:
                kind.results.append(of_pause[result])
        passed = [its[arg] for arg in kind.args]
        results = {result: of_pause[result] for result in pause.results}
        kind.pauses.append((pause, passed, results))
    return kinds


def _made(region: list[Instruction]) -> list[Value]:
    return [x for i in region for x in i.outputs if x is not None]


def _match(kind: Kind, pause: Pause) -> dict[Value, Value] | None:
    """What a pause has in the place of each value of a kind; None if they differ."""
    if len(kind.region) != len(pause.region) or len(kind.args) != len(pause.args):
        return None
    its: dict[Value, Value] = {}

    def matches(x: Operand | None, y: Operand | None) -> bool:
        if isinstance(x, Value) and isinstance(y, Value):
            if x is not y and (x.shared or y.shared) and x.bytes > _SMALL:
                return False
            same_type = x.shape == y.shape and x.dtype == y.dtype
            return same_type and its.setdefault(x, y) is y
        if isinstance(x, Number) and isinstance(y, Number):
            return same_number(x.value, y.value)
        return x is None and y is None

    for one, other in zip(kind.region, pause.region, strict=True):
        if not (
            one.key is not None
            and other.key is not None
            and same_equation(one.key, other.key)
            and all(map(matches, one.inputs, other.inputs))
            and all(map(matches, one.outputs, other.outputs))
        ):
            return None
    if len(set(its.values())) != len(its):
        return None
    return its if all(arg in its for arg in kind.args) else None
