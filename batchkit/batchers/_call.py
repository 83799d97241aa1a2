"""One call of a batched function: its arguments, its axes, and the trace of one task.

The rules of `jax.vmap` are not reimplemented. A probe that computes nothing is mapped
over the real arguments by `jax.vmap`, which checks the axes, names an argument whose
size disagrees and binds the number of tasks. Users see `jax.vmap`'s own errors.

A layout that splits the tasks evaluates the jaxpr of one task in place of the function.
So the function is traced exactly once, and the arrays that it closes over are known.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._util._jaxprs import axis_names, zeros
from ._marks import has_flag, in_task, with_marks
from ._splitting import (
    batch_dependent_draws,
    batch_reduction,
    batched_outputs,
    cut_rows,
    only_moves_data,
)
from ._trace_log import LogEntry, enter, leave, log_note, outer_lanes


# The probe's own name for the mapped axis; no function of a user binds it.
_PROBE_AXIS = "batchkit.probe"

_Fun = TypeVar("_Fun", bound=Callable[..., Any])


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

    def row_types(self, *lanes: int) -> list[jax.ShapeDtypeStruct]:
        """Return the types of one row, or of some lanes of rows."""
        return [
            jax.ShapeDtypeStruct((*lanes, *x.shape[1:]), x.dtype) for x in self.rows
        ]

    def run(self, *row: Any, closure: Sequence[Any] | None = None) -> list[Any]:
        """Compute the output leaves of one task from its row of the mapped leaves."""
        jaxpr = self.jaxpr
        if closure is not None:
            jaxpr = jex.core.ClosedJaxpr(jaxpr.jaxpr, list(closure))
        return self.with_values(jex.core.jaxpr_as_fun(jaxpr)(*row))

    def run_rows(
        self,
        batcher: Any,
        rows: Sequence[Any],
        lanes: int,
        closure: Sequence[Any] | None = None,
        axis_name: Any = None,
        spmd_axis_name: Any = None,
    ) -> list[Any]:
        """Compute a number of tasks by an inner batcher, from their rows."""
        run = functools.partial(self.run, closure=closure)
        out_axes = self.lane_out_axes
        return batcher.batch(
            Call(run, tuple(rows), {}, 0, out_axes, axis_name, lanes, spmd_axis_name)
        )

    def with_values(self, outs: Sequence[Any]) -> list[Any]:
        """Drop the items of float0 outputs, which have no values to compute."""
        pairs = zip(outs, self.jaxpr.out_avals, strict=True)
        return [out for out, aval in pairs if aval.dtype != jax.dtypes.float0]

    def finish(self, outs: Sequence[Any]) -> PyTree:
        """Arrange leaves of all tasks as `out_axes` demand, without rows of padding."""
        remaining = iter(outs)
        leaves: list[Any] = []
        for aval, is_mapped in zip(self.jaxpr.out_avals, self.is_mapped, strict=True):
            if aval.dtype == jax.dtypes.float0:
                shape = (*[self.size] * is_mapped, *aval.shape)
                leaves.append(np.zeros(shape, jax.dtypes.float0))
            elif is_mapped:
                leaves.append(cut_rows(next(remaining), self.size))
            else:
                leaves.append(next(remaining))
        # `jax.vmap` moves the axes, since a type such as a sparse array may have rules
        # of its own. It also makes the sums of `sum_match`.
        mapped = jax.vmap(
            functools.partial(jax.tree.unflatten, self.out_tree),
            (self._leaf_axes,),
            self.out_axes,
            axis_size=self.size,
            sum_match=self.sum_match,
        )
        return mapped(leaves)

    @property
    def _leaf_axes(self) -> list[int | None]:
        return [0 if is_mapped else None for is_mapped in self.is_mapped]


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
    # The program around is a rebuilt sampler. Tasks that only move data then stay with
    # `jax.vmap`, and the state around the tasks is replicated on every device.
    in_sampler: bool = False

    def vmap(self) -> PyTree:
        """Run all tasks at once, by `jax.vmap` itself."""
        mapped = jax.vmap(
            self.fun,
            self.in_axes,
            self.out_axes,
            axis_name=self.axis_name,
            axis_size=self.axis_size,
            spmd_axis_name=self.spmd_axis_name,
            sum_match=self.sum_match,
        )
        return mapped(*self.args, **self.kwargs)

    @functools.cached_property
    def size(self) -> int:
        """The number of tasks, or `jax.vmap`'s error where the arguments disagree."""
        sizes: list[int] = []

        @functools.wraps(self.fun)  # jax.vmap names arguments by the signature
        def probe(*_: Any, **__: Any) -> tuple[()]:
            sizes.append(jax.lax.axis_size(_PROBE_AXIS))
            return ()

        try:
            self._map_probe(probe, _PROBE_AXIS)
        except ValueError as error:
            if "inconsistent sizes" in str(error):
                error.add_note(
                    "Give every mapped argument the same number of rows along its "
                    "axis, or set its entry of in_axes to None to pass it whole to "
                    "every task; rows are never cut off."
                )
            raise
        (size,) = sizes
        # JAX before 0.10 does not compare `axis_size` with the arguments.
        for leaf, axis in self._mapped_leaves:
            if leaf.shape[axis] != size:
                raise ValueError(
                    f"There are {size} tasks (axis_size={self.axis_size}), but an "
                    f"argument of shape {leaf.shape} has size {leaf.shape[axis]} along "
                    f"its mapped axis {axis}. Leave axis_size out, and give every "
                    "mapped argument the same size."
                )
        return size

    def trace(
        self, batcher: object, lanes: int | None = None, splits: bool = True
    ) -> TracedTask:
        """Trace the function once, for one task, on behalf of a splitting `batcher`."""
        size = self.size
        if self.maps_refs:
            raise ValueError(
                "A mapped argument is a mutable array (`jax.Ref`), which cannot be cut "
                f"into chunks, but {batcher} does not run its tasks together. Pass its "
                "values, `ref[...]`, and return the values to be written; or use "
                "`Vmap()`."
            )
        axes = leaf_axes(self._in_axes, (self.args, self.kwargs))
        traced: list[Any] = []

        # `jax.vmap` makes the row of one task, since a type may have rules of its own:
        # the shape of a sparse array is no leaf. Unmapped leaves, also those that are
        # not arrays, reach the function unchanged.
        def probe(*args: Any, **kwargs: Any) -> list[Any]:
            leaves, treedef = jax.tree.flatten((args, kwargs))
            in_row = [
                axis is not None and not _is_float0(x)
                for x, axis in zip(leaves, axes, strict=True)
            ]
            # A mapped float0 array is a tracer without values.
            leaves = [zeros(x) if _is_float0(x) else x for x in leaves]

            def one_task(*row: Any) -> Any:
                values = iter(row)
                full = [
                    next(values) if is_in_row else x
                    for x, is_in_row in zip(leaves, in_row, strict=True)
                ]
                args, kwargs = jax.tree.unflatten(treedef, full)
                out = self.fun(*args, **kwargs)
                # Let `jax.vmap` reject non-array outputs, so that users see its error.
                for leaf in jax.tree.leaves(out):
                    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
                        jax.eval_shape(jax.vmap(lambda leaf=leaf: leaf, axis_size=1))
                return out

            row = [x for x, keep in zip(leaves, in_row, strict=True) if keep]
            traced.append(jax.make_jaxpr(one_task, return_shape=True)(*row))
            return row

        # The axis name is bound, at its true size, while the task is traced:
        # `psum(1, name)` is then a constant, and a real collective shows up in the
        # jaxpr instead of binding an outer axis of the same name by accident.
        name = _PROBE_AXIS if self.axis_name is None else self.axis_name
        map_probe = functools.partial(self._map_probe, probe, name)
        has_marks = has_flag(batcher, "uses_expensive_marks") and not in_task()
        with outer_lanes(size if lanes is None else lanes):
            rows = with_marks(map_probe) if has_marks else map_probe()
        jaxpr, out_shapes = traced[0]
        task = TracedTask(
            jaxpr=jaxpr,
            rows=[jnp.asarray(x) for x in rows],
            size=size,
            out_tree=jax.tree.structure(out_shapes),
            out_axes=self.out_axes,
            is_mapped=self._mapped_outputs(out_shapes),
            sum_match=self.sum_match,
        )
        task = self._with_varying_outputs(task)
        if splits and (refusal := self.refusal(task, batcher)):
            raise refusal
        return task

    def stays_vmap(self, task: TracedTask) -> bool:
        """Return True if the tasks are left to `jax.vmap`, whatever the batcher."""
        # Such as ravelling a pytree for every particle: it costs nothing there, and
        # split it would become a loop.
        stays = self.in_sampler and only_moves_data(task.jaxpr.jaxpr)
        if stays:
            log_note("only moves data, kept as vmap")
        return stays

    def refusal(self, task: TracedTask, batcher: object) -> ValueError | None:
        """Return the error why `batcher` cannot split the tasks, or None if it can."""
        if self.axis_name is not None and self.axis_name in axis_names(
            task.jaxpr.jaxpr
        ):
            return ValueError(
                f"The function uses a collective or `axis_index` over "
                f"axis_name={self.axis_name!r}, but {batcher} does not run its "
                f"{task.size} tasks together, so they cannot communicate. Use `Vmap()` "
                "(or a chunk size of at least the number of tasks), or pass the values "
                "that the tasks need from each other as an argument, for example "
                "`jnp.arange(n)` for `axis_index`."
            )
        if task.size <= 1:
            return None
        reduction = batch_reduction(task.jaxpr.jaxpr)
        if reduction is not None:
            return ValueError(
                f"The function calls the primitive {reduction!r}, which under "
                f"`jax.vmap` reduces over all tasks. Under {batcher} the {task.size} "
                "tasks do not run together, so the result would be another. Use "
                "`Vmap()`, or call it outside of the mapped function."
            )
        eqns = task.jaxpr.jaxpr.eqns
        generator = batch_dependent_draws(eqns, task.run, task.row_types())
        if generator is None:
            return None
        return ValueError(
            f"The function draws random numbers by {generator}, and the draws differ "
            "between tasks. `jax.vmap` draws the bits of a whole batch from the first "
            f"key of the batch, so under {batcher} they would not be those of "
            "`jax.vmap`. Use threefry keys "
            "(`jax.random.key(seed, impl='threefry2x32')`), or `Vmap()`."
        )

    @property
    def maps_refs(self) -> bool:
        """True if a mapped argument is a mutable array, which tasks write in place."""
        return any(isinstance(x, jax.Ref) for x, _ in self._mapped_leaves)

    @property
    def _in_axes(self) -> tuple[Any, int]:
        """The axes of `(args, kwargs)`; `jax.vmap` has checked them."""
        # A list is no prefix of a tuple of arguments, but `jax.vmap` accepts it.
        is_list = isinstance(self.in_axes, list)
        return tuple(self.in_axes) if is_list else self.in_axes, 0

    @property
    def _mapped_leaves(self) -> list[tuple[Any, int]]:
        return mapped_leaves(self._in_axes, (self.args, self.kwargs))

    def _map_probe(self, probe: Callable[..., Any], axis_name: Any) -> Any:
        options = {"axis_name": axis_name, "axis_size": self.axis_size}
        return jax.vmap(probe, self.in_axes, **options)(*self.args, **self.kwargs)

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

    def _with_varying_outputs(self, task: TracedTask) -> TracedTask:
        """Sum outputs that vary although `out_axes` is `None`, or refuse them."""
        # `TracedTask.finish` sums the results of all tasks, in one reduction as under
        # `jax.vmap`, so rounding does not depend on the layout.
        varies = batched_outputs(
            task.jaxpr,
            task.row_types(task.size),
            [not is_mapped for is_mapped in task.is_mapped],
            axis_name=self.axis_name,
            axis_size=task.size,
        )
        if not any(varies):
            return task
        mapped = [x or y for x, y in zip(task.is_mapped, varies, strict=True)]
        task = dataclasses.replace(task, is_mapped=mapped)
        if not self.sum_match:
            shapes = [
                jax.ShapeDtypeStruct(
                    (*[task.size] * is_mapped, *aval.shape), aval.dtype
                )
                for aval, is_mapped in zip(task.jaxpr.out_avals, mapped, strict=True)
            ]
            try:
                jax.eval_shape(task.finish, task.with_values(shapes))
            except ValueError as error:
                error.add_note(
                    "An output with out_axes=None must not depend on a mapped "
                    "argument; give it an axis and reduce over it afterwards, or pass "
                    "sum_match=True for a sum."
                )
                raise
        return task


