"""`Auto`: a batcher that chooses another batcher to fit a memory budget.

This is the whole rule by which `select` chooses:

1. On a CPU as many tasks at once as `TaskSeconds` estimates to be fastest: one, by
   `Sequential`, more, by `Chunked`, or all, by `Vmap`. One is fastest where a costly
   side of a branch may be rare, since `jax.vmap` computes all sides; where loops differ
   in length and a turn has enough to compute; and where one task occupies all cores.
2. `Continuous`, if tasks loop a different number of times around an expensive function,
   so that lanes of a `vmap` would wait for each other. A function is expensive from
   `MIN_OPERATIONS` operations on: below that, the work around it is more than the
   evaluations that are saved. It has the number of lanes that takes the least time by
   the model of `_lane_count`, and on a CPU must take less than the first case. On an
   accelerator calls in all tasks together must have `OPERATIONS_AT_ONCE`: smaller ones
   take less time than launching the kernels between them, of which vmap has fewer.
3. No more at once than fit the budget. On a CPU several tasks at once must also fit
   `CACHE_BYTES`, if one does: memory outside of the cache is slow. If not even one lane
   of a `Continuous` fits the budget, the first case applies.

`Continuous` keeps a branch around the expensive function, since lanes that take it wait
for the call together. Other branches are selects in all of its lanes, so where one of
these has a rare and costly side, `Sequential` is faster.

Tasks are not split for speed if the results could differ: `Chunked` repeats side
effects of some tasks, and a `custom_vmap` may have a rule for whole batches. The
constants are measured by `benchmarks/auto.py`, which reports how often the choice is a
good one.
"""

import collections
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._util._checks import check_flag
from .._util._formats import format_bytes
from .._util._jaxprs import axis_names, digest, equations
from ..batchers import AbstractBatcher, Chunked, Sequential, Vmap
from ..batchers._call import Call, TracedTask
from ..batchers._marks import in_task
from ..batchers._trace_log import log_note, logging_disabled, num_outer_lanes
from ..continuous import Continuous
from ..continuous._continuous import MIN_OPERATIONS, check_task, compile_task
from ..devices._target import Device, check_device, is_described, platform_of
from ._lane_count import JointCalls, best_lane_count, evaluation_seconds, lane_counts
from ._lane_memory import (
    SAFETY_FACTOR,
    BudgetError,
    bound_of_lane,
    budget_on,
    bytes_of_batcher,
    bytes_of_lanes,
    largest_arrays,
    largest_that_fits,
    parse_budget,
)
from ._task_seconds import TaskSeconds


CACHE_BYTES: Final = 16_000_000
# On an H200 calls of 3e8 operations in all lanes gain 9 % at most, and those of 6e9
# gain 30 to 50 % (`benchmarks/on_device.py`).
OPERATIONS_AT_ONCE: Final = 1_000_000_000
# Beyond this number the oldest choices are dropped.
_MAX_CHOICES: Final = 1024
_CHOICES: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()


@final
@dataclass(frozen=True)
class Selection:
    """The batcher that `Auto` uses for one call, with the reason.

    It is the result of `Auto.select`.

    **Arguments:**

    - `batcher`: the batcher.
    - `reason`: why it was chosen, as text with the numbers.
    - `bytes`: the bytes that XLA allocates for the lanes that run at once; `None` if
        nothing had to be compiled, since the arrays are far below the budget.
    - `budget`: the bytes available on each device.
    """

    batcher: AbstractBatcher
    reason: str
    bytes: int | None
    budget: int


