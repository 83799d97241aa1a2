"""One call of a batched function: its arguments, axes, size, and the trace of one task.

The rules of `jax.vmap` are not reimplemented. A probe that computes nothing is mapped
over the real arguments by `jax.vmap`, which checks the axes, names an argument whose
size disagrees and binds the number of tasks. Users see `jax.vmap`'s own errors.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._jaxprs import zeros
from ._around import outer_lanes
from ._marks import in_task, uses_expensive_marks, with_marks
from ._trace_log import LogEntry, bytes_per_task, log_note, logged
from ._traced_task import (
    TracedTask,
    mapped_ref_error,
    refuse_batch_dependent_draws,
    refuse_collectives,
    refuse_varying_outputs,
    varying_outputs,
)


# The probe's own name for the mapped axis; no function of a user binds it.
_PROBE_AXIS = "batchkit.probe"

_Fun = TypeVar("_Fun", bound=Callable[..., Any])


@final
@dataclass(frozen=True)
class Call:
    """A function of one task together with the arguments of all tasks."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_axes: Any
    out_axes: Any
    axis_name: Any
    axis_size: int | None
    spmd_axis_name: Any
    sum_match: bool = False
    keep_data_movement: bool = False  # leave tasks that only move data to `jax.vmap`

    def check_axes(self) -> None:
        """Raise `jax.vmap`'s error for `in_axes` that no arguments can have."""
        self._mapped(self.fun)

    def vmap(self) -> PyTree:
        """Run all tasks at once, by `jax.vmap` itself."""
        return self._mapped(self.fun)(*self.args, **self.kwargs)

    @functools.cached_property
    def size(self) -> int:
        """The number of tasks, or `jax.vmap`'s error where the arguments disagree."""
        sizes: list[int] = []

        @functools.wraps(self.fun)  # jax.vmap names arguments by the signature
        def probe(*_: Any, **__: Any) -> tuple[()]:
            sizes.append(jax.lax.axis_size(_PROBE_AXIS))
            return ()

        try:
            jax.vmap(
                probe, self.in_axes, axis_name=_PROBE_AXIS, axis_size=self.axis_size
            )(*self.args, **self.kwargs)
        except ValueError as error:
            if "inconsistent sizes" in str(error):
                error.add_note(
                    "Give every mapped argument the same number of rows along its "
                    "axis, or set its entry of in_axes to None to pass it whole to "
                    "every task; rows are never cut off."
                )
            raise
        self._check_size(sizes[0])
        return sizes[0]

    def trace(
        self, batcher: object, lanes: int | None = None, splits: bool = True
    ) -> TracedTask:
        """Trace the function once, for one task, on behalf of a splitting `batcher`.

        **Arguments:**

        - `batcher`: the batcher that splits the tasks, for error messages.
        - `lanes`: the number of lanes that share the memory of a device; all tasks by
            default.
        - `splits`: whether the batcher splits the tasks in any case. If not, call
            `refusal` before it does.

        **Returns:**

        The task: its jaxpr, the mapped arguments with the mapped axis in front, and
        the axes of the outputs.

        **Raises:**

        `ValueError` if the task cannot be split from the others: it communicates over
        `axis_name`, draws random bits that depend on the layout, or has a varying
        output for which `out_axes` is `None`, without `sum_match`.
        """
        size = self.size
        if self.maps_refs:
            raise mapped_ref_error(batcher)
        original = {id(x) for x in jax.tree.leaves((self.args, self.kwargs))}
        traced: list[Any] = []

        # `jax.vmap` makes the row of one task, since a type may have rules of its own:
        # the shape of a sparse array is no leaf. Unmapped leaves, also those that are
        # not arrays, reach the function unchanged, by which they are recognised.
        # The axis name is bound, at its true size, while the task is traced:
        # `psum(1, name)` is then a constant, and a real collective shows up in the
        # jaxpr instead of binding an outer axis of the same name by accident.
        def probe(*args: Any, **kwargs: Any) -> list[Any]:
            leaves, treedef = jax.tree.flatten((args, kwargs))
            mapped = [id(x) not in original for x in leaves]
            row = [
                x
                for x, is_mapped in zip(leaves, mapped, strict=True)
                if is_mapped and not _is_float0(x)
            ]

            def one_task(*row: Any) -> Any:
                values = iter(row)
                full = [
                    x
                    if not is_mapped
                    else np.zeros(x.shape, x.dtype)
                    if _is_float0(x)
                    else next(values)
                    for x, is_mapped in zip(leaves, mapped, strict=True)
                ]
                args, kwargs = jax.tree.unflatten(treedef, full)
                out = self.fun(*args, **kwargs)
                # Let `jax.vmap` reject non-array outputs, so that users see its error.
                for leaf in jax.tree.leaves(out):
                    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
                        jax.eval_shape(jax.vmap(lambda leaf=leaf: leaf, axis_size=1))
                return out

            traced.append(jax.make_jaxpr(one_task, return_shape=True)(*row))
            return row

        def rows() -> list[Any]:
            return jax.vmap(
                probe,
                self.in_axes,
                axis_name=_PROBE_AXIS if self.axis_name is None else self.axis_name,
                axis_size=self.axis_size,
            )(*self.args, **self.kwargs)

        with outer_lanes(size if lanes is None else lanes):
            marks = uses_expensive_marks(batcher) and not in_task()
            all_rows = with_marks(rows) if marks else rows()
        jaxpr, out_shapes = traced[0]
        task = TracedTask(
            jaxpr=jaxpr,
            rows=[jnp.asarray(x) for x in all_rows],
            size=size,
            out_tree=jax.tree.structure(out_shapes),
            out_axes=self.out_axes,
            is_mapped=self._mapped_outputs(out_shapes),
        )
        if self.sum_match:
            task = self._with_sums(task)
        else:
            refuse_varying_outputs(task, self.axis_name)
        if splits and (refusal := self.refusal(task, batcher)):
            raise refusal
        return task

    def stays_vmap(self, task: TracedTask) -> bool:
        """Return True if the tasks are left to `jax.vmap`, whatever the batcher.

        At a site of a rebuilt sampler, tasks that only move data (such as ravelling a
        pytree for every particle) are: they cost nothing there, and split they would
        become a loop. A batcher asks once it has traced a task.
        """
        stays = self.keep_data_movement and task.only_moves_data
        if stays:
            log_note("only moves data, kept as vmap")
        return stays

    def refusal(self, task: TracedTask, batcher: object) -> ValueError | None:
        """Return the error why `batcher` cannot split the tasks, or None if it can."""
        try:
            refuse_collectives(task, self.axis_name, batcher)
            refuse_batch_dependent_draws(task, batcher)
        except ValueError as error:
            return error
        return None

    @property
    def maps_refs(self) -> bool:
        """True if a mapped argument is a mutable array, which tasks write in place."""
        leaves = jax.tree.leaves((self.args, self.kwargs))
        pairs = zip(leaves, self._leaf_axes(), strict=True)
        return any(axis is not None and isinstance(x, jax.Ref) for x, axis in pairs)

    @property
    def bytes_in(self) -> int:
        """The bytes of the mapped arguments of one task."""
        return bytes_per_task((self.args, self.kwargs), self._leaf_axes(), self.size)

    def _check_size(self, size: int) -> None:
        """Compare `axis_size` with the arguments, which JAX before 0.10 does not."""
        leaves = jax.tree.leaves((self.args, self.kwargs))
        for leaf, axis in zip(leaves, self._leaf_axes(), strict=True):
            if axis is not None and leaf.shape[axis] != size:
                raise ValueError(
                    f"There are {size} tasks (axis_size={self.axis_size}), but an "
                    f"argument of shape {leaf.shape} has size {leaf.shape[axis]} along "
                    f"its mapped axis {axis}. Leave axis_size out, and give every "
                    "mapped argument the same size."
                )

    def _mapped(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(
            fun,
            self.in_axes,
            self.out_axes,
            axis_name=self.axis_name,
            axis_size=self.axis_size,
            spmd_axis_name=self.spmd_axis_name,
            sum_match=self.sum_match,
        )

    def _with_sums(self, task: TracedTask) -> TracedTask:
        """Map the outputs that `sum_match` sums; `TracedTask.finish` sums them.

        The sums are over the results of all tasks, in one reduction as under
        `jax.vmap`, so rounding does not depend on the layout.
        """
        varies = varying_outputs(task, self.axis_name)
        pairs = zip(task.is_mapped, varies, strict=True)
        mapped = [is_mapped or varying for is_mapped, varying in pairs]
        return dataclasses.replace(task, is_mapped=mapped, sum_match=True)

    def _leaf_axes(self) -> list[int | None]:
        """The mapped axis of each argument leaf; `jax.vmap` has checked the prefix."""
        in_axes = self.in_axes
        # A list is no prefix of a tuple of arguments, but `jax.vmap` accepts it.
        if isinstance(in_axes, list):
            in_axes = tuple(in_axes)
        return leaf_axes((in_axes, 0), (self.args, self.kwargs))

    def _mapped_outputs(self, out_shapes: PyTree) -> list[bool]:
        """Find the mapped output leaves; `jax.vmap` checks the axes, on zeros."""
        # Axis 0 is valid for every output, and by far the most frequent.
        if not (isinstance(self.out_axes, int) and self.out_axes == 0):
            jax.eval_shape(
                jax.vmap(
                    lambda: jax.tree.map(zeros, out_shapes),
                    out_axes=self.out_axes,
                    axis_size=1,
                )
            )
        return [axis is not None for axis in leaf_axes(self.out_axes, out_shapes)]


def mapped_function(
    run: Callable[[Call], PyTree],
    fun: _Fun,
    in_axes: Any,
    out_axes: Any,
    **options: Any,
) -> _Fun:
    """Wrap `fun` as `jax.vmap(fun, ...)` does, but pass each call to `run`."""
    make_call = functools.partial(
        Call, fun, in_axes=in_axes, out_axes=out_axes, **options
    )
    make_call(args=(), kwargs={}).check_axes()

    @functools.wraps(fun)
    def batched(*args: Any, **kwargs: Any) -> Any:
        return run(make_call(args=args, kwargs=kwargs))

    # Its arguments have one axis more than those of `fun`, which no type can express.
    return cast(_Fun, batched)


def rows_function(
    batch: Callable[[Call], PyTree],
    run: Callable[..., list[Any]],
    out_axes: list[int | None],
    size: int,
    spmd_axis_name: Any = None,
    axis_name: Any = None,
) -> Callable[..., list[Any]]:
    """Make a function of the rows of `size` tasks that runs an inner batcher."""

    def run_rows(*rows: Any) -> list[Any]:
        return batch(Call(run, rows, {}, 0, out_axes, axis_name, size, spmd_axis_name))

    return run_rows


def logged_call(
    call: Call,
    site: Any,
    batcher: Any,
    run: Callable[[Call], PyTree],
    **fields: Any,
) -> PyTree:
    """Run a call and record it in the log of the trace."""
    with logged(LogEntry(site, batcher, **fields)) as entry:
        out = run(call)
        entry.tasks = call.size
        entry.bytes_in = call.bytes_in
        axes = leaf_axes(call.out_axes, out)
        entry.bytes_out = bytes_per_task(out, axes, call.size)
    return out


def leaf_axes(prefix: PyTree, tree: PyTree) -> list[int | None]:
    """Look up each leaf of `tree` in `prefix`; `None` in `tree` is not a leaf."""

    def is_none(x: Any) -> bool:
        return x is None

    leaves = jax.tree.leaves(tree, is_leaf=is_none)
    axes = jax.tree.leaves(
        jax.tree.broadcast(prefix, tree, is_leaf=is_none), is_leaf=is_none
    )
    pairs = zip(leaves, axes, strict=True)
    return [axis for leaf, axis in pairs if leaf is not None]


def _is_float0(x: Any) -> bool:
    return getattr(x, "dtype", None) == jax.dtypes.float0
