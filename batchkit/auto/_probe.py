"""Compiling a task for a number of lanes, to see what XLA would allocate. Nothing runs.

What is closed over enters as arguments, so it is there once however many lanes there
are. XLA assigns buffers before it generates machine code, so little is spent on the
latter.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from ..batchers._jaxprs import equations, inner_jaxprs
from ..batchers._task import Task


# The intermediates of a program are never all alive at once. The factor leaves room for
# what is in no jaxpr: workspaces of linear algebra, two copies of the state of a loop.
ROOM: Final = 8


def bytes_of_lanes(task: Task, axis_name: Any, lanes: int) -> int:
    """What so many lanes of a task hold at once under `jax.vmap`.

    Counted are XLA's temporaries, and the rows and results of as many tasks, which are
    temporaries of a loop over chunks.

    **Arguments:**

    - `task`: one task.
    - `axis_name`: the name of the mapped axis, or `None`.
    - `lanes`: how many.
    """

    def run(closure: list[Any], rows: list[Any]) -> list[Any]:
        return jax.vmap(
            lambda rows: task.run(*rows, closure=closure),
            out_axes=task.lane_out_axes,
            axis_name=axis_name,
            axis_size=lanes,
        )(rows)

    rows = [jax.ShapeDtypeStruct((lanes, *x.shape[1:]), x.dtype) for x in task.rows]
    stats = _compiled(task, run, rows, axis_name)
    made = stats.temp_size_in_bytes + stats.output_size_in_bytes
    return made + sum(map(size_of, rows))


def bytes_of_program(task: Task, run: Callable[..., list[Any]]) -> int:
    """XLA's temporaries of `run(closure, rows)` for the rows of all tasks."""
    rows = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in task.rows]
    return _compiled(task, run, rows).temp_size_in_bytes


def bound_of_lane(task: Task) -> int:
    """Bytes that one lane surely does not exceed, from the sizes in its jaxpr alone."""
    made = [x for eqn in equations(task.jaxpr.jaxpr) for x in eqn.outvars]
    mine = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in task.rows]
    return ROOM * (sum(size_of(x.aval) for x in made) + sum(map(size_of, mine)))


def largest_arrays(jaxpr: Any, count: int = 3) -> list[str]:
    """The largest arrays that a jaxpr computes, each with the operation that does."""
    made: dict[str, int] = {}
    for eqn in _innermost_equations(jaxpr):
        for x in eqn.outvars:
            text = f"{x.aval.str_short()} of {eqn.primitive.name}"
            made[text] = size_of(x.aval)
    return sorted(made, key=lambda text: -made[text])[:count]


def size_of(x: Any) -> int:
    """The bytes of an array with this shape and type."""
    if not hasattr(x, "shape") or x.dtype == jax.dtypes.float0:
        return 0
    return math.prod(x.shape) * x.dtype.itemsize


def _compiled(
    task: Task, run: Callable[..., Any], rows: Sequence[Any], own: Any = None
) -> Any:
    closure = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in task.jaxpr.consts]
    for name, size in _axes_around(task, own):
        run = jax.vmap(run, in_axes=None, axis_name=name, axis_size=size)
    lowered = jax.jit(run).lower(closure, list(rows))
    stats = lowered.compile(quick_options()).memory_analysis()
    if stats is None:
        raise NotImplementedError(
            "Auto needs to know what XLA would allocate, and XLA does not tell on "
            f"{jax.default_backend()!r}. Use `Chunked(size)`."
        )
    return stats


def quick_options() -> dict[str, Any]:
    """For `compile`: machine code that nobody will run need not be fast.

    On CPU the buffers are the same, which the tests check; elsewhere nobody has looked.
    """
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": 0} if on_cpu else {}


def _axes_around(task: Task, own: Any) -> Iterator[tuple[Any, int]]:
    """The axes around a task that it uses by their names, with their sizes."""
    names = {getattr(effect, "name", None) for effect in task.jaxpr.effects}
    for eqn in equations(task.jaxpr.jaxpr):
        used = eqn.params.get("axis_name")
        names.update(used if isinstance(used, tuple) else (used,))
    for name in sorted(names - {None, own}, key=str):
        yield name, jax.lax.axis_size(name)


def _innermost_equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        inner = list(inner_jaxprs(eqn))
        for each in inner:
            yield from _innermost_equations(each)
        if not inner:
            yield eqn
