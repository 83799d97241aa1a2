"""Number of lanes of a `Continuous`: enough for fast calls, few enough to stay busy.

With `w` lanes for `n` tasks, each evaluation that a task needs takes about

    (c(w) + TURN / w) (1 + IDLE w / n)

seconds. `c(w)` is a lane's share of a call by all lanes, `TURN` what a turn of the loop
over lanes takes beside the call, and `IDLE w / n` the share of lanes that are idle at
the end, where no task is left to take. A call has operations for every lane, and reads
the arrays that lanes have in common once (the roofline model: Williams, Waterman and
Patterson 2009, doi:10.1145/1498765.1498785); on a CPU XLA computes large results on
several cores. Both make a lane's share fall with the number of lanes.

How fast a product of `w` rows is depends on the library and the processor, and does not
follow from its operations. A measurement runs the function with `w` lanes instead.
"""

import functools
import itertools
import math
import operator
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp

from .._util._jaxprs import inner_equations
from ..batchers._call import size_of
from ..continuous._basic_blocks import Immediate, TaskProgram, Value
from ..continuous._common_subexpressions import CallKind, call_kinds
from ..continuous._equations import called_jaxpr, is_collective


# Fitted to the steps that `benchmarks/auto.py` times on 2 CPU cores.
TURN: Final = 6e-5
IDLE: Final = 0.6


@final
class Rates(NamedTuple):
    """Speeds of a device, per second."""

    operations: float  # of one core
    products: float  # operations of matrix products, on all cores
    bytes: float
    cores: int = 1


# XLA uses one core more for each so many bytes that an operation computes.
BYTES_PER_CORE: Final = 200_000
# Of an accelerator only the order of magnitude is known: one of 10 TFLOP/s.
ACCELERATOR: Final = Rates(1e13, 1e13, 1e12)


def rates() -> Rates:
    """Return the speeds of the device in use."""
    if jax.default_backend() != "cpu":
        return ACCELERATOR
    # On macOS and Windows there is no list of the cores that the process may use.
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    # Processes must choose alike, whatever cores each has.
    cores = len(may_use(0)) if jax.process_count() == 1 else 1
    return Rates(7.5e8, 1e11, 2e10, cores)


# A measurement repeats calls until they have taken so many seconds, in so many rounds.
_SECONDS: Final = 2e-3
_ROUNDS: Final = 5


def best_lane_count(shares: dict[int, float], tasks: int) -> int:
    """Return the number of lanes that needs the least time.

    **Arguments:**

    - `shares`: for each number of lanes a lane's share of a call, in seconds.
    - `tasks`: the number of tasks.
    """

    def seconds(lanes: int) -> float:
        return (shares[lanes] + TURN / lanes) * (1 + IDLE * lanes / tasks)

    return min(shares, key=seconds)


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
        self._immediates = [x.value for x in read if isinstance(x, Immediate)]

    @property
    def shared_bytes(self) -> int:
        """The bytes of the arrays that all lanes read."""
        constants = [*self._immediates, *self._constants]
        return sum(x.nbytes for x in constants) + sum(x.bytes for x in self._shared)

    @property
    def product_operations(self) -> int:
        """The floating-point operations of matrix products in one lane's calls."""
        return sum(map(_product_operations, self._equations))

    @property
    def largest_bytes(self) -> int:
        """The bytes of the largest array that a call computes for one lane."""
        made = [size_of(x.aval) for eqn in self._equations for x in eqn.outvars]
        return max(made, default=0)

    @property
    def _constants(self) -> list[Any]:
        """Return the arrays that are constants of a function in a call."""
        called = map(called_jaxpr, self._equations)
        return [x for jaxpr in called if jaxpr is not None for x in jaxpr.consts]

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
            compiled = jax.jit(call).lower(shared, args).compile()
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


def counted_shares(
    calls: JointCalls, operations: float, lane_counts: Sequence[int]
) -> dict[int, float]:
    """Estimate a lane's share of a call from what it computes and reads."""
    device = rates()
    products = min(calls.product_operations, operations)
    shares: dict[int, float] = {}
    for lanes in lane_counts:
        cores = lanes * calls.largest_bytes / BYTES_PER_CORE
        cores = min(max(cores, 1.0), device.cores)
        shares[lanes] = (
            (operations - products) / (cores * device.operations)
            + products / device.products
            + calls.shared_bytes / (device.bytes * lanes)
        )
    return shares


def _operands(kind: CallKind) -> list[Any]:
    """Return what a call reads and does not compute, each once."""
    made = {x for instruction in kind.region for x in instruction.outputs}
    read = [x for instruction in kind.region for x in instruction.inputs]
    return [x for x in dict.fromkeys([*kind.args, *read]) if x not in made]


def _product_operations(eqn: Any) -> int:
    if eqn.primitive.name != "dot_general":
        return 0
    ((contracted, _), _) = eqn.params["dimension_numbers"]
    rows = eqn.invars[0].aval.shape
    summed = math.prod(rows[axis] for axis in contracted)
    return 2 * summed * math.prod(eqn.outvars[0].aval.shape)


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
