"""One task as a jaxpr, and the checks whether tasks may be split from each other.

The jaxpr is evaluated in place of the user's function, so that function is traced
exactly once, and the arrays that it closes over are known.

A layout that splits the tasks must know whether they communicate, whether their random
numbers depend on the batch, and whether an output is equal for all of them. The checks
call `jax.vmap` on the jaxpr by abstract evaluation, rather than imitate its rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import jax.extend as jex
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree

from .._util._jaxprs import (
    axis_names,
    equations,
    inner_equations,
    inner_jaxprs,
    zeros,
)


# Under `jax.vmap` the rbg generators draw one block for the whole batch, from its first
# key; with "unsafe_rbg" ("urbg") so do `split` and `fold_in`.
# https://docs.jax.dev/en/latest/jax.random.html#more-prng-implementations
_BATCH_DEPENDENT = {
    "key<rbg>": {"random_bits"},
    "key<urbg>": {"random_bits", "random_split", "random_fold_in"},
}

# Primitives that only move data: under `jax.vmap` they take hardly any time, and no
# memory besides their result.
_MOVES_DATA: Final = frozenset(
    {
        "bitcast_convert_type",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "dynamic_slice",
        "dynamic_update_slice",
        "expand_dims",
        "gather",
        "iota",
        "pad",
        "random_unwrap",
        "random_wrap",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
    }
)
_CALLS: Final = frozenset({"closed_call", "core_call", "jit", "pjit"})


@final
@dataclass(frozen=True)
class TracedTask:
    """The jaxpr of one task, the rows of all tasks, and the axes of the outputs."""

    jaxpr: jex.core.ClosedJaxpr
    rows: list[Array]  # mapped leaves, mapped axis in front
    size: int
    out_tree: Any  # a PyTreeDef
    out_axes: PyTree  # a prefix of it, as `jax.vmap` takes them
    is_mapped: list[bool]  # for each output leaf, if it has one value per task
    sum_match: bool = False  # mapped outputs with `out_axes=None` are summed

    @property
    def closure(self) -> list[Any]:
        """The arrays that the function closes over; they are the same for all tasks."""
        return list(self.jaxpr.consts)

    @property
    def lane_out_axes(self) -> list[int | None]:
        """`out_axes` of `run` under a batcher: 0 for mapped outputs, else `None`."""
        return self.with_values(self._leaf_axes)

    @property
    def only_moves_data(self) -> bool:
        """True if every equation only copies or rearranges its inputs."""
        return _moves_data(self.jaxpr.jaxpr)

    def run(self, *row: Any, closure: Sequence[Any] | None = None) -> list[Any]:
        """Compute the output leaves of one task from its row of the mapped leaves."""
        jaxpr = self.jaxpr
        if closure is not None:
            jaxpr = jex.core.ClosedJaxpr(jaxpr.jaxpr, list(closure))
        outs = jex.core.jaxpr_as_fun(jaxpr)(*row)
        return self.with_values(outs)

    def with_values(self, outs: Sequence[Any]) -> list[Any]:
        """Drop the items of float0 outputs, which have no values to compute."""
        return [out for out, keep in zip(outs, self._has_values, strict=True) if keep]

    def finish(self, outs: Sequence[Any]) -> PyTree:
        """Arrange the outputs of all tasks as the caller's `out_axes` demand.

        **Arguments:**

        - `outs`: the leaves of `run`, with the mapped axis in front where
            `lane_out_axes` is 0.
        """
        remaining = iter(outs)
        leaves = [
            next(remaining)
            if keep
            else np.zeros((*[self.size] * is_mapped, *aval.shape), jax.dtypes.float0)
            for aval, is_mapped, keep in zip(
                self.jaxpr.out_avals, self.is_mapped, self._has_values, strict=True
            )
        ]

        # `jax.vmap` moves the axes, since a type such as a sparse array may have rules
        # of its own. It also makes the sums of `sum_match`.
        def result(leaves: list[Any]) -> PyTree:
            return jax.tree.unflatten(self.out_tree, leaves)

        mapped = jax.vmap(
            result,
            (self._leaf_axes,),
            self.out_axes,
            axis_size=self.size,
            sum_match=self.sum_match,
        )
        return mapped(leaves)

    @property
    def _leaf_axes(self) -> list[int | None]:
        return [0 if is_mapped else None for is_mapped in self.is_mapped]

    @property
    def _has_values(self) -> list[bool]:
        return [aval.dtype != jax.dtypes.float0 for aval in self.jaxpr.out_avals]


def _moves_data(jaxpr: Any) -> bool:
    return all(
        eqn.primitive.name in _MOVES_DATA
        or (eqn.primitive.name in _CALLS and all(map(_moves_data, inner_jaxprs(eqn))))
        for eqn in jaxpr.eqns
    )


def refuse_collectives(task: TracedTask, axis_name: Any, batcher: object) -> None:
    """Raise `ValueError` if the task communicates over `axis_name`."""
    if axis_name is not None and axis_name in axis_names(task.jaxpr.jaxpr):
        raise ValueError(
            f"The function uses a collective or `axis_index` over "
            f"axis_name={axis_name!r}, but {batcher} does not run its {task.size} "
            "tasks together, so they cannot communicate. Use `Vmap()` (or a chunk "
            "size of at least the number of tasks), or pass the values that the tasks "
            "need from each other as an argument, for example `jnp.arange(n)` for "
            "`axis_index`."
        )


def refuse_batch_dependent_draws(task: TracedTask, batcher: object) -> None:
    """Raise `ValueError` if a task's random bits depend on the tasks beside it."""
    if task.size <= 1:
        return
    row = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in task.rows]
    generator = batch_dependent_draws(task.jaxpr.jaxpr.eqns, task.run, row)
    if generator is not None:
        raise ValueError(
            f"The function draws random numbers by {generator}, and the draws differ "
            "between tasks. `jax.vmap` draws the bits of a whole batch from the first "
            f"key of the batch, so under {batcher} they would not be those of "
            "`jax.vmap`. Use threefry keys "
            "(`jax.random.key(seed, impl='threefry2x32')`), or `Vmap()`."
        )


