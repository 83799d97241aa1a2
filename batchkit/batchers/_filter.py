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
            axes = _axes_of((prefix, eqx.if_array(0)), (args, kwargs), "in_axes")
            # Axes and non-array leaves of the output, set while `fun` is traced.
            layout: list[Any] = []

            def one_task(arguments: Any) -> tuple[Any, Any]:
                args, kwargs = arguments
                out = fun(*args, **kwargs)
                to_axes = _axes_of(out_axes, out, "out_axes")
                arrays, static = eqx.partition(out, eqx.is_array)
                layout[:] = [to_axes, static]
                is_mapped = jax.tree.map(
                    lambda axis: axis is not None, to_axes, is_leaf=_is_none
                )
                return eqx.partition(arrays, is_mapped)

            if jax.tree.leaves(axes) or axis_size is not None:
                batched_task = self.batcher(
                    one_task,
                    (axes,),
                    (0, None),
                    axis_name=axis_name,
                    axis_size=axis_size,
                    spmd_axis_name=spmd_axis_name,
                )
                mapped, unmapped = batched_task((args, kwargs))
            else:
                mapped, unmapped = one_task((args, kwargs))
                if jax.tree.leaves(mapped):
                    raise ValueError(
                        "There is nothing to map: no argument has an axis, so an "
                        "output cannot have one. Pass axis_size, or out_axes=None."
                    )
            to_axes, static = layout
            mapped = jax.tree.map(
                lambda axis, x: x if axis is None else jnp.moveaxis(x, 0, axis),
                to_axes,
                mapped,
                is_leaf=_is_none,
            )
            return eqx.combine(mapped, unmapped, static)

        # Its arguments have one axis more than those of `fun`, which no type expresses.
        return cast(_Fun, batched)


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


def _axes_of(prefix: Any, tree: Any, name: str) -> Any:
    """Give each leaf its axis, from a prefix of ints, `None` and functions."""

    def resolve(axis: Any, subtree: Any) -> Any:
        def of_leaf(leaf: Any) -> int | None:
            chosen: Any = axis(leaf) if callable(axis) else axis
            if chosen is not None and not eqx.is_array(leaf):
                raise TypeError(
                    f"{name} maps axis {chosen} of {leaf!r}, which is not a JAX array. "
                    "Use `equinox.if_array(axis)` to map arrays only, or None."
                )
            return chosen

        axes = jax.tree.map(of_leaf, subtree)
        # The axes of the leaves of a sparse array are no prefix of it; None is.
        return axes if jax.tree.leaves(axes) else None

    axes = jax.tree.map(resolve, prefix, tree, is_leaf=_is_none)
    if jax.tree.leaves(axes):
        _refuse_custom_vmap_types(tree, axes, name)
    return axes


def _refuse_custom_vmap_types(tree: Any, axes: Any, name: str) -> None:
    """Raise for types that `jax.vmap` maps by rules of their own, as Equinox does."""
    # Their leaves alone do not determine a row: the shape of a sparse array is no leaf.
    arrays = jax.tree.map(lambda x: zeros(x) if eqx.is_array(x) else 0.0, tree)
    try:
        jax.eval_shape(jax.vmap(lambda: arrays, out_axes=axes, axis_size=1))
    except ValueError as error:
        if "tree prefix" not in str(error):
            raise
        raise ValueError(
            f"{name} maps the leaves of a type that JAX maps as a whole, such as a "
            "sparse array. Use the batcher itself, which maps it as `jax.vmap` does, "
            "or map its arrays and build it inside of the function."
        ) from error


def _is_none(x: Any) -> bool:
    return x is None
