"""Compiled programs, and a cache of them that runs of the same functions share.

As under `jax.jit`, a function is traced once for arguments of some shapes, and
identified by its address: later changes of what it closes over have no effect. The
functions that blackjax makes of its arguments, such as the `step` of an algorithm, are
made anew in each call of an API; so they are identified by their code and, in turn, by
what they close over.

The user's functions are held weakly, and entries go when one of their functions does.
That only works as long as no entry refers to them: a function that is reachable from
its own entry would never go. Executables, shapes and words do not refer to functions;
programs that are only traced do.

Settings of JAX that a trace depends on (64 bits, the default device, the precision of
products, a mesh) are many, and no public function lists them. But JAX traces a function
anew whenever one of them changes, and holds what it traced until `jax.clear_caches`. So
the trace of an empty function is part of the key, and entries go with it.
"""

import functools
import time
import weakref
from collections.abc import Callable, Hashable
from types import FunctionType, MethodType
from typing import Any, Final, TypeVar, final

import jax
import jax.core
import numpy as np
from jaxtyping import PyTree

from .._util._multihost import is_multiprocess
from ..batchers import AbstractBatcher
from ..devices._target import compile_to_run
from ..rebuild._policies import AbstractPolicy
from ..rebuild._values import Packages, closure_contents
from ._processes import put


_T = TypeVar("_T")

# Packages whose functions are identified by code and closure. batchkit is one of them,
# since its marks wrap the functions in a rebuilt algorithm.
_PACKAGES: Final = Packages(("blackjax", "batchkit"))

# Arrays of so many bytes are identified by their values, larger ones by their address.
_SMALL: Final = 2**16

_EMPTY: Final = jax.jit(lambda: ())


@final
class ProgramCache:
    """Cache entries that belong to one set of functions, by keys."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the entry of a key; `make` must not return functions of the user."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]


# Weak references are stored beside the entries: they must live to call back.
_KEPT: Final[dict[Hashable, tuple[tuple[weakref.ref[Any], ...], ProgramCache]]] = {}


def program_cache(*parts: Any) -> ProgramCache:
    """Return the cache entries of functions with settings, under JAX's configuration.

    `parts` are functions, an API or an algorithm, a batcher, shapes, settings. If one
    of them can be held neither by its value nor weakly, the cache is not shared.
    """
    walk = _Walk()
    key = walk.of((_EMPTY.trace().jaxpr, parts))

    def forget(_: Any) -> None:
        _KEPT.pop(key, None)

    try:
        hash(key)
        refs = tuple(weakref.ref(x, forget) for x in walk.held)
    except TypeError:
        return ProgramCache()
    return _KEPT.setdefault(key, (refs, ProgramCache()))[1]


def type_of(tree: PyTree) -> Hashable:
    """Key of compiled arguments: structure, shapes, dtypes and shardings."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(
        (x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves
    )


@final
class Program:
    """A function that is compiled when it is first called, and its run times."""

    def __init__(
        self,
        fun: Callable[..., Any],
        kept: ProgramCache | None = None,
        name: Hashable = None,
    ) -> None:
        """Compile a function later; `kept` holds executables, for other runs too, by
        `name`.
        """
        # Not `keep_unused=True`: with it JAX 0.12 keeps each executable for ever, in a
        # cache whose entries hold the jaxpr that they are to go with.
        self._jitted = jax.jit(fun)
        self._kept = ProgramCache() if kept is None else kept
        self._name = name
        self._compiled: Any = None
        self.compile_seconds = 0.0
        self.seconds = 0.0

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def compile(self, *args: Any) -> Any:
        """Compile it for arguments, or their shapes, unless it is compiled already."""

        def compiled() -> Any:
            start = time.perf_counter()
            found = compile_to_run(self._jitted.lower(*shapes))
            self.compile_seconds += time.perf_counter() - start
            return found

        if self._compiled is None:
            shapes = shapes_of(args)
            key = self._name, type_of(shapes)
            self._compiled = self._kept.get(key, compiled)
        return self._compiled

    def placed(self, *args: Any) -> tuple[Any, ...]:
        """Put arguments on the devices where the program reads them."""
        leaves, treedef = jax.tree.flatten(args)
        # An argument that the program does not read has no sharding there, but None.
        places = treedef.flatten_up_to(self.compile(*args).input_shardings[0])
        if is_multiprocess():
            leaves = list(map(put, leaves, places))
        else:
            leaves = jax.device_put(leaves, places)
        return jax.tree.unflatten(treedef, leaves)

    def run(self, *placed: Any) -> Any:
        """Call it with arguments from `placed`."""
        start = time.perf_counter()
        # Ctrl-C interrupts this wait, but not one that reads a value.
        out = jax.block_until_ready(self._compiled(*placed))
        self.seconds += time.perf_counter() - start
        return out

    def __call__(self, *args: Any) -> Any:
        return self.run(*self.placed(*args))


def shapes_of(tree: PyTree) -> PyTree:
    """Return the shapes and dtypes of a pytree of arrays."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        x = jax.numpy.asarray(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree.map(shape, tree)


@final
class _Walk:
    """One traversal of parts: makes their key, and collects those to hold weakly."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        # With the parts themselves: an id is reused when an object is freed.
        self._seen: dict[int, tuple[int, Any]] = {}

    def of(self, part: Any) -> Hashable:
        match part:
            case None | bool() | int() | float() | complex() | str() | bytes():
                return type(part), repr(part)  # -0.0 is not 0.0, nor 1 True
            case (
                np.dtype()
                | jax.tree_util.PyTreeDef()
                | AbstractBatcher()
                | AbstractPolicy()
            ):
                return part
            case jax.ShapeDtypeStruct():
                return type_of(part)
            case np.generic() | np.ndarray() | jax.Array() if _is_small(part):
                weak = getattr(part, "weak_type", False)
                return type(part), weak, type_of(part), np.asarray(part).tobytes()
        if id(part) in self._seen:
            return "seen", self._seen[id(part)][0]
        self._seen[id(part)] = len(self._seen), part
        match part:
            case tuple() | list():
                return type(part), *map(self.of, part)
            case dict():
                return type(part), *map(self.of, part.items())
            case functools.partial():
                return type(part), *map(self.of, (part.func, part.args, part.keywords))
            case MethodType():
                return MethodType, self.of(part.__self__), self.of(part.__func__)
            case FunctionType() if _PACKAGES.own(part):
                defaults = part.__defaults__, part.__kwdefaults__
                contents = self.of((*defaults, *closure_contents(part)))
                return part.__code__, _Namespace(part.__globals__), contents
        self.held.append(part)
        return id(part)


def _is_small(array: Any) -> bool:
    return (
        array.nbytes <= _SMALL
        and isinstance(array.dtype, np.dtype)
        and not array.dtype.hasobject
        and not isinstance(array, jax.core.Tracer)
        and getattr(array, "is_fully_addressable", True)
    )


@final
class _Namespace:
    """The globals of a function, by their address.

    They are held strongly: a dict cannot be held weakly, and the globals of a function
    of blackjax, or of its copy, do not have the functions of the user.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Namespace) and other._names is self._names

    def __hash__(self) -> int:
        return id(self._names)
