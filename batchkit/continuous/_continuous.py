"""The batcher whose lanes never wait for the slowest."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar, cast, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .._util._formats import format_type, format_value
from ..batchers import AbstractBatcher, Vmap
from ..batchers._call import Call, mapped_function
from ..batchers._chunked import balanced_chunks, run_in_chunks
from ..batchers._marks import in_task
from ..batchers._trace_log import log_note, log_split, profiler_paused
from ..batchers._traced_task import TracedTask
from ._derivative import Compute, with_derivative
from ._equations import with_weak_type
from ._machine import Machine
from ._plan import Plan, plan_of
from ._refusals import refuse_draws_by_batch, refuse_effects


_P = ParamSpec("_P")
_T = TypeVar("_T")

# An expensive function with fewer operations than this is not expensive: it pays to
# hold up to one lane in eight, so that the code around it runs for several at once.
_CHEAP = 10_000


@final
class LaneStats(NamedTuple):
    """How busy the lanes of one call were.

    An evaluation is one lane's call of the expensive function. Where no function is
    marked, it is one lane's part in a turn that all lanes make together, and needed if
    the lane has a task.

    - `made`: evaluations made, an int: lanes times the calls that they made together.
    - `needed`: evaluations that some task asked for, an int.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    stats = bk.LaneStats(made=jnp.array(40), needed=jnp.array(30))
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
    """A number of lanes that are kept busy: a lane that is done takes the next task.

    Under `jax.vmap` a `while_loop` turns until its slowest lane is done, and every lane
    pays for it. Here a task pauses whenever it calls the expensive function; all lanes
    make that call together, whatever else each of them is at, and no task waits for
    another to end. Every result lands at its own index, whenever it is ready.

    Which function is expensive is told by `batchkit.expensive`; in a rebuilt sampler it
    is found among your functions. Where no function is marked, tasks pause at the turns
    of their loops; a task without a loop or branch that one lane takes and another does
    not runs as under `Chunked(lanes)`. `batchkit.explain` tells which it is.

    Compile it: called outside of `jax.jit` it is as slow as any loop of JAX. What is
    remembered per lane are the values that live across a pause; what the function
    closes over is not copied. Inside a task of another `Continuous` it acts as
    `Vmap()`. Reverse-mode differentiation through it is refused, also side effects
    outside of the expensive function and collectives; gradients inside a task are fine,
    and so is forward mode through the batcher.

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
    expensive: str | None = eqx.field(static=True)

    uses_expensive_marks: ClassVar[bool] = True

    def __init__(self, lanes: int, expensive: str | None = None) -> None:
        """**Arguments:**

        - `lanes`: how many tasks are under way at once; at least 1. Several tasks for
            each lane keep them busy to the end.
        - `expensive`: the name of the function whose calls lanes make together, if
            several are marked: the function's own name, or in a rebuilt sampler the
            name of the argument, such as `"loglikelihood_fn"`. A second function of the
            same name has `#2` after it. By default the one with the most floating-point
            operations, as XLA counts them.

        **Raises:**

        `TypeError` if `lanes` is no int or `expensive` no string, `ValueError` if
        `lanes` is below 1.
        """
        self.lanes = lanes
        self.expensive = expensive

    def __check_init__(self) -> None:
        if isinstance(self.lanes, bool) or not isinstance(self.lanes, int):
            raise TypeError(
                f"Continuous(lanes={format_value(self.lanes)}): lanes must be an int, "
                f"the number of tasks under way at once; got {format_type(self.lanes)}."
            )
        if self.lanes < 1:
            raise ValueError(
                f"Continuous(lanes={self.lanes}): lanes must be at least 1, the number "
                "of tasks under way at once. For one at a time without a batch "
                "dimension use `Sequential()`."
            )
        if self.expensive is not None and not isinstance(self.expensive, str):
            raise TypeError(
                f"Continuous(expensive={self.expensive!r}): expensive must be the name "
                "of a marked function, a string, or None to take the costliest; got "
                f"{type(self.expensive).__name__}. To mark a function use "
                "`batchkit.expensive(fun)`."
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
        """The same as calling the batcher, but with how busy the lanes were.

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

        A function that returns a pair: what the batched function returns, and a
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
        with profiler_paused():
            return self._compute(task, lanes, count)

    def _compute(
        self, task: TracedTask, lanes: int, count: bool
    ) -> tuple[PyTree, LaneStats]:
        plan = plan_of(task, self.expensive)
        program = plan.program
        if not program.branches:
            log_note("every task takes the same way, so run as Chunked")
            out = run_in_chunks(task, self.lanes, Vmap())
            calls = sum(pause.times for pause in program.pauses())
            chunks, in_each = balanced_chunks(task.size, self.lanes)
            return out, _stats(chunks * in_each * calls, task.size * calls)
        refuse_effects(task.jaxpr.jaxpr, plan.pauses, self)
        refuse_draws_by_batch(program, self)
        log_split(task.size, 1, 1, lanes, "lane")

        def prepare(each: TracedTask) -> Compute:
            if each is not task:
                return _on_lanes(each, plan_of(each, self.expensive), lanes, count)[0]
            compute, machine = _on_lanes(task, plan, lanes, count)
            log_note(f"{plan.note}; {machine.bytes_per_lane} B remembered per lane")
            return compute

        outs, counts = with_derivative(prepare, task)
        return task.finish(outs), LaneStats(*counts)


def _refuse_spmd(call: Call) -> None:
    if call.spmd_axis_name is not None:
        raise ValueError(
            f"Continuous got spmd_axis_name={call.spmd_axis_name!r}, but its lanes go "
            "their own ways and cannot be spread over a mesh axis. Use "
            "`Sharded(mesh, inner=Continuous(lanes))`: each device has lanes of its "
            "own then."
        )


def _on_lanes(
    task: TracedTask, plan: Plan, lanes: int, count: bool
) -> tuple[Compute, Machine]:
    """Lays out a task on lanes."""
    machine = Machine(plan.program, lanes, task.size, plan.operations < _CHEAP)
    constants = [id(x) for x in task.closure]

    def compute(rows: list[Any], closure: list[Any]) -> tuple[list[Any], Any]:
        given = dict(zip(constants, closure, strict=True))
        outs, counts = machine.run(rows, given, count)
        return _placed(task, outs, machine.differs), counts

    return compute, machine


def _placed(task: TracedTask, outs: list[Any], differs: list[bool]) -> list[Any]:
    """Outputs with the tasks in front, or without where none are wanted."""
    placed: list[Any] = []
    avals = task.with_values(task.jaxpr.out_avals)
    for out, differ, axis, aval in zip(
        outs, differs, task.lane_out_axes, avals, strict=True
    ):
        if axis is None and differ:
            out = out[0]
        if axis is not None and not differ:
            out = jnp.broadcast_to(out, (task.size, *jnp.shape(out)))
        weak = getattr(aval, "weak_type", False)
        placed.append(with_weak_type(out) if weak else jnp.asarray(out))
    return placed


def _stats(made: int, needed: int) -> LaneStats:
    return LaneStats(jnp.asarray(made, int), jnp.asarray(needed, int))
