"""Time of a task with so many tasks at once, estimated from its equations.

An equation takes the time of its operations and of reading what all tasks have in
common, and some time to start. Tasks at once share the last two, and XLA spreads large
results over several cores. So more tasks at once are faster, where each is small.

Under `jax.vmap` they also pay for what they do not need. Each computes all sides of a
branch at which tasks part, and in a loop all wait for the longest. By how much tasks
differ is not in the program: if their lengths spread like waiting times, exponentially,
the longest of `m` is 1 + 1/2 + ... + 1/m times the mean. For 64 tasks that is 4.7; in
the programs that `benchmarks/ecosystem.py` counts it is 1.3 to 5.7.

Nor is it in the program how often a costly side is taken. One task at a time counts as
the geometric mean of always and never, as wrong if one is true as if the other is. But
if it is more than `MOST_LOST` times slower where always is true, it counts as that.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import jax
from jax.extend.core import ClosedJaxpr

from ..batchers._call import size_of
from ..batchers._splitting import MOVES_DATA
from ..continuous._equations import closed_jaxpr, is_callback
from ..continuous._equinox import as_one_task
from ..continuous._operations import RANDOM_BITS, equation_operations, weighted_sum
from ..continuous._pause_points import Divergence


# Seconds to start an equation, whatever its size. This and what follows, and the speeds
# of a CPU, are fitted to the problems of `benchmarks/auto.py` on 2 cores.
EQUATION: Final = 8e-10
# XLA fuses all of a loop that reads and writes at most so many bytes into one function:
# its option `xla_cpu_small_while_loop_byte_threshold`.
SMALL_LOOP: Final = 1024
# A turn of a loop over tasks, of which all tasks at once need none.
TURN_OF_TASKS: Final = 1e-6
# Random bits take a hundred operations one after another.
RANDOM: Final = 100 * EQUATION
# From XLA to Python and back.
CALLBACK: Final = 1e-4
# Arrays up to so many bytes are read from the cache of a core, in hardly any time.
CORE_CACHE: Final = 500_000

# More tasks at once must be so many times faster: they need more memory.
LEAST_GAIN: Final = 1.1
MOST_LOST: Final = 2.0

_EULER: Final = 0.5772156649015329

_ELEMENTARY: Final = frozenset(
    [
        *["acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos"],
        *["cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"],
        *["igamma", "igammac", "lgamma", "log", "log1p", "logistic", "pow", "rsqrt"],
        *["regularized_incomplete_beta", "sin", "sinh", "sqrt", "tan", "tanh"],
    ]
)


@final
class Rates(NamedTuple):
    """Speeds of a device, per second."""

    arithmetic: float  # operations of one core
    elementary: float  # elementary functions of one core
    products: float  # operations of matrix products, on all cores
    bytes: float
    # Seconds to start a kernel. XLA fuses equations that compute number by number into
    # one.
    kernel: float
    cores: int = 1


# XLA uses one core more for each so many bytes that an operation computes.
BYTES_PER_CORE: Final = 200_000
# Of an accelerator only orders of magnitude are known. With these the number of lanes
# is the best of those that `benchmarks/on_device.py` timed on an H200.
ACCELERATOR: Final = Rates(1e13, 1e13, 1e14, 3e12, kernel=4e-6)


def rates() -> Rates:
    """Return the speeds of the CPU."""
    # On macOS and Windows there is no list of the cores that the process may use.
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    # Processes must choose alike, whatever cores each has.
    cores = len(may_use(0)) if jax.process_count() == 1 else 1
    return Rates(1e10, 2.5e8, 1e11, 2e10, kernel=5e-7, cores=cores)


@final
class TaskSeconds:
    """Estimated seconds of a task, as the mean over all tasks."""

    def __init__(
        self, jaxpr: ClosedJaxpr, tasks: int, outer: int, on_cpu: bool = True
    ) -> None:
        # Loops of Equinox ask about their batch, until they are rewritten for one task.
        self._jaxpr = as_one_task(closed_jaxpr(jaxpr), lambda _: False)
        self._divergence = Divergence().of_task(self._jaxpr)
        self._loops_part = self._divergence.in_loops
        self._tasks = tasks
        self._outer = outer  # as many lanes run at once whatever the layout
        self._rates = rates() if on_cpu else ACCELERATOR

    def at_once(self, tasks: int) -> float:
        """Return the seconds with so many tasks at once, which wait for each other."""
        lanes = tasks * self._outer
        loop = TURN_OF_TASKS / tasks if tasks < self._tasks else 0.0
        if lanes == 1:
            return loop + self._with_branches(lanes, lambda _: True)
        all_sides = self._sum(lanes, lambda _: sum)
        longest = longest_of(lanes) if self._loops_part else 1.0
        return loop + all_sides * longest

    def in_lane(self, lanes: int, is_kept: Callable[[Any], bool]) -> float:
        """Return the seconds in one of some lanes that never wait.

        A lane computes all sides of a branch, unless `is_kept` of its equation.
        """
        return self._with_branches(lanes * self._outer, is_kept)

    @property
    def loss(self) -> str:
        """The loss of tasks at once, in words."""
        if self._loops_part:
            return "which wait for each other in loops"
        if self._divergence.parting:
            return "which compute all sides of each branch"
        return "which gain nothing from each other"

    @functools.cached_property
    def best(self) -> int:
        """The fewest tasks at once that take about the least time."""
        # Chunks are of equal size: all tasks in 1, 2, 4, ... of them.
        # Fewer than 16 tasks fill no vector register of a CPU, which holds 16 numbers.
        halved = [-(-self._tasks // 2**i) for i in range(self._tasks.bit_length())]
        counts = sorted({1, self._tasks, *(x for x in halved if x >= 16)})
        seconds = {count: self.at_once(count) for count in counts}
        enough = LEAST_GAIN * min(seconds.values())
        return next(count for count in counts if seconds[count] <= enough)

    def _with_branches(self, lanes: int, is_kept: Callable[[Any], bool]) -> float:
        always = self._sum(lanes, lambda eqn: max if is_kept(eqn) else sum)
        never = self._sum(lanes, lambda eqn: min if is_kept(eqn) else sum)
        under_vmap = self._sum(self._tasks * self._outer, lambda _: sum)
        loses = always > MOST_LOST * under_vmap
        return always if loses else math.sqrt(always * never)

    def _sum(
        self, lanes: int, of_parting: Callable[[Any], Callable[[list[float]], float]]
    ) -> float:
        def of_sides(eqn: Any, sides: list[float]) -> float:
            if eqn in self._divergence.parting:
                return of_parting(eqn)(sides)
            return min(sides)  # the same one for all tasks, which raises no error

        weight = functools.partial(self._equation, lanes)
        return weighted_sum(self._jaxpr.jaxpr, weight, of_sides)

    def _equation(self, lanes: int, eqn: Any, carried: float) -> float:
        name, device = eqn.primitive.name, self._rates
        varies = self._divergence.varies(eqn)
        made = max((size_of(x.aval) for x in eqn.outvars), default=0)
        made *= lanes if varies else 1
        cores = min(max(made / BYTES_PER_CORE, 1.0), device.cores)
        rate = cores * device.arithmetic
        if name in _ELEMENTARY:
            rate = cores * device.elementary
        if name == "dot_general":
            rate = device.products
        start = EQUATION
        common = self._divergence.common_bytes(eqn)
        if common > CORE_CACHE:
            start += common / device.bytes
        if 2 * lanes * carried > SMALL_LOOP and not _is_fused(eqn):
            start += device.kernel
        if name in RANDOM_BITS:
            start += RANDOM
        if is_callback(eqn):
            start += CALLBACK
        operations = equation_operations(eqn) / rate
        # `jax.vmap` computes once what is the same for all tasks.
        return (operations if varies else operations / lanes) + start / lanes


def longest_of(tasks: int) -> float:
    """Return the mean of the longest of several waiting times, over that of all.

    It is the harmonic number of `tasks`, here to 1e-3 (Euler's expansion).
    """
    return math.log(tasks) + _EULER + 1 / (2 * tasks) - 1 / (12 * tasks**2)


def _is_fused(eqn: Any) -> bool:
    """Return whether each number of the result needs one number of each operand."""
    shapes = {getattr(x.aval, "shape", ()) for x in (*eqn.invars, *eqn.outvars)}
    return len(shapes - {()}) <= 1 or eqn.primitive.name in MOVES_DATA
