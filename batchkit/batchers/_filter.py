"""`filter_batch`: batching of functions whose pytrees hold more than arrays."""

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._util._jaxprs import zeros
from ._abstract import AbstractBatcher, check_batcher


_Fun = TypeVar("_Fun", bound=Callable[..., Any])


def filter_batch(batcher: AbstractBatcher) -> "FilteredBatcher":
    """Make the counterpart of `equinox.filter_vmap` for any batcher.

    Arrays in the arguments are mapped over their leading axis; other leaves (an
    activation function in an Equinox module, a string) are passed to every task
    unchanged, and may be returned.

    ```python
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    filter_chunked = bk.filter_batch(bk.Chunked(2))
    keys = jax.random.split(jax.random.key(0), 5)
    models = filter_chunked(lambda key: eqx.nn.MLP(2, 3, 8, 1, key=key))(keys)
    outputs = filter_chunked(lambda model, x: model(x), (eqx.if_array(0), None))
    assert outputs(models, jnp.ones(2)).shape == (5, 3)
    ```

    **Arguments:**

    - `batcher`: the layout of the tasks.

    **Returns:**

    A function with the arguments of `equinox.filter_vmap`: `(fun, in_axes, out_axes, *,
    axis_name, axis_size, spmd_axis_name)`. Entries of `in_axes` and `out_axes` are
    pytree prefixes of ints, `None` or functions from a leaf to either;
    `equinox.if_array(0)` by default. `in_axes` may be a dictionary by argument name.
    Arrays inside `fun` itself are not mapped; keyword arguments are, over axis 0.

    **Raises:**

    `TypeError` if `batcher` is not a batcher, or if an axis is an int for a leaf that
    is not an array; and the errors of the batcher for the same arrays.
    """
    check_batcher(
        "filter_batch",
        batcher,
        rule="a batcher such as `Chunked(16)`, with the function in a second call, "
        "`filter_batch(batcher)(fun)`",
    )
    return FilteredBatcher(batcher)


@final
class FilteredBatcher(eqx.Module):
    """The result of `filter_batch`: maps the arrays of a function's arguments."""

    batcher: AbstractBatcher

    def __call__(
        self,
        fun: _Fun,
        in_axes: Any = eqx.if_array(0),
        out_axes: Any = eqx.if_array(0),
        *,
        axis_name: Hashable | None = None,
        axis_size: int | None = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
    ) -> _Fun:
        """Map `fun` over the arrays of its arguments, see `filter_batch`."""

        @functools.wraps(fun)
        def batched(*args: Any, **kwargs: Any) -> Any:
            prefix = _positional_axes(fun, in_axes, len(args))
            axes = _leaf_axes((prefix, eqx.if_array(0)), (args, kwargs), "in_axes")
            leaves, treedef = jax.tree.flatten((args, kwargs))
            row_axes = tuple(axis for axis in axes if axis is not None)
            of_leaf = iter(axes)
            # In the order of `leaves`, where dictionaries are sorted by key.
            for part in (*args, *(kwargs[name] for name in sorted(kwargs))):
                part_axes = [next(of_leaf) for _ in jax.tree.leaves(part)]
                _refuse_custom_vmap_types(part, part_axes, "in_axes")
            # Structure and non-array leaves of the output, set while `fun` is traced.
            layout: list[Any] = []

            def one_task(*row: Any) -> tuple[list[Any], list[Any]]:
                rows = iter(row)
                full = [
                    leaf if axis is None else next(rows)
                    for leaf, axis in zip(leaves, axes, strict=True)
                ]
                args, kwargs = jax.tree.unflatten(treedef, full)
                out = fun(*args, **kwargs)
                to_axes = _leaf_axes(out_axes, out, "out_axes")
                _refuse_custom_vmap_types(out, to_axes, "out_axes")
                outs, out_treedef = jax.tree.flatten(out)
                static = [None if eqx.is_array(x) else x for x in outs]
                layout[:] = [to_axes, static, out_treedef]
                pairs = list(zip(outs, to_axes, strict=True))
                mapped = [x for x, axis in pairs if axis is not None]
                unmapped = [x for x, axis in pairs if axis is None and eqx.is_array(x)]
                return mapped, unmapped

            if not row_axes and axis_size is None:
                mapped, unmapped = one_task()
                if mapped:
                    raise ValueError(
                        "There is nothing to map: no argument has an axis, so an "
                        "output cannot have one. Pass axis_size, or out_axes=None."
                    )
            else:
                batched_task = self.batcher(
                    one_task,
                    row_axes,
                    (0, None),
                    axis_name=axis_name,
                    axis_size=axis_size,
                    spmd_axis_name=spmd_axis_name,
                )
                pairs = zip(leaves, axes, strict=True)
                rows = [x for x, axis in pairs if axis is not None]
                mapped, unmapped = batched_task(*rows)
            to_axes, static, out_treedef = layout
            mapped_outs, unmapped_outs = iter(mapped), iter(unmapped)
            merged = [
                jnp.moveaxis(next(mapped_outs), 0, axis)
                if axis is not None
                else (next(unmapped_outs) if x is None else x)
                for x, axis in zip(static, to_axes, strict=True)
            ]
            return jax.tree.unflatten(out_treedef, merged)

        # Its arguments have one axis more than those of `fun`, which no type expresses.
        return cast(_Fun, batched)


