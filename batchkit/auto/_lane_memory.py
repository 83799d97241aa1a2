"""The bytes that XLA allocates for a number of lanes of a task. Nothing runs.

The task is compiled. Arrays that it closes over are arguments of the program, so that
they are allocated once for any number of lanes. XLA assigns buffers before it generates
machine code, so the latter is not optimised.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from .._util._jaxprs import axis_names, equations, inner_jaxprs
from ..batchers._traced_task import TracedTask


# The intermediates of a program are never all live at once. The factor leaves room for
# buffers that are in no jaxpr: workspaces of linear algebra, two copies of a loop's
# carry.
SAFETY_FACTOR: Final = 8


def bytes_of_lanes(task: TracedTask, axis_name: Any, lanes: int) -> int:
    """Measure the bytes of some lanes of a task under `jax.vmap`.

    These are XLA's temporaries, and the rows and results of as many tasks, which are
    temporaries of a loop over chunks.

    **Arguments:**

    - `task`: one task.
    - `axis_name`: the name of the mapped axis, or `None`.
    - `lanes`: the number of lanes.
    """

    def run(closure: list[Any], rows: list[Any]) -> list[Any]:
        return jax.vmap(
            lambda rows: task.run(*rows, closure=closure),
            out_axes=task.lane_out_axes,
            axis_name=axis_name,
            axis_size=lanes,
        )(rows)

    # Shapes instead of arrays: nothing is allocated, and the rows may be tracers.
    rows = [jax.ShapeDtypeStruct((lanes, *x.shape[1:]), x.dtype) for x in task.rows]
    stats = _compiled(task, run, rows, axis_name)
    made = stats.temp_size_in_bytes + stats.output_size_in_bytes
    return made + sum(map(size_of, rows))


def bytes_of_program(task: TracedTask, run: Callable[..., list[Any]]) -> int:
    """Measure XLA's temporaries of `run(closure, rows)` for the rows of all tasks."""
    rows = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in task.rows]
    return _compiled(task, run, rows).temp_size_in_bytes


def bound_of_lane(task: TracedTask) -> int:
    """Bound the bytes of one lane from above, without compiling it.

    Each array in its jaxpr counts, times `SAFETY_FACTOR`.
    """
    made = [x for eqn in equations(task.jaxpr.jaxpr) for x in eqn.outvars]
    row = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in task.rows]
    return SAFETY_FACTOR * (sum(size_of(x.aval) for x in made) + sum(map(size_of, row)))


def largest_arrays(jaxpr: Any, count: int = 3) -> list[str]:
    """List the largest arrays in a jaxpr, each with the operation that computes it."""
    made: dict[str, int] = {}
    for eqn in _leaf_equations(jaxpr):
        for x in eqn.outvars:
            text = f"{x.aval.str_short()} of {eqn.primitive.name}"
            made[text] = size_of(x.aval)
    return sorted(made, key=lambda text: -made[text])[:count]


def size_of(x: Any) -> int:
    """Return the bytes of an array with the shape and dtype of `x`."""
    if not hasattr(x, "shape") or x.dtype == jax.dtypes.float0:
        return 0
    return math.prod(x.shape) * x.dtype.itemsize


def _compiled(
    task: TracedTask, run: Callable[..., Any], rows: Sequence[Any], own: Any = None
) -> Any:
    closure = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in task.jaxpr.consts]
    # The program is compiled outside of the current trace, so bind again the outer axes
    # that the task uses by name.
    for name in sorted(axis_names(task.jaxpr.jaxpr) - {own}, key=str):
        size = jax.lax.axis_size(name)
        run = jax.vmap(run, in_axes=None, axis_name=name, axis_size=size)
    lowered = jax.jit(run).lower(closure, list(rows))
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


def _leaf_equations(jaxpr: Any) -> Iterator[Any]:
    """Iterate over the equations that have no jaxpr inside them."""
    for eqn in jaxpr.eqns:
        inner = list(inner_jaxprs(eqn))
        for each in inner:
            yield from _leaf_equations(each)
        if not inner:
            yield eqn
