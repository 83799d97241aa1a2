"""The bytes that XLA allocates for a number of lanes of a task. Nothing runs.

The task is compiled. Arrays that it closes over are arguments of the program, so that
they are allocated once for any number of lanes. XLA assigns buffers before it generates
machine code, so the latter is not optimised.
"""

from typing import Any, Final

import jax
import jax.numpy as jnp

from .._util._jaxprs import axis_names, equations, inner_jaxprs
from ..batchers import AbstractBatcher, Vmap
from ..batchers._call import TracedTask, size_of


# The intermediates of a program are never all live at once. The factor leaves room for
# buffers that are in no jaxpr: workspaces of linear algebra, two copies of a loop's
# carry.
SAFETY_FACTOR: Final = 8


def bytes_of_lanes(task: TracedTask, axis_name: Any, lanes: int) -> int:
    """Measure the bytes of some lanes of a task under `jax.vmap`.

    These are XLA's temporaries, and the rows and results of as many tasks, which are
    temporaries of a loop over chunks.
    """
    stats = _compiled(task, Vmap(), lanes, axis_name)
    made = stats.temp_size_in_bytes + stats.output_size_in_bytes
    return made + sum(map(size_of, task.row_types(lanes)))


def bytes_of_batcher(task: TracedTask, batcher: AbstractBatcher) -> int:
    """Measure XLA's temporaries of all tasks as a batcher runs them."""
    return _compiled(task, batcher, task.size).temp_size_in_bytes


def bound_of_lane(task: TracedTask) -> int:
    """Bound the bytes of one lane from above, without compiling it.

    Each array in its jaxpr counts, times `SAFETY_FACTOR`.
    """
    made = [x.aval for eqn in equations(task.jaxpr.jaxpr) for x in eqn.outvars]
    return SAFETY_FACTOR * sum(map(size_of, [*made, *task.row_types()]))


def largest_arrays(jaxpr: Any, count: int = 3) -> list[str]:
    """List the largest arrays in a jaxpr, each with the operation that computes it."""
    made = {
        f"{x.aval.str_short()} of {eqn.primitive.name}": size_of(x.aval)
        for eqn in equations(jaxpr)
        if not any(inner_jaxprs(eqn))  # a call returns what an equation inside makes
        for x in eqn.outvars
    }
    return sorted(made, key=lambda text: -made[text])[:count]


def _compiled(
    task: TracedTask, batcher: AbstractBatcher, tasks: int, axis_name: Any = None
) -> Any:
    """Compile a number of tasks, and return XLA's figures of the memory."""

    def run(closure: list[Any], rows: list[Any]) -> list[Any]:
        return task.run_rows(batcher, rows, tasks, closure, axis_name)

    # The program is compiled outside of the current trace, so bind again the outer axes
    # that the task uses by name.
    for name in sorted(axis_names(task.jaxpr.jaxpr) - {axis_name}, key=str):
        size = jax.lax.axis_size(name)
        run = jax.vmap(run, in_axes=None, axis_name=name, axis_size=size)
    # Shapes instead of arrays: nothing is allocated, and the rows may be tracers.
    closure = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in task.closure]
    lowered = jax.jit(run).lower(closure, task.row_types(tasks))
    stats = lowered.compile(fast_compile_options()).memory_analysis()
    if stats is None:
        raise NotImplementedError(
            "Auto needs the memory that XLA allocates, and XLA does not report it on "
            f"{jax.default_backend()!r}. Use `Chunked(size)`."
        )
    return stats


def fast_compile_options() -> dict[str, Any]:
    """Return options of `compile` for a program that will not run.

    On CPU code generation is not optimised: the buffers are the same, which the tests
    check. On other platforms this is untested, so the options are empty.
    """
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": 0} if on_cpu else {}
