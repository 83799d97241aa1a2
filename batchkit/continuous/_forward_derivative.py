"""Forward derivative of a batch: the batch of the forward derivative of one task.

JAX could differentiate the loop over lanes itself, but would propagate tangents where
there are none: values share slots, and one evaluation serves calls with and without a
tangent. A `jax.custom_vjp`, which has no forward mode, would then fail on values that
are not differentiated; and inlined functions have lost their derivative rules. So the
derivative of the task is traced, with exactly the tangents that `jax.vmap` would
propagate, and compiled for lanes like any other task.

The loop cannot be differentiated in reverse mode. Tangents pass through a primitive
that raises when it is transposed: JAX's `linear_call`, which could do so as well,
cannot be mapped by `jax.vmap`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.interpreters import ad, batching, mlir

from ..batchers._call import TracedTask
from ._equations import interpret


# From the rows and the closed-over arrays to the outputs of all tasks, and the counts.
ComputeTasks: TypeAlias = Callable[[list[Any], list[Any]], tuple[list[Any], Any]]


def with_derivative(
    lay_out: Callable[[TracedTask], ComputeTasks], task: TracedTask
) -> tuple[list[Any], Any]:
    """Compute all tasks by a function with a forward derivative."""
    compute = lay_out(task)
    if any(isinstance(x, jax.Ref) for x in task.closure):
        return compute(task.rows, task.closure)  # `custom_jvp` takes no mutable array

    # Closed-over arrays are arguments: when JAX runs the rule, the trace in which they
    # are tracers may have ended.
    @jax.custom_jvp
    def batch(rows: list[Any], closure: list[Any]) -> tuple[list[Any], Any]:
        return compute(rows, closure)

    def rule(primals: Any, tangents: Any) -> Any:
        rows, closure = primals
        jaxpr = jex.core.ClosedJaxpr(task.jaxpr.jaxpr, closure)
        applied = dataclasses.replace(task, rows=rows, jaxpr=jaxpr)
        derivative, places = _derivative(applied, *tangents)
        # The outputs come from a loop of their own, without tangents: `jax.linearize`
        # evaluates at once what no tangent reaches, but in the loop with tangents every
        # slot counts as reached.
        outs, counts = batch(rows, closure)
        found, _ = with_derivative(lay_out, derivative)
        out_tangents = [
            _no_tangent(out) if place is None else _forward_only.bind(found[place])
            for out, place in zip(outs, places, strict=True)
        ]
        return (outs, counts), (out_tangents, jax.tree.map(_no_tangent, counts))

    batch.defjvp(rule, symbolic_zeros=True)
    return batch(task.rows, task.closure)


def _derivative(
    task: TracedTask, row_tangents: Sequence[Any], closure_tangents: Sequence[Any]
) -> tuple[TracedTask, list[int | None]]:
    """Return a task that also returns tangents, and the place of each output's one."""
    active_rows = [i for i, t in enumerate(row_tangents) if _is_active(t)]
    active_closure = [i for i, t in enumerate(closure_tangents) if _is_active(t)]
    directions = [closure_tangents[i] for i in active_closure]

    def one_task(row: list[Any], tangents: list[Any]) -> Any:
        def run(values: list[Any], constants: list[Any]) -> list[Any]:
            full_row, closure = list(row), task.closure
            for i, x in zip(active_rows, values, strict=True):
                full_row[i] = x
            for i, x in zip(active_closure, constants, strict=True):
                closure[i] = x
            return task.run(*full_row, closure=closure)

        values = [row[i] for i in active_rows]
        constants = [task.closure[i] for i in active_closure]
        outs, out_tangents = jax.jvp(run, (values, constants), (tangents, directions))
        return outs, [t for t in out_tangents if t.dtype != jax.dtypes.float0]

    tangents = [row_tangents[i] for i in active_rows]
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
    reached = _is_reached(jaxpr, jaxpr.jaxpr.invars[count:], directions)
    place_of = {i: len(is_mapped) + n for n, i in enumerate(inexact)}
    places = [place_of.get(i) for i in range(len(is_mapped))]
    # An output that no tangent reaches has none.
    return derivative, [
        place if place is not None and reached[place] else None for place in places
    ]


def _is_reached(jaxpr: Any, inputs: Sequence[Any], consts: Sequence[Any]) -> list[bool]:
    """Return which outputs depend on some inputs or constants."""
    ids = {id(x) for x in consts}
    return interpret(
        jaxpr.jaxpr,
        [id(x) in ids for x in jaxpr.consts],
        [x in inputs for x in jaxpr.jaxpr.invars],
        lambda _: False,
        lambda eqn, reached: [any(reached)] * len(eqn.outvars),
    )


def _is_active(tangent: Any) -> bool:
    return not (isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0)


def _no_tangent(x: Any) -> Any:
    return zero_from_primal(x, symbolic_zeros=True)


def _refuse(*_: Any) -> NoReturn:
    raise ValueError(
        "Reverse-mode differentiation through Continuous is not possible: its lanes "
        "run in a loop whose length depends on the values, and intermediate values are "
        "not stored. Use `Vmap()`, `Chunked` or `Sequential()` where you take a "
        "gradient of the whole batch (of tasks whose own loops allow it), or forward "
        "mode (`jax.jvp`, `jax.jacfwd`). Gradients inside a task are fine."
    )


_forward_only = jex.core.Primitive("batchkit_forward_only")
_forward_only.def_impl(lambda x: x)
_forward_only.def_abstract_eval(lambda x: x)
ad.deflinear2(_forward_only, _refuse)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, lambda _, x: [x])
