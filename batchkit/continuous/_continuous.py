"""Continuous batching: a lane whose task is done takes the next task at once."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple, ParamSpec, TypeVar, cast, final

import equinox as eqx
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Int, PyTree

from .._util._checks import check_number
from .._util._jaxprs import evaluate, inner_jaxprs, zeros
from ..batchers import AbstractBatcher, Vmap
from ..batchers._call import Call, TracedTask, mapped_function
from ..batchers._chunked import balanced_chunks, run_in_chunks
from ..batchers._marks import in_task
from ..batchers._sharded import inside_shard_map
from ..batchers._splitting import batch_dependent_draws
from ..batchers._trace_log import current_entry, log_note, log_split, profiler_paused
from ._basic_blocks import Instruction, TaskProgram, Value
from ._equations import closed_jaxpr, is_collective, with_weak_type
from ._equinox import as_one_task
from ._forward_derivative import ComputeTasks, with_derivative
from ._lane_loop import LaneLoop
from ._layout import LaneLayout
from ._lowering import lower
from ._pause_points import (
    AbstractPausePoints,
    PauseChoice,
    choose_pause_points,
    loop_operations,
)
from ._simplification import simplify


_P = ParamSpec("_P")
_T = TypeVar("_T")

# Below this many operations of an evaluation, lanes save less than they cost, unless
# tasks differ by more than ten times. `Auto` leaves such tasks together.
MIN_OPERATIONS: Final = 2_000

# Below this many operations a function costs less than the code around its calls. Then
# it pays to hold up to one lane in eight until several need the same code.
_CHEAP = 10_000


@final
class LaneStats(NamedTuple):
    """Evaluations made and needed: how busy the lanes of one call were.

    An evaluation is one lane's call of the expensive function. Where no function is
    marked, it is one lane's part in a turn of the loop over lanes, and needed if the
    lane has a task.

    - `made`: evaluations made, an int: lanes times the calls that they made together.
    - `needed`: evaluations that some task needed, an int.

    ```python
    import jax.numpy as jnp
    import batchkit as bk
    from batchkit.continuous import LaneStats

    stats = LaneStats(made=jnp.array(40), needed=jnp.array(30))
    assert float(stats.utilisation) == 0.75
    ```
    """

    made: Int[Array, ""]
    needed: Int[Array, ""]

    @property
    def utilisation(self) -> Array:
        """Evaluations needed over evaluations made; 1 where there were none."""
        return jnp.where(self.made > 0, self.needed / jnp.maximum(self.made, 1), 1.0)


@final
class Continuous(AbstractBatcher):
    """Lanes that are kept busy: a lane whose task is done takes the next task.

    Under `jax.vmap` a `while_loop` runs until its slowest lane is done. Here a task
    pauses whenever it calls the expensive function. All lanes make that call together,
    wherever each of them is in its own program, and no task waits for another to end.
    Every result is stored at the index of its task.

    Mark the expensive function with `batchkit.expensive`; in a rebuilt sampler it is
    found among your functions. Of several marked functions tasks pause at the one with
    the most operations: numbers that it computes, in loops of known length as often as
    they turn. Where no function is marked, tasks pause at the turns of their loops. If
    all tasks take the same path through their loops and branches, it runs as
    `Chunked(lanes)`. `batchkit.explain` prints which of these applies.

    Compile it with `jax.jit`: uncompiled it is as slow as any loop of JAX. A lane
    stores the values that are live across a pause; arrays that the function closes over
    are not copied. Inside a task of another `Continuous` it acts as `Vmap()`.

    Gradients inside a task work, and so does forward mode through the batcher.
    Reverse-mode differentiation through it raises an error, as do collectives, and side
    effects outside of the expensive function.

    ```python
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    @bk.Continuous(4)
    def halvings(x):
        def halve(carry):
            return carry[0] / 2, carry[1] + 1

        return jax.lax.while_loop(lambda carry: carry[0] > 1, halve, (x, 0))[1]

    assert halvings(2.0 ** jnp.arange(10)).tolist() == list(range(10))
    ```
    """

    lanes: int = eqx.field(static=True)

    uses_expensive_marks: ClassVar[bool] = True

    def __init__(self, lanes: int) -> None:
        """**Arguments:**

        - `lanes`: the number of tasks in progress at once; at least 1. Lanes stay busy
            to the end if there are several tasks for each.

        **Raises:**

        `TypeError` if `lanes` is not an int, `ValueError` if it is below 1.
        """
        self.lanes = lanes

    def __check_init__(self) -> None:
        check_number(
            "Continuous",
            "lanes",
            self.lanes,
            "the number of tasks in progress at once",
            remedy="For one at a time, without a batch axis, use `Sequential()`.",
        )

    def batch(self, call: Call) -> PyTree:
        return self._batch(call, count=False)[0]

    def with_stats(
        self,
        fun: Callable[_P, _T],
        in_axes: int | Sequence[Any] | None = 0,
        out_axes: Any = 0,
        axis_name: Hashable | None = None,
        axis_size: int | None = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
        sum_match: bool = False,
    ) -> Callable[_P, tuple[_T, LaneStats]]:
        """Batch a function that also returns how busy its lanes were.

        ```python
        import jax
        import jax.numpy as jnp
        import batchkit as bk

        def countdown(x):
            return jax.lax.while_loop(lambda x: x > 0, lambda x: x - 1, x)

        lengths = jnp.array([9, 1, 1, 1, 1, 1, 1, 1, 1, 1])
        out, stats = bk.Continuous(2).with_stats(countdown)(lengths)
        assert (int(stats.made), int(stats.needed)) == (18, 18)
        ```

        **Arguments:**

        As for calling the batcher.

        **Returns:**

        A function that returns a pair: the results of the batched function, and a
        `LaneStats`.
        """
        with_stats = mapped_function(
            lambda call: self._batch(call, count=True),
            fun,
            in_axes,
            out_axes,
            axis_name=axis_name,
            axis_size=axis_size,
            spmd_axis_name=spmd_axis_name,
            sum_match=sum_match,
        )
        return cast("Callable[_P, tuple[_T, LaneStats]]", with_stats)

    def _batch(self, call: Call, count: bool) -> tuple[PyTree, LaneStats]:
        if in_task():
            log_note("in a task of another Continuous, run as Vmap")
            return Vmap().batch(call), _stats(0, 0)
        if call.size == 0 or (call.size == 1 and not count):
            return Vmap().batch(call), _stats(0, 0)
        _refuse_spmd(call)
        lanes = min(self.lanes, call.size)
        task = call.trace(self, lanes=lanes)
        if call.stays_vmap(task):
            return Vmap().batch(call), _stats(0, 0)
        with profiler_paused():
            return self._compute(task, lanes, count)

    def _compute(
        self, task: TracedTask, lanes: int, count: bool
    ) -> tuple[PyTree, LaneStats]:
        program, pauses = compile_task(task)
        if not program.divergent_branches:
            log_note("all tasks take the same path, so run as Chunked")
            out = run_in_chunks(task, self.lanes, Vmap())
            calls = sum(pause.trip_count for pause in program.pauses())
            chunks, in_each = balanced_chunks(task.size, self.lanes)
            return out, _stats(chunks * in_each * calls, task.size * calls)
        check_task(task, program, pauses, self)
        log_split(task.size, 1, 1, lanes, "lane")

        def lay_out(each: TracedTask) -> ComputeTasks:
            # `each` is the task or its derivative, which is compiled as another task.
            compiled = program, pauses
            if each is not task:
                compiled = compile_task(each)
            layout = LaneLayout(compiled[0], patient=compiled[1].operations < _CHEAP)
            loop = LaneLoop(layout, lanes, task.size, compiled[1].operations)
            if each is task:
                log_note(f"{pauses.note}; {layout.bytes_per_lane} B stored per lane")
                _note_if_cheap(task, pauses)
            constants = [id(x) for x in each.closure]

            def compute(rows: list[Any], closure: list[Any]) -> tuple[list[Any], Any]:
                arrays = dict(zip(constants, closure, strict=True))
                outs, counts = loop.run(rows, arrays, count)
                return _with_out_axes(each, outs, layout.is_output_varying), counts

            return compute

        outs, counts = with_derivative(lay_out, task)
        return task.finish(outs), LaneStats(*counts)


def compile_task(task: TracedTask) -> tuple[TaskProgram, PauseChoice]:
    """Compile a task to basic blocks, and return where it pauses."""
    pauses = choose_pause_points(task.jaxpr.jaxpr)
    program = lower(_as_one_task(task, pauses), pauses.points)
    program.exit.outputs = task.with_values(program.exit.outputs)
    simplify(program)
    return program, pauses


def check_task(
    task: TracedTask, program: TaskProgram, pauses: PauseChoice, batcher: object
) -> None:
    """Raise `ValueError` if lanes cannot run a task as `jax.vmap` does."""
    _refuse_effects(task.jaxpr.jaxpr, pauses.points, batcher)
    _refuse_draws_by_batch(program, batcher)


def _as_one_task(task: TracedTask, pauses: PauseChoice) -> ClosedJaxpr:
    return as_one_task(closed_jaxpr(task.jaxpr), pauses.points.is_call)


def _note_if_cheap(task: TracedTask, pauses: PauseChoice) -> None:
    """Record that lanes cost more than they save, for `explain`."""
    if current_entry() is None:
        return
    what, operations = "a call", pauses.operations
    if not pauses.name:
        jaxpr = _as_one_task(task, pauses).jaxpr
        what, operations = "a turn", loop_operations(jaxpr)
    if operations < MIN_OPERATIONS:
        log_note(
            f"{what} has {operations:,.0f} operations, fewer than {MIN_OPERATIONS:,}: "
            "`Vmap()` is likely faster"
        )


def _with_out_axes(
    task: TracedTask, outs: list[Any], is_varying: list[bool]
) -> list[Any]:
    """Add or remove the axis of tasks as `out_axes` says, and restore weak types."""
    results: list[Any] = []
    avals = task.with_values(task.jaxpr.out_avals)
    for out, varies, axis, aval in zip(
        outs, is_varying, task.lane_out_axes, avals, strict=True
    ):
        if axis is None and varies:
            out = out[0]
        if axis is not None and not varies:
            out = jnp.broadcast_to(out, (task.size, *jnp.shape(out)))
        weak = getattr(aval, "weak_type", False)
        results.append(with_weak_type(out) if weak else jnp.asarray(out))
    return results


def _stats(made: int, needed: int) -> LaneStats:
    return LaneStats(jnp.asarray(made, int), jnp.asarray(needed, int))


def _refuse_spmd(call: Call) -> None:
    if call.spmd_axis_name is not None:
        raise ValueError(
            f"Continuous got spmd_axis_name={call.spmd_axis_name!r}, but its lanes run "
            "independently and cannot be spread over a mesh axis. Use "
            "`Sharded(mesh, inner=Continuous(lanes))`, which gives each device lanes "
            "of its own."
        )


def _refuse_effects(jaxpr: Any, points: AbstractPausePoints, batcher: object) -> None:
    """Raise if a task has effects anywhere but in the expensive function."""
    # Where a program runs on all devices, its lanes reach a `shard_map` together.
    spans_devices = not inside_shard_map()
    for eqn, is_expensive, is_sharded in _innermost(jaxpr, points, False, False):
        if is_collective(eqn) and not (is_sharded and spans_devices):
            raise ValueError(
                f"The function uses the collective {eqn.primitive.name!r}, but under "
                f"{batcher} lanes run independently, in another order on every device, "
                "so they never reach it together. Use `Vmap()`, or communicate outside "
                "of the mapped function."
            )
        if eqn.effects and not is_expensive:
            raise ValueError(
                f"The function has a side effect ({eqn.primitive.name}) outside of its "
                f"expensive function. Under {batcher} all lanes execute all code, "
                "inactive ones too, so the effect would happen too often. Move it into "
                "the function marked by `batchkit.expensive`, or use `Vmap()` or "
                "`Chunked`."
            )


def _innermost(
    jaxpr: Any, points: AbstractPausePoints, is_expensive: bool, is_sharded: bool
) -> Iterator[tuple[Any, bool, bool]]:
    """Yield equations, if in the expensive function, and if in a `shard_map`."""
    for eqn in jaxpr.eqns:
        expensive = is_expensive or points.is_call(eqn)
        sharded = is_sharded or eqn.primitive.name == "shard_map"
        inner = list(inner_jaxprs(eqn))
        if not inner:
            yield eqn, expensive, sharded
        for each in inner:
            yield from _innermost(each, points, expensive, sharded)


def _refuse_draws_by_batch(program: TaskProgram, batcher: object) -> None:
    """Raise if lanes draw random bits that depend on the key of another lane."""
    # A key may be the same for all tasks. Under `jax.vmap` it stays one key then, but
    # lanes at different turns of a loop have different keys.
    for instruction in program.instructions():
        primitive = _draws_by_batch(instruction)
        if primitive is not None:
            raise ValueError(
                f"The function draws random numbers by {primitive} in a loop. They are "
                "drawn for a whole batch from the first key of the batch, but under "
                f"{batcher} lanes are at different turns of the loop, so the draws "
                "would not be those of `jax.vmap`. Use threefry keys "
                "(`jax.random.key(seed, impl='threefry2x32')`), or `Vmap()`."
            )


def _draws_by_batch(instruction: Instruction) -> str | None:
    """Return the primitive by which an instruction draws for a whole batch, if any."""
    eqn = instruction.eqn
    if eqn is None:
        return None
    varies = [isinstance(x, Value) and not x.uniform for x in instruction.inputs]
    pairs = list(zip(eqn.invars, varies, strict=True))

    def on_a_lane(*row: Any) -> list[Any]:
        lane = iter(row)
        return evaluate(
            eqn, *(next(lane) if varies else zeros(x.aval) for x, varies in pairs)
        )

    row = [x.aval for x, varies in pairs if varies]
    return batch_dependent_draws([eqn], on_a_lane, row)
