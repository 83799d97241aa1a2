"""A function that is compiled once, with the seconds that this and its calls took."""

import time
from collections.abc import Callable, Hashable
from typing import Any, final

import jax
from jaxtyping import PyTree

from ._kept import Kept, type_of
from ._processes import put, several, spans_processes


@final
class Program:
    """A function that is compiled when it is first called, with the seconds of both."""

    def __init__(
        self,
        fun: Callable[..., Any],
        kept: Kept | None = None,
        name: Hashable = None,
    ) -> None:
        """**Arguments:**

        - `fun`: the function.
        - `kept`: where executables are kept for the next program of its kind; by
            default they go with this one.
        - `name`: what the function is known by there, among others.
        """
        # Not `keep_unused=True`: with it JAX 0.12 keeps each executable for ever, in a
        # cache whose entries hold the jaxpr that they are to go with.
        self._jitted = jax.jit(fun)
        self._kept = Kept() if kept is None else kept
        self._name = name
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
        """Traces it for arguments, or their shapes, for which it is compiled later."""
        if self._traced is None:
            start = time.perf_counter()
            self._traced = self._jitted.trace(*shapes_of(args))
            self.compile_seconds += time.perf_counter() - start
        return self._traced

    def compile(self, *args: Any) -> Any:
        """Compiles it for arguments, or their shapes, unless it is compiled already."""
        if self._compiled is None:
            shapes = shapes_of(args)

            def compiled() -> Any:
                lowered = self._lower(shapes)
                start = time.perf_counter()
                made = lowered.compile()
                self.compile_seconds += time.perf_counter() - start
                return made

            self._compiled = self._kept.get(self._key(shapes), compiled)
            self._traced = None
        return self._compiled

    def _key(self, shapes: Any) -> Hashable:
        return self._name, type_of(shapes)

    def _lower(self, shapes: Any) -> Any:
        traced = self.trace(*shapes)
        start = time.perf_counter()
        lowered = traced.lower()
        self.compile_seconds += time.perf_counter() - start
        return lowered

    def placed(self, *args: Any) -> tuple[Any, ...]:
        """Arguments, which may come from anywhere, where the program wants them."""
        leaves, treedef = jax.tree.flatten(args)
        # What the program does not read has no place there: None.
        places = treedef.flatten_up_to(self.compile(*args).input_shardings[0])
        if several():
            leaves = list(map(put, leaves, places))
        else:
            leaves = jax.device_put(leaves, places)
        return jax.tree.unflatten(treedef, leaves)

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