def mapped_function(
    run: Callable[[Call], PyTree],
    fun: _Fun,
    in_axes: Any,
    out_axes: Any,
    *,
    in_sampler: bool = False,
    **options: Any,
) -> _Fun:
    """Wrap `fun` as `jax.vmap(fun, ...)` does, but pass each call to `run`."""
    # It raises the error for `in_axes` that no arguments can have.
    jax.vmap(fun, in_axes, out_axes, **options)

    @functools.wraps(fun)
    def batched(*args: Any, **kwargs: Any) -> Any:
        call = Call(
            fun,
            args,
            kwargs,
            in_axes,
            out_axes,
            in_sampler=in_sampler,
            **options,
        )
        return run(call)

    # Its arguments have one axis more than those of `fun`, which no type can express.
    return cast(_Fun, batched)


def logged_call(
    call: Call,
    site: Any,
    batcher: Any,
    run: Callable[[Call], PyTree],
    **fields: Any,
) -> PyTree:
    """Run a call, and record it in the log of the trace with all that it reaches."""
    entry = LogEntry(site, batcher, **fields)
    token = enter(entry)
    try:
        out = run(call)
        entry.tasks = call.size
        entry.bytes_in = bytes_per_task(call._mapped_leaves, call.size)
        mapped = mapped_leaves(call.out_axes, out)
        entry.bytes_out = bytes_per_task(mapped, call.size)
    finally:
        leave(token)
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


def mapped_leaves(prefix: PyTree, tree: PyTree) -> list[tuple[Any, int]]:
    """Return the leaves of `tree` that `prefix` maps, each with its axis."""
    pairs = zip(jax.tree.leaves(tree), leaf_axes(prefix, tree), strict=True)
    return [(leaf, axis) for leaf, axis in pairs if axis is not None]


def bytes_per_task(mapped: Sequence[tuple[Any, int]], tasks: int) -> int:
    """Add up the bytes of one task in mapped leaves."""
    return sum(size_of(leaf) for leaf, _ in mapped) // max(tasks, 1)


def size_of(x: Any) -> int:
    """Return the bytes of an array with the shape and dtype of `x`."""
    if not hasattr(x, "shape") or x.dtype == jax.dtypes.float0:
        return 0
    return math.prod(x.shape) * x.dtype.itemsize


def _is_float0(x: Any) -> bool:
    return getattr(x, "dtype", None) == jax.dtypes.float0
