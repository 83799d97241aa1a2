"""A function that is compiled once, with the seconds that this and its calls took."""

import time
from collections.abc import Callable
from typing import Any, final

import jax
import jax.extend as jex
from jaxtyping import PyTree

from ._processes import put, several, spans_processes


@final
class Program:
    """A function that is compiled when it is first called, with the seconds of both.

    Arrays on several devices that the function closes over are operands. As constants,
    which JAX would make of them, the whole would be on each of the devices.
    """

    def __init__(self, fun: Callable[..., Any]) -> None:
        self._fun = fun
        self._traced: Any = None
        self._out: Any = None
        self._spread: list[Any] = []
        self._compiled: Any = None
        self.compile_seconds = 0.0
        self.seconds = 0.0

    @property
    def is_compiled(self) -> bool:
        """Whether the next call only runs."""
        return self._compiled is not None

    @property
    def spans_processes(self) -> bool:
        """Whether it is compiled, for devices of several processes."""
        return self._compiled is not None and spans_processes(self._compiled)

    def trace(self, *args: Any) -> Any:
        """Traces it for arguments, or their shapes, and returns the shapes it gives."""
        if self._traced is None:
            start = time.perf_counter()
            self._traced = self._trace(shapes_of(args))
            self.compile_seconds += time.perf_counter() - start
        return self._out

    def _trace(self, shapes: PyTree) -> Any:
        closed, self._out = jax.make_jaxpr(self._fun, return_shape=True)(*shapes)
        self._spread = [x for x in closed.consts if _is_spread(x)]

        def run(spread: list[Any], leaves: list[Any]) -> list[Any]:
            given = iter(spread)
            consts = [next(given) if _is_spread(x) else x for x in closed.consts]
            whole = jex.core.ClosedJaxpr(closed.jaxpr, consts)
            return jex.core.jaxpr_as_fun(whole)(*leaves)

        spread = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for x in self._spread
        ]
        jitted = jax.jit(run, keep_unused=True)
        return jitted.trace(spread, jax.tree.leaves(shapes))

    def compile(self, *args: Any) -> Any:
        """Compiles it for arguments, or their shapes, unless it is compiled already."""
        if self._compiled is None:
            self.trace(*args)
            start = time.perf_counter()
            self._compiled = self._traced.lower().compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled

    def __call__(self, *args: Any) -> Any:
        compiled = self.compile(*args)
        start = time.perf_counter()
        # Arguments may come from anywhere; the program says where it wants them.
        operands = self._spread, jax.tree.leaves(args)
        shardings = compiled.input_shardings[0]
        if several():
            operands = jax.tree.map(put, operands, shardings)
        else:
            operands = jax.device_put(operands, shardings)
        # Waiting here lets Ctrl-C through, which reading a value does not.
        out = jax.block_until_ready(compiled(*operands))
        self.seconds += time.perf_counter() - start
        return jax.tree.unflatten(jax.tree.structure(self._out), out)


def _is_spread(x: Any) -> bool:
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


def shapes_of(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a pytree of arrays."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        x = jax.numpy.asarray(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree.map(shape, tree)