def select(
    task: TracedTask, call: Call, batcher: "Auto", budget: int, outer: int
) -> Selection:
    """Choose the batcher that runs a task, on behalf of `batcher`.

    The budget of a device is divided among the `outer` lanes. Raise `BudgetError` if
    one lane does not fit, the refusal if tasks cannot be split and not all of them fit.
    """
    share, size = budget // outer, task.size
    refusal = call.refusal(task, batcher)
    device = batcher.device
    on_cpu = platform_of(device) == "cpu"

    @functools.cache
    def bytes_at(lanes: int) -> int:
        return bytes_of_lanes(task, call.axis_name, lanes, device)

    bound = size * bound_of_lane(task)
    if refusal is None and _has_unbatched_callback(task.jaxpr.jaxpr):
        reason = "a callback has no `vmap_method`, so tasks run one at a time"
        return Selection(Sequential(), reason, None, share)
    if refusal is None and call.spmd_axis_name is None and size > 1:
        seconds = TaskSeconds(task.jaxpr, size, outer, on_cpu)
        selection = None
        if not in_task():
            selection = _continuous(task, seconds, bound, share, batcher, on_cpu)
        if on_cpu:
            selection = selection or _fastest(task, seconds, bound, share, bytes_at)
        if selection is not None:
            return selection
    if refusal is None and size > 1 and on_cpu:
        selection = _in_cache(task, size, bound, share, bytes_at)
        if selection is not None:
            return selection
    if bound <= share:
        reason = f"all {size} tasks at once need less than {_of(bound, share)}"
        return Selection(Vmap(), reason, None, share)
    reason = f"all {size} tasks at once need {_of(bytes_at(size), share)}"
    if bytes_at(size) <= share:
        return Selection(Vmap(), reason, bytes_at(size), share)
    if refusal is not None:
        refusal.add_note(f"{batcher} has to split the tasks: {reason}.")
        raise refusal
    found = largest_that_fits(bytes_at, share, size)
    if found.size == 0:
        largest = largest_arrays(task.jaxpr.jaxpr)
        raise BudgetError(str(batcher), found.bytes, share, outer, largest)
    reason = (
        f"{found.size} of {size} tasks at once need {_of(found.bytes, share)}, "
        f"{found.size + 1} would need {format_bytes(found.bytes_at(found.size + 1))}"
    )
    return Selection(Chunked(found.size), reason, found.bytes, share)


def _continuous(
    task: TracedTask,
    seconds: TaskSeconds,
    bound: int,
    budget: int,
    auto: "Auto",
    on_cpu: bool,
) -> Selection | None:
    """Choose `Continuous`, if the rule says so and at least one lane fits."""
    program, pauses = compile_task(task)
    if not program.divergent_branches or pauses.operations < MIN_OPERATIONS:
        return None
    if not on_cpu and pauses.operations * task.size < OPERATIONS_AT_ONCE:
        return None
    try:
        check_task(task, program, pauses, Continuous(1))
    except ValueError:
        return None
    counts = lane_counts(task.size)
    evaluations = sum(pause.trip_count for pause in program.pauses())
    holds_call = functools.partial(pauses.points.is_inside, inputs=())
    shares = {
        lanes: seconds.in_lane(lanes, holds_call) / evaluations for lanes in counts
    }
    lanes = best_lane_count(shares, task.size)
    if on_cpu:
        each = evaluation_seconds(shares[lanes], lanes, task.size)
        if evaluations * each >= seconds.at_once(seconds.best):
            return None
    reason = (
        f"{pauses.name} ({pauses.operations:,.0f} operations) is called in loops whose "
        "lengths differ"
    )
    calls = JointCalls(program)
    measured: dict[int, float] = {}
    if auto.measure and calls.can_run:
        measured = calls.measured_shares(counts, budget)
    if measured:
        times = (f"{1e6 * share:.3g} with {k}" for k, share in measured.items())
        reason += f", and takes microseconds a lane: {', '.join(times)}"
        lanes = best_lane_count(measured, task.size)
    if bound <= budget:
        reason += f"; {lanes} lanes need less than {_of(bound, budget)}"
        return Selection(Continuous(lanes), reason, None, budget)
    found = largest_that_fits(
        lambda lanes: bytes_of_batcher(task, Continuous(lanes), auto.device),
        budget,
        lanes,
    )
    if found.size == 0:
        return None
    need = "1 lane needs" if found.size == 1 else f"{found.size} lanes need"
    reason += f"; {need} {_of(found.bytes, budget)}"
    return Selection(Continuous(found.size), reason, found.bytes, budget)


def _fastest(
    task: TracedTask,
    seconds: TaskSeconds,
    bound: int,
    budget: int,
    bytes_at: Callable[[int], int],
) -> Selection | None:
    """Choose the tasks at once by the time on a CPU, if fewer than all are faster."""
    size, best = task.size, seconds.best
    if best == size or _depends_on_batch(task):
        return None
    share = seconds.at_once(best) / seconds.at_once(size)
    if share > 0.95:
        reason = f"estimated to be as fast as all {size} tasks at once"
    else:
        reason = f"estimated to take {share:.2g} of the time of all {size} tasks at "
        reason += f"once, {seconds.loss}"
    bound = bound // size * best
    if best > 1:
        selection = _in_cache(task, best, bound, budget, bytes_at)
        if selection is not None:
            return selection
    if bound > budget and bytes_at(best) > budget:
        return None
    batcher = Sequential() if best == 1 else Chunked(best)
    if bound <= budget:
        reason += f"; needs less than {_of(bound, budget)}"
        return Selection(batcher, reason, None, budget)
    reason += f"; needs {_of(bytes_at(best), budget)}"
    return Selection(batcher, reason, bytes_at(best), budget)