def _refuse_custom_vmap_types(tree: Any, axes: list[int | None], name: str) -> None:
    """Raise for types that `jax.vmap` maps by rules of their own, as Equinox does.

    Their leaves alone do not determine a row: the shape of a sparse array is no leaf.
    """
    if all(axis is None for axis in axes):
        return
    leaves, treedef = jax.tree.flatten(tree)

    def stand_ins() -> Any:
        arrays = [zeros(x) if eqx.is_array(x) else 0.0 for x in leaves]
        return jax.tree.unflatten(treedef, arrays)

    prefix = jax.tree.unflatten(treedef, axes)
    try:
        jax.eval_shape(jax.vmap(stand_ins, out_axes=prefix, axis_size=1))
    except ValueError as error:
        if "tree prefix" not in str(error):
            raise
        raise ValueError(
            f"{name} maps the leaves of a type that JAX maps as a whole, such as a "
            f"sparse array, in a tree of type {type(tree).__name__}. Use the batcher "
            "itself, which maps it as `jax.vmap` does, or map its arrays and build it "
            "inside of the function."
        ) from error


def _positional_axes(fun: Callable[..., Any], in_axes: Any, count: int) -> Any:
    """Return `in_axes` with one entry for each of `count` positional arguments."""
    if isinstance(in_axes, dict):
        names = list(inspect.signature(fun).parameters)[:count]
        unknown = [name for name in in_axes if name not in names]
        if unknown:
            raise ValueError(
                f"in_axes names {unknown}, but the positional arguments of this call "
                f"are {names}."
            )
        return tuple(in_axes.get(name, eqx.if_array(0)) for name in names)
    if isinstance(in_axes, tuple | list):
        return tuple(in_axes)
    return (in_axes,) * count


def _leaf_axes(prefix: Any, tree: Any, name: str) -> list[int | None]:
    """Find the axis of each leaf, from a prefix of ints, `None` and functions."""

    def resolve(axis: Any, subtree: Any) -> Any:
        def of_leaf(leaf: Any) -> int | None:
            chosen: Any = axis(leaf) if callable(axis) else axis
            if chosen is not None and not eqx.is_array(leaf):
                raise TypeError(
                    f"{name} maps axis {chosen} of {leaf!r}, which is not a JAX array. "
                    "Use `equinox.if_array(axis)` to map arrays only, or None."
                )
            return chosen

        return [of_leaf(leaf) for leaf in jax.tree.leaves(subtree)]

    axes = jax.tree.map(resolve, prefix, tree, is_leaf=lambda x: x is None)
    return jax.tree.leaves(axes, is_leaf=lambda x: x is None)
