"""Tracing and compiling a function as a user would jit it, without running it."""

from collections.abc import Callable
from typing import Any

import jax

from ..batchers._processes import alone


def trace(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> jax.stages.Traced:
    """Traces `fun` for arguments or their shapes; a jitted function as it is.

    What is no array, such as a number of Python or a function, stays as it is.
    """
    if isinstance(fun, jax.stages.Wrapped):  # made by jax.jit
        with alone():
            return fun.trace(*args, **kwargs)
    leaves, treedef = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if _is_array(leaf)}

    def on_arrays(arrays: dict[int, Any]) -> Any:
        full = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(treedef, full)
        return fun(*args, **kwargs)

    with alone():
        return jax.jit(on_arrays).trace(arrays)


def trace_afresh(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> jax.stages.Traced:
    """The same, but functions that have been jitted and traced before are traced again.

    JAX looks its traces up by the names of the axes around them, among others, so under
    a new name there are none.
    """
    traced: list[jax.stages.Traced] = []

    def probe() -> tuple[()]:
        traced.append(trace(fun, args, kwargs))
        return ()

    jax.vmap(probe, axis_name=object(), axis_size=1)()
    return traced[0]


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