def _in_cache(
    task: TracedTask,
    most: int,
    bound: int,
    budget: int,
    bytes_at: Callable[[int], int],
) -> Selection | None:
    """Choose the `Chunked` that fits the cache, if the cache is the tighter limit."""
    if min(bound, budget) <= CACHE_BYTES:
        return None
    if bound // most // SAFETY_FACTOR > CACHE_BYTES:
        return None
    found = largest_that_fits(bytes_at, CACHE_BYTES, most)
    if found.size in (0, most):
        return None
    reason = (
        f"{found.size} of {task.size} tasks at once stay in the cache of a CPU; they "
        f"need {_of(found.bytes, budget)}"
    )
    return Selection(Chunked(found.size), reason, found.bytes, budget)


def _has_unbatched_callback(jaxpr: Any) -> bool:
    """Return whether a callback can only be called for one task."""
    return any(
        eqn.primitive.name == "pure_callback" and eqn.params["vmap_method"] is None
        for eqn in equations(jaxpr)
    )


def _depends_on_batch(task: TracedTask) -> bool:
    """Return whether side effects or results may depend on the tasks at once."""
    names = {eqn.primitive.name for eqn in equations(task.jaxpr.jaxpr)}
    return bool(task.jaxpr.effects) or "custom_vmap_call" in names


def _of(needed: int, budget: int) -> str:
    return f"{format_bytes(needed)} of {format_bytes(budget)}"


