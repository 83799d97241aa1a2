"""Forward mode of a batch: the batch of the derivative of one task.

JAX could differentiate the loop over lanes itself, but would see tangents where there
are none: values of several places share a buffer, and one evaluation serves calls with
and without a tangent. A `jax.custom_vjp`, which has no forward mode, then fails on
values that are not differentiated; and functions that were inlined have lost their
derivative rules. So the derivative of the task is traced, with exactly the tangents
that `jax.vmap` would propagate, and laid out on lanes like any other task.

The loop cannot be differentiated in reverse mode. Tangents pass a primitive that says
so: JAX's `linear_call`, which could also refuse to be transposed, cannot be mapped.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.interpreters import ad, batching, mlir

from ..batchers._traced_task import TracedTask
from ._equations import is_literal


# From the rows and what is closed over to the outputs of all tasks, and the counts.
Compute: TypeAlias = Callable[[list[Any], list[Any]], tuple[list[Any], Any]]


def with_derivative(
    prepare: Callable[[TracedTask], Compute], task: TracedTask
) -> tuple[list[Any], Any]:
    """Computes a task, and its derivative where that is asked for.

    **Arguments:**

    - `prepare`: lays out a task.
    - `task`: the task.

    **Returns:**

    The outputs of all tasks, and the counts.
    """
    compute = prepare(task)
    if any(isinstance(x, jax.Ref) for x in task.closure):
        return compute(task.rows, task.closure)  # `custom_jvp` takes no mutable array

    # What is closed over is an argument: the rule may run when its tracers are gone.
    @jax.custom_jvp
    def batch(rows: list[Any], closure: list[Any]) -> tuple[list[Any], Any]:
        return compute(rows, closure)

    def rule(primals: Any, tangents: Any) -> Any:
        rows, closure = primals
        jaxpr = jex.core.ClosedJaxpr(task.jaxpr.jaxpr, closure)
        applied = dataclasses.replace(task, rows=rows, jaxpr=jaxpr)
        derivative, places = _derivative(applied, *tangents)
        # The outputs come from a loop without tangents: `jax.linearize` evaluates what
        # no tangent reaches, and in the other loop they share buffers with tangents.
        outs, counts = batch(rows, closure)
        found, _ = with_derivative(prepare, derivative)
        moved = [
            _no_tangent(out) if place is None else _forward_only.bind(found[place])
            for out, place in zip(outs, places, strict=True)
        ]
        return (outs, counts), (moved, jax.tree.map(_no_tangent, counts))

    batch.defjvp(rule, symbolic_zeros=True)
    return batch(task.rows, task.closure)


def _derivative(
    task: TracedTask, row_tangents: Sequence[Any], closure_tangents: Sequence[Any]
) -> tuple[TracedTask, list[int | None]]:
    """A task that also returns tangents, and where the one of each output is."""
    moved_rows = [i for i, t in enumerate(row_tangents) if _is_moved(t)]
    moved_closure = [i for i, t in enumerate(closure_tangents) if _is_moved(t)]
    directions = [closure_tangents[i] for i in moved_closure]

    def one_task(row: list[Any], tangents: list[Any]) -> Any:
        def run(values: list[Any], constants: list[Any]) -> list[Any]:
            full_row, closure = list(row), task.closure
            for i, x in zip(moved_rows, values, strict=True):
                full_row[i] = x
            for i, x in zip(moved_closure, constants, strict=True):
                closure[i] = x
            return task.run(*full_row, closure=closure)

        values = [row[i] for i in moved_rows]
        constants = [task.closure[i] for i in moved_closure]
        outs, moved = jax.jvp(run, (values, constants), (tangents, directions))
        return outs, [t for t in moved if t.dtype != jax.dtypes.float0]

    tangents = [row_tangents[i] for i in moved_rows]
    rows = [*task.rows, *tangents]
    row = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in rows]
    count = len(task.rows)
    jaxpr = jax.make_jaxpr(one_task)(row[:count], row[count:])
    is_mapped = task.with_values(task.is_mapped)
    inexact = [
        i
        for i, x in enumerate(jaxpr.out_avals[: len(is_mapped)])
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    derivative = TracedTask(
        jaxpr=jaxpr,
        rows=rows,
        size=task.size,
        out_tree=jax.tree.structure(list(jaxpr.out_avals)),
        out_axes=None,
        is_mapped=[*is_mapped, *(is_mapped[i] for i in inexact)],
    )
    follows = _follows(jaxpr, jaxpr.jaxpr.invars[count:], directions)
    place_of = {i: len(is_mapped) + n for n, i in enumerate(inexact)}
    places = [place_of.get(i) for i in range(len(is_mapped))]
    return derivative, [
        place if place is not None and follows[place] else None for place in places
    ]


def _follows(jaxpr: Any, inputs: Sequence[Any], consts: Sequence[Any]) -> list[bool]:
    """Which outputs follow from some inputs or constants; other tangents are zero."""
    ids = {id(x) for x in consts}
    pairs = zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
    reached = {*inputs, *(var for var, x in pairs if id(x) in ids)}
    for eqn in jaxpr.jaxpr.eqns:
        if any(x in reached for x in eqn.invars if not is_literal(x)):
            reached.update(eqn.outvars)
    return [not is_literal(x) and x in reached for x in jaxpr.jaxpr.outvars]


def _is_moved(tangent: Any) -> bool:
    return not (isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0)


def _no_tangent(x: Any) -> Any:
    return zero_from_primal(x, symbolic_zeros=True)


def _refuse(*_: Any) -> NoReturn:
    raise ValueError(
        "Reverse-mode differentiation through Continuous is not possible: its lanes "
        "run in a loop whose length depends on the values, and the way there is not "
        "stored. Use `Vmap()`, `Chunked` or `Sequential()` where you take a gradient "
        "of the whole batch (of tasks whose own loops allow it), or forward mode "
        "(`jax.jvp`, `jax.jacfwd`). Gradients inside a task are fine."
    )


_forward_only = jex.core.Primitive("batchkit_forward_only")
_forward_only.def_impl(lambda x: x)
_forward_only.def_abstract_eval(lambda x: x)
ad.deflinear2(_forward_only, _refuse)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, lambda _, x: [x])