def batch_dependent_draws(
    eqns: Sequence[Any], run: Callable[..., Any], row: Sequence[Any]
) -> str | None:
    """Name the random generator whose draws under `jax.vmap` depend on the batch.

    **Arguments:**

    - `eqns`: the equations of the function.
    - `run`: the function itself.
    - `row`: the types of its arguments for one index, all of them mapped.

    **Returns:**

    The generator as text for a message, or `None` if there is none.
    """
    every = [x for eqn in eqns for x in (eqn, *inner_equations(eqn))]
    if not any(map(_batch_dependent_generator, every)):
        return None
    # A draw depends on the batch if `jax.vmap` batches it. To recognise batched
    # variables, choose a batch size that is larger than every size in the program.
    shapes = [
        x.aval.shape
        for eqn in every
        for x in (*eqn.invars, *eqn.outvars)
        if hasattr(x.aval, "shape")
    ]
    size = 1 + max((length for shape in shapes for length in shape), default=0)
    rows = [jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in row]
    try:
        batched = jax.make_jaxpr(jax.vmap(run, axis_size=size))(*rows)
    except (NotImplementedError, ValueError):
        return None  # jax.vmap cannot run it, so there are no draws to differ from
    for eqn in equations(batched.jaxpr):
        variables = (*eqn.invars, *eqn.outvars)
        generator = _batch_dependent_generator(eqn)
        if generator and any(size in x.aval.shape for x in variables):
            return generator
    return None


def mapped_ref_error(batcher: object) -> ValueError:
    """Make the error for a batcher that would split a mapped mutable array."""
    return ValueError(
        "A mapped argument is a mutable array (`jax.Ref`), which cannot be cut into "
        f"chunks, but {batcher} does not run its tasks together. Pass its values, "
        "`ref[...]`, and return the values to be written; or use `Vmap()`."
    )


def refuse_varying_outputs(task: TracedTask, axis_name: Any) -> None:
    """Raise `jax.vmap`'s error if an `out_axes=None` output varies over the tasks."""
    unmapped = [not is_mapped for is_mapped in task.is_mapped]
    if not _depend_on_rows(task, unmapped):
        return

    def outputs(*row: Any) -> PyTree:
        outs = jex.core.jaxpr_as_fun(task.jaxpr)(*row)
        leaves = [
            out if needed else zeros(aval)
            for out, needed, aval in zip(
                outs, unmapped, task.jaxpr.out_avals, strict=True
            )
        ]
        return jax.tree.unflatten(task.out_tree, leaves)

    try:
        _eval_shape_of_vmap(outputs, task, task.out_axes, axis_name)
    except ValueError as error:
        error.add_note(
            "An output with out_axes=None must not depend on a mapped argument; give "
            "it an axis and reduce over it afterwards, or pass sum_match=True for a "
            "sum."
        )
        raise


def varying_outputs(task: TracedTask, axis_name: Any) -> list[bool]:
    """Find the output leaves that `jax.vmap` batches, so that `sum_match` sums them.

    The dependencies between equations are not enough: they would also sum an output of
    a loop that does not vary. The rule of a `custom_vmap` gets `jax.vmap`'s own answer.
    """
    batched = [False] * len(task.is_mapped)
    if not _depend_on_rows(task, [True] * len(batched)):
        return batched

    @custom_vmap
    def observe(outs: list[Any]) -> list[Any]:
        return outs

    @observe.def_vmap
    def _(axis_size: int, in_batched: Any, outs: list[Any]) -> tuple[Any, Any]:
        batched[:] = in_batched[0]
        return outs, in_batched[0]

    def outputs(*row: Any) -> list[Any]:
        return observe(jex.core.jaxpr_as_fun(task.jaxpr)(*row))

    _eval_shape_of_vmap(outputs, task, 0, axis_name)
    return batched


def _eval_shape_of_vmap(
    fun: Callable[..., Any], task: TracedTask, out_axes: Any, axis_name: Any
) -> None:
    """Map `fun` over the rows of a task by abstract evaluation."""
    rows = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in task.rows]
    mapped = jax.vmap(fun, 0, out_axes, axis_name=axis_name, axis_size=task.size)
    jax.eval_shape(mapped, *rows)


def _depend_on_rows(task: TracedTask, outputs: list[bool]) -> bool:
    """Return True if one of the selected outputs depends on a mapped argument."""
    jaxpr = task.jaxpr.jaxpr
    needed = {
        x
        for x, selected in zip(jaxpr.outvars, outputs, strict=True)
        if selected and not isinstance(x, jex.core.Literal)
    }
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(x for x in eqn.invars if not isinstance(x, jex.core.Literal))
    return bool(needed.intersection(jaxpr.invars))


def _batch_dependent_generator(eqn: Any) -> str | None:
    """Name the generator that an equation draws by, if its draws depend on the batch.

    **Returns:**

    The generator as text for a message, or `None`.
    """
    if eqn.primitive.name == "rng_bit_generator":
        return "rng_bit_generator"
    for x in eqn.invars:
        key_type = str(getattr(x.aval, "dtype", ""))
        if eqn.primitive.name in _BATCH_DEPENDENT.get(key_type, ()):
            return f"PRNG keys of type {key_type}"
    return None