@final
class Auto(AbstractBatcher):
    """The fastest batcher that fits a memory budget, by an estimate.

    While it is traced, the task is compiled for a few numbers of lanes to find the
    memory that XLA would allocate; nothing runs unless `measure=True`. `Auto` then
    chooses `Continuous`, if tasks loop a different number of times around an expensive
    function; `Vmap`, if all tasks fit the budget; else the largest `Chunked` that fits.
    On a CPU it chooses fewer tasks at once, down to `Sequential`, where the operations
    of a task say that they are faster: a branch with a costly side stays a branch.
    `select` and `batchkit.explain` show the choice and the reason. If the sizes of all
    arrays together are far below the budget, nothing is compiled. Choices are cached by
    the computation and the shapes of a task.

    Compile it with `jax.jit`: uncompiled, a loop over tasks is compiled at every call.
    Tasks that communicate, or that write to a mapped `jax.Ref`, run all at once. The
    memory of the latter is not compared with the budget.

    The budget is for the lanes on one device: temporaries, and the rows and results of
    as many tasks. Arrays that the function closes over are shared by all lanes and not
    counted, nor is the program around the site; `batchkit.plan` chooses for a whole
    program. Also not counted are allocations of callbacks and of libraries outside
    XLA, the lanes of a `jax.vmap` of your own around it, and the intermediate values
    that reverse-mode differentiation *through* the batch stores for the backward pass.
    Inside a batcher that runs several lanes, the budget is divided by their number. A
    `Continuous` inside its tasks runs as `Vmap()`.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    @bk.Auto("1 MB")
    def total(x):
        return jnp.sum(jnp.outer(x, x) @ jnp.outer(x, x))

    assert total(jnp.ones((100, 90))).tolist() == [90.0**3] * 100
    ```
    """

    budget: int | str | None = eqx.field(static=True)
    measure: bool = eqx.field(static=True)
    device: Device = eqx.field(static=True)

    uses_expensive_marks: ClassVar[bool] = True
    uses_outer_lanes: ClassVar[bool] = True

    def __init__(
        self,
        budget: int | str | None = None,
        measure: bool = False,
        device: Device = None,
    ) -> None:
        """**Arguments:**

        - `budget`: bytes on each device, as an int or as a text such as `"512 MB"`
            (powers of 1000) or `"8 GiB"` (powers of 1024). By default half of the
            free memory of the device, or on CPU of the machine, at the time of tracing.
        - `measure`: whether to choose the number of lanes of a `Continuous` by running
            the expensive function with 4, 8, 16, ... lanes on made-up arguments, each
            compiled for it, instead of by counting its operations. Another run may
            then choose another number, so several processes (`jax.distributed`) get
            a `RuntimeError`. A function with a loop of unknown length, a callback or a
            collective is never run for this.
        - `device`: the device of JAX that will run the tasks, present or
            [described][batchkit.described_device]. By default the process's own.

        **Raises:**

        `TypeError` if `budget` is neither an int nor a string, `measure` not a bool or
        `device` not a device of JAX, `ValueError` if `budget` cannot be parsed or is
        below one byte, or if a described device were to be measured.
        """
        self.budget = budget
        self.measure = measure
        self.device = device

    def __check_init__(self) -> None:
        if self.budget is not None:
            parse_budget(self.budget, str(self))
        check_flag("Auto", "measure", self.measure)
        check_device("Auto", self.device, or_mesh=False)
        if self.measure and is_described(self.device):
            raise ValueError(
                f"Auto(measure=True, device={self.device}): a described device cannot "
                "run anything. Use `measure=False`."
            )

    def batch(self, call: Call) -> PyTree:
        if call.size == 0:
            return call.vmap()
        task, selection = self._choose(call)
        if task is None:
            out = selection.batcher.batch(call)
        else:
            outs = task.run_rows(
                selection.batcher,
                task.rows,
                task.size,
                axis_name=call.axis_name,
                spmd_axis_name=call.spmd_axis_name,
            )
            out = task.finish(outs)
        log_note(selection.reason)
        return out

    def select(
        self,
        fun: Callable[..., Any],
        *args: Any,
        in_axes: Any = 0,
        axis_size: int | None = None,
    ) -> Selection:
        """Choose the batcher for `fun` and these arguments, without running it.

        ```python
        import jax.numpy as jnp
        import batchkit as bk

        auto = bk.Auto("1 MB")
        chosen = auto.select(lambda x: jnp.outer(x, x) @ x, jnp.ones((100, 90)))
        assert isinstance(chosen.batcher, bk.Chunked)
        assert chosen.bytes <= chosen.budget == 1_000_000
        print(chosen.reason)
        ```

        **Arguments:**

        - `fun`: the function of one task.
        - `*args`: its arguments for all tasks; `jax.ShapeDtypeStruct` may stand for an
            array.
        - `in_axes`: the mapped axes, as for `jax.vmap`.
        - `axis_size`: the number of tasks. It is needed only if no argument is mapped.

        **Returns:**

        A [`Selection`][batchkit.auto.Selection]: the batcher, the reason and the bytes.

        **Raises:**

        The errors of calling the batcher.
        """
        chosen: list[Selection] = []

        def choose(*args: Any) -> tuple[()]:
            call = Call(fun, args, {}, in_axes, 0, None, axis_size, None)
            chosen.append(self._choose(call)[1])
            return ()

        eqx.filter_eval_shape(choose, *args)
        return chosen[0]

    def _choose(self, call: Call) -> tuple[TracedTask | None, Selection]:
        """Trace the task of a call, unless it maps a `Ref`, and choose a batcher."""
        if self.budget is None:
            budget, _ = budget_on(None, self.device, str(self))
        else:
            budget = parse_budget(self.budget, str(self))
        if self.measure and jax.process_count() > 1:
            raise RuntimeError(
                f"{self}: {jax.process_count()} processes would measure different "
                "times and run different programs. Use `measure=False`, or measure in "
                "one process and write down the `Continuous` that it chose."
            )
        if call.maps_refs:
            reason = "a mutable array is mapped, which cannot be cut into chunks"
            return None, Selection(Vmap(), reason, None, budget // num_outer_lanes())
        # The number of lanes is not known before the trace. `lanes=2` gives an Auto
        # inside the task half of the budget, which leaves the other half for the rest.
        task = call.trace(self, lanes=2, splits=False)
        around = num_outer_lanes()
        if call.stays_vmap(task):
            reason = "only moves data, kept as vmap"
            return None, Selection(Vmap(), reason, None, budget // around)
        # All that the choice depends on. The dtype of zeros shows whether x64 is on,
        # and the batcher is in the key because it is named in messages.
        outer = axis_names(task.jaxpr.jaxpr) - {call.axis_name}
        outer_sizes = tuple((x, jax.lax.axis_size(x)) for x in sorted(outer, key=str))
        key = (
            digest(task.jaxpr, values=False),
            tuple((x.shape, str(x.dtype)) for x in task.rows),
            tuple(task.is_mapped),
            (task.size, budget, around, self, call.axis_name, call.spmd_axis_name),
            outer_sizes,
            (in_task(), platform_of(self.device), str(jnp.zeros(()).dtype)),
        )
        selection = _CHOICES.get(key)
        if selection is None:
            with logging_disabled():
                selection = select(task, call, self, budget, around)
            # Without a lock: two threads may make the same choice twice.
            _CHOICES[key] = selection
            if len(_CHOICES) > _MAX_CHOICES:
                _CHOICES.popitem(last=False)
        return task, selection
