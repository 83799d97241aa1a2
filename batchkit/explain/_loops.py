"""Loops of a compiled program on an accelerator: kernels launched, and round trips.

On an accelerator a small kernel takes some microseconds whatever its size, and where
the program depends on a value, such as the test of a loop, the host waits for the
device. So these numbers are the time of a turn wherever the tasks are cheap. They are
counted in the optimised HLO of XLA.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, final


# Instructions of a scheduled module that launch nothing.
_FREE: Final = frozenset(
    {
        "bitcast",
        "call",
        "conditional",
        "constant",
        "get-tuple-element",
        "iota",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
        "while",
    }
)
_COMPUTATION: Final = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION: Final = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\("
)
_BODY: Final = re.compile(r"body=%?([\w.\-]+)")
_NAME: Final = re.compile(r'op_name="([^"]*)"')
_TURNS: Final = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES: Final = re.compile(
    r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+)"
)


@final
@dataclass(frozen=True)
class Loop:
    """One loop of a compiled program on an accelerator, and what a turn of it launches.

    Loops and branches inside of it are not part of the counts: an inner loop is a
    `Loop` of its own.

    **Arguments:**

    - `name`: the place in the traced program, such as `"jit(step)/vmap()/while"`.
    - `turns`: the number of turns if the compiler knows it, else `None`.
    - `launches`: the kernels that a turn launches.
    - `copies`: those of them that only copy.
    - `round_trips`: how often in a turn the host of a GPU waits for a value from it:
        once for each conditional, and for the loop's own test if `turns` is `None`.
        None on a TPU.
    - `branch_launches`: the kernels in all branches of its conditionals, of which a
        turn takes some.
    """

    name: str
    turns: int | None
    launches: int
    copies: int
    round_trips: int
    branch_launches: int

    @property
    def row(self) -> tuple[str, ...]:
        """Its row under `LOOP_COLUMNS`."""
        turns = "" if self.turns is None else f"{self.turns:,}"
        branches = str(self.branch_launches or "")
        counts = map(str, (self.launches, self.copies, self.round_trips))
        return (self.name, turns, *counts, branches)


LOOP_COLUMNS: Final = (
    "loop",
    "turns",
    "launches a turn",
    "of them copies",
    "round trips",
    "launches in branches",
)


@final
@dataclass
class _Computation:
    """Instructions of one computation of a module, as far as they count."""

    kinds: list[str] = field(default_factory=list)
    loops: list[tuple[str, str, int | None]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)

    @property
    def launched(self) -> list[str]:
        """The instructions that launch a kernel. One that is split starts once."""
        return [x for x in self.kinds if x not in _FREE and not x.endswith("-done")]


def loops_of(text: str, waits: bool = True) -> tuple[Loop, ...]:
    """Count what each loop launches, in the text of an optimised HLO module.

    `waits` says whether the host waits for the values that loops and branches test.
    """
    computations = dict(_computations(text))
    loops = {
        body: (name, turns)
        for each in computations.values()
        for body, name, turns in each.loops
    }

    def loop(body: str, name: str, turns: int | None) -> Loop:
        inside = computations[body]
        branches = [computations[x] for x in inside.branches if x in computations]
        return Loop(
            name=name,
            turns=turns,
            launches=len(inside.launched),
            copies=sum(x.startswith("copy") for x in inside.launched),
            round_trips=waits * (inside.kinds.count("conditional") + (turns is None)),
            branch_launches=sum(len(x.launched) for x in branches),
        )

    return tuple(loop(body, *of) for body, of in loops.items() if body in computations)


def _computations(text: str) -> Iterator[tuple[str, _Computation]]:
    """Iterate over the computations of a module, each after its name."""
    name, current = "", _Computation()
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name, current = start[1], _Computation()
        elif line.startswith("}"):
            yield name, current
        elif instruction := _INSTRUCTION.match(line):
            current.kinds.append(instruction[1])
            if instruction[1] == "conditional":
                listed = " ".join(map(" ".join, _BRANCHES.findall(line)))
                current.branches += re.findall(r"[\w.\-]+", listed)
            if body := _BODY.search(line):
                turns = _TURNS.search(line)
                current.loops.append(
                    (body[1], _first(_NAME, line), int(turns[1]) if turns else None)
                )


def _first(pattern: re.Pattern[str], line: str) -> Any:
    found = pattern.search(line)
    return found[1] if found else ""
