"""One call of a batched function: what is mapped, how often, and by whose rules.

`jax.vmap` is asked rather than imitated. It checks the axes, it names the argument
whose size disagrees and it says how many tasks there are: a probe that computes nothing
is mapped over the real arguments, so every error of `jax.vmap` comes from `jax.vmap`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._around import divided
from ._jaxprs import zeros
from ._marks import in_task, looks_for_marks, with_marks
from ._refusals import (
    refs_are_whole,
    refuse_collectives,
    refuse_draws_by_batch,
    refuse_varying_outputs,
)
from ._task import Task
from ._watching import Reached, bytes_per_task, reaching


# The probe's own name for the mapped axis; no function of a user binds it.
_PROBE_AXIS = "batchkit.probe"


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
    on_task: Callable[[Task], None] | None = None  # is shown what `trace` returns

    def check_axes(self) -> None:
        """Raises `jax.vmap`'s error for `in_axes` that cannot be right."""
        self._mapped(self.fun)

    def vmap(self) -> PyTree:
        """All tasks at once, by `jax.vmap` itself."""
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
        self, batcher: object, parts: int | None = None, splits: bool = True
    ) -> Task:
        """Traces the function once, for one task, on behalf of a splitting `batcher`.

        **Arguments:**

        - `batcher`: who splits the tasks, for the messages of refusals.
        - `parts`: how many lanes share the memory of a device; all tasks by default.
        - `splits`: whether tasks are to run apart from each other for sure. If not, ask
            `refusal` before they do.

        **Returns:**

        The task: its jaxpr, the mapped arguments with the mapped axis in front, and
        where the outputs belong.

        **Raises:**

        `ValueError` if the task cannot be split from the others: it communicates over
        `axis_name`, draws random bits that depend on the layout, or has a varying
        output for which `out_axes` says `None`.
        """
        size = self.size
        if self.maps_refs:
            raise refs_are_whole(batcher)
        same = {id(x) for x in jax.tree.leaves((self.args, self.kwargs))}
        traced: list[Any] = []

        # `jax.vmap` makes the row of one task, since a type may have rules of its own:
        # the shape of a sparse array is no leaf. Unmapped leaves reach the function as
        # they are, also those that are no arrays.
        # The name of the axis is bound, at its true size, while the task is traced:
        # `psum(1, name)` is a constant then, and a real collective shows up in the
        # jaxpr instead of binding an outer axis of the same name by accident.
        def probe(*args: Any, **kwargs: Any) -> list[Any]:
            seen, treedef = jax.tree.flatten((args, kwargs))
            mapped = [id(x) not in same for x in seen]
            row = [
                x
                for x, is_mapped in zip(seen, mapped, strict=True)
                if is_mapped and not _is_float0(x)
            ]

            def one_task(*row: Any) -> Any:
                given = iter(row)
                full = [
                    x
                    if not is_mapped
                    else np.zeros(x.shape, x.dtype)
                    if _is_float0(x)
                    else next(given)
                    for x, is_mapped in zip(seen, mapped, strict=True)
                ]
                args, kwargs = jax.tree.unflatten(treedef, full)
                out = self.fun(*args, **kwargs)
                # What is no array is judged by jax.vmap, so that the error is its own.
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

        with divided(size if parts is None else parts):
            marks = looks_for_marks(batcher) and not in_task()
            all_rows = with_marks(rows) if marks else rows()
        jaxpr, out_shapes = traced[0]
        task = Task(
            jaxpr=jaxpr,
            rows=[jnp.asarray(x) for x in all_rows],
            size=size,
            out_tree=jax.tree.structure(out_shapes),
            out_axes=self.out_axes,
            is_mapped=self._mapped_outputs(out_shapes),
        )
        if self.on_task is not None:
            self.on_task(task)
        refuse_varying_outputs(task, self.axis_name)
        if splits and (refusal := self.refusal(task, batcher)):
            raise refusal
        return task

    def refusal(self, task: Task, batcher: object) -> ValueError | None:
        """Why a `batcher` cannot split the tasks, if it cannot."""
        try:
            refuse_collectives(task, self.axis_name, batcher)
            refuse_draws_by_batch(task, batcher)
        except ValueError as error:
            return error
        return None

    @property
    def maps_refs(self) -> bool:
        """True if a mutable array is mapped, which all tasks then write to in place."""
        leaves = jax.tree.leaves((self.args, self.kwargs))
        pairs = zip(leaves, self._leaf_axes(), strict=True)
        return any(axis is not None and isinstance(x, jax.Ref) for x, axis in pairs)

    @property
    def bytes_in(self) -> int:
        """The bytes of the mapped arguments of one task."""
        return bytes_per_task((self.args, self.kwargs), self._leaf_axes(), self.size)

    def _check_size(self, size: int) -> None:
        """Compares `axis_size` with the arguments, which JAX before 0.10 does not."""
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
        )

    def _leaf_axes(self) -> list[int | None]:
        """The mapped axis of each argument leaf; `jax.vmap` has checked the prefix."""
        in_axes = self.in_axes
        if isinstance(in_axes, list):
            in_axes = tuple(in_axes)
        return leaf_axes((in_axes, 0), (self.args, self.kwargs))

    def _mapped_outputs(self, out_shapes: PyTree) -> list[bool]:
        """Which output leaves are mapped; `jax.vmap` checks the axes, on zeros."""
        if not (isinstance(self.out_axes, int) and self.out_axes == 0):
            jax.eval_shape(
                jax.vmap(
                    lambda: jax.tree.map(zeros, out_shapes),
                    out_axes=self.out_axes,
                    axis_size=1,
                )
            )
        return [axis is not None for axis in leaf_axes(self.out_axes, out_shapes)]


def function_of_calls(
    run: Callable[[Call], PyTree],
    fun: Callable[..., Any],
    in_axes: Any,
    out_axes: Any,
    **axis: Any,
) -> Callable[..., Any]:
    """What `jax.vmap(fun, ...)` returns, but with each call handed to `run`."""
    make_call = functools.partial(Call, fun, in_axes=in_axes, out_axes=out_axes, **axis)
    make_call(args=(), kwargs={}).check_axes()

    @functools.wraps(fun)
    def batched(*args: Any, **kwargs: Any) -> Any:
        return run(make_call(args=args, kwargs=kwargs))

    return batched


def part_of_call(
    batch: Callable[[Call], PyTree],
    run: Callable[..., list[Any]],
    out_axes: list[int | None],
    size: int,
    spmd_axis_name: Any = None,
    axis_name: Any = None,
) -> Callable[..., list[Any]]:
    """A function of the rows of `size` tasks, which an inner batcher's `batch` runs."""

    def part(*rows: Any) -> list[Any]:
        return batch(Call(run, rows, {}, 0, out_axes, axis_name, size, spmd_axis_name))

    return part


def watched_call(
    call: Call,
    place: Any,
    batcher: Any,
    run: Callable[[Call], PyTree],
    **about: Any,
) -> PyTree:
    """Runs a call and tells the watcher of the trace about it."""
    with reaching(Reached(place, batcher, **about)) as reached:
        out = run(call)
        reached.tasks = call.size
        reached.bytes_in = call.bytes_in
        axes = leaf_axes(call.out_axes, out)
        reached.bytes_out = bytes_per_task(out, axes, call.size)
    return out


def leaf_axes(prefix: PyTree, tree: PyTree) -> list[int | None]:
    """The entry of `prefix` for each leaf of `tree`; `None` in `tree` is no leaf."""

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
