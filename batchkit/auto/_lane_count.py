"""Number of lanes of a `Continuous`: enough for fast calls, few enough to stay busy.

With `w` lanes for `n` tasks, each evaluation that a task needs takes about

    (c(w) + TURN / w) (1 + IDLE w / n)

seconds. `c(w)` is a lane's share of a call by all lanes and of the work between two
calls, `TURN` what a turn of the loop over lanes takes beside them, and `IDLE w / n` the
share of lanes that are idle at the end, where no task is left to take. Lanes compute
their operations by the rates of `TaskSeconds`, and read the arrays that they have in
common once (the roofline model: Williams, Waterman and Patterson 2009,
doi:10.1145/1498765.1498785). Both make a lane's share fall with the number of lanes.

How fast a product of `w` rows is depends on the library and the processor, and does not
follow from its operations. A measurement runs the function with `w` lanes instead.
"""

import functools
import itertools
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import jax
import jax.numpy as jnp

from .._util._jaxprs import inner_equations
from ..continuous._basic_blocks import TaskProgram, Value
from ..continuous._common_subexpressions import CallKind, call_kinds
from ..continuous._equations import is_collective
from ..devices._target import compile_if_it_fits


# Fitted to the steps that `benchmarks/auto.py` times on 2 CPU cores.
TURN: Final = 6e-5
IDLE: Final = 0.55


# A measurement repeats calls until they have taken so many seconds, in so many rounds.
_SECONDS: Final = 2e-3
_ROUNDS: Final = 5


def best_lane_count(shares: dict[int, float], tasks: int) -> int:
    """Return the number of lanes that needs the least time.

    **Arguments:**

    - `shares`: for each number of lanes a lane's share of an evaluation, in seconds.
    - `tasks`: the number of tasks.
    """
    return min(
        shares, key=lambda lanes: evaluation_seconds(shares[lanes], lanes, tasks)
    )


def evaluation_seconds(share: float, lanes: int, tasks: int) -> float:
    """Return the seconds of an evaluation, with those that lanes take to find tasks."""
    return (share + TURN / lanes) * (1 + IDLE * lanes / tasks)


def lane_counts(tasks: int) -> list[int]:
    """Return the numbers of lanes to compare: powers of two from 4 on, and `tasks`."""
    return sorted({*(2**i for i in range(2, tasks.bit_length())), tasks})


@final
class JointCalls:
    """The calls that lanes make together, one of each kind, apart from their loop."""

    def __init__(self, program: TaskProgram) -> None:
        self._kinds = call_kinds(program.pauses())
        # A value that calls of several kinds read counts once.
        read = dict.fromkeys(x for kind in self._kinds for x in _operands(kind))
        self._shared = [x for x in read if isinstance(x, Value) and x.uniform]

    @property
    def _equations(self) -> list[Any]:
        eqns = [x.eqn for kind in self._kinds for x in kind.region if x.eqn is not None]
        return [each for eqn in eqns for each in (eqn, *inner_equations(eqn))]

    @property
    def can_run(self) -> bool:
        """Return whether they may be called with made-up values.

        A loop might never end with them, and without one the values matter little for
        the time. What a task closes over is made up as well: it may be being traced.
        """
        needs_valid = any(kind.needs_valid_arguments for kind in self._kinds)
        return not needs_valid and not any(map(is_collective, self._equations))

    def measured_shares(
        self, lane_counts: Sequence[int], budget: int
    ) -> dict[int, float]:
        """Measure a lane's share of a call, in seconds, by running it.

        Numbers of lanes whose temporaries exceed the budget of bytes are left out.
        """
        shared = _computed(lambda: [_example(x) for x in self._shared])
        runs: dict[int, Callable[[], Any]] = {}
        for lanes in lane_counts:
            args = _computed(functools.partial(self._example_args, lanes))
            call = functools.partial(self._call, lanes)
            compiled = compile_if_it_fits(jax.jit(call).lower(shared, args))
            if compiled is None:
                break
            memory = compiled.memory_analysis()
            if memory is not None and memory.temp_size_in_bytes > budget:
                break
            runs[lanes] = functools.partial(compiled, shared, args)
        repeats = {lanes: _repeats(run) for lanes, run in runs.items()}
        seconds: dict[int, list[float]] = {lanes: [] for lanes in runs}
        for _ in range(_ROUNDS):
            for lanes, run in runs.items():
                taken = _seconds(run, repeats[lanes])
                seconds[lanes].append(taken / repeats[lanes] / lanes)
        return {lanes: statistics.median(x) for lanes, x in seconds.items()}

    @property
    def _args(self) -> list[list[Value]]:
        """Return for each kind the arguments that every lane has its own of."""
        return [
            list(itertools.compress(kind.args, map(operator.not_, kind.is_common)))
            for kind in self._kinds
        ]

    def _example_args(self, lanes: int) -> list[list[Any]]:
        return [[_example(x, lanes) for x in args] for args in self._args]

    def _call(self, lanes: int, shared: list[Any], args: list[list[Any]]) -> Any:
        """Make a call of each kind in all lanes."""
        env = dict(zip(self._shared, shared, strict=True))
        return [
            jax.vmap(functools.partial(kind.evaluate, True, env), axis_size=lanes)(each)
            for kind, each in zip(self._kinds, args, strict=True)
        ]


def _operands(kind: CallKind) -> list[Any]:
    """Return what a call reads and does not compute, each once."""
    made = {x for instruction in kind.region for x in instruction.outputs}
    read = [x for instruction in kind.region for x in instruction.inputs]
    return [x for x in dict.fromkeys([*kind.args, *read]) if x not in made]


def _computed(make: Callable[[], Any]) -> Any:
    """Return arrays, also where something is being traced, by a compiled program."""
    return jax.jit(make).lower().compile()()


def _example(value: Value, *lanes: int) -> jax.Array:
    """Return an array of 0.5, or of zeros where it holds no real numbers."""
    zeros = value.zeros(*lanes)
    return zeros + 0.5 if jnp.issubdtype(value.dtype, jnp.floating) else zeros


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(run())
    return time.perf_counter() - start


def _repeats(run: Callable[[], Any]) -> int:
    """Return how often to run something in a round, after running it twice."""
    jax.block_until_ready(run())
    return max(1, int(_SECONDS / _seconds(run, 1)))
