"""A function that is compiled once, with the seconds that this and its calls took."""

import time
from collections.abc import Callable
from typing import Any, final

import jax
from jaxtyping import PyTree

from ._processes import put, several, spans_processes


@final
class Program:
    """A function that is compiled when it is first called, with the seconds of both."""

    def __init__(self, fun: Callable[..., Any]) -> None:
        self._jitted = jax.jit(fun, keep_unused=True)
        self._traced: Any = None
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
            self._traced = self._jitted.trace(*shapes_of(args))
            self.compile_seconds += time.perf_counter() - start
        return self._traced.out_info

    def compile(self, *args: Any) -> Any:
        """Compiles it for arguments, or their shapes, unless it is compiled already."""
        if self._compiled is None:
            self.trace(*args)
            start = time.perf_counter()
            self._compiled = self._traced.lower().compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled

    def placed(self, *args: Any) -> tuple[Any, ...]:
        """Arguments, which may come from anywhere, where the program wants them."""
        shardings = self.compile(*args).input_shardings[0]
        if several():
            return jax.tree.map(put, args, shardings)
        return jax.device_put(args, shardings)

    def run(self, *placed: Any) -> Any:
        """Calls it with what `placed` returned."""
        start = time.perf_counter()
        # Waiting here lets Ctrl-C through, which reading a value does not.
        out = jax.block_until_ready(self._compiled(*placed))
        self.seconds += time.perf_counter() - start
        return out

    def __call__(self, *args: Any) -> Any:
        return self.run(*self.placed(*args))


def shapes_of(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a pytree of arrays."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        x = jax.numpy.asarray(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree.map(shape, tree)
