"""Cache of executables and traced shapes, shared by runs of the same functions.

As under `jax.jit`, a function is traced once for arguments of some shapes, and known by
its identity: what it closes over is looked at then and not again. What blackjax makes
of the functions it is given, such as the `step` of an algorithm, is made anew in each
call of an API; so it is known by its code and by what it was given in turn.

The user's functions are held weakly, and what is kept goes when one of them does. That
only works as long as nothing that is kept refers to them: a function that is reachable
from what is kept for it would never go. Executables, shapes and words do not refer to
functions; programs that are only traced do.

Settings of JAX that a trace depends on (64 bits, the default device, the precision of
products, a mesh) are many, and no public function lists them. But JAX traces a function
anew whenever one of them changes, and holds what it traced until `jax.clear_caches`. So
the trace of an empty function is one more thing to be known by, and to go with.
"""

import functools
import weakref
from collections.abc import Callable, Hashable
from types import FunctionType, MethodType
from typing import Any, Final, TypeVar, final

import jax
import jax.core
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher
from ..rebuild._policies import AbstractPolicy
from ..rebuild._walk import Packages, closure_contents


_T = TypeVar("_T")

# Packages whose functions are identified by code and closure. batchkit is one of them,
# since its marks wrap the functions in a rebuilt algorithm.
_PACKAGES: Final = Packages(("blackjax", "batchkit"))

# Arrays of so many bytes are known by their values, larger ones by their identity.
_SMALL: Final = 2**16

_EMPTY: Final = jax.jit(lambda: ())


@final
class Kept:
    """Cache entries that belong to one set of functions, by keys."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Returns what is kept under a key, made when it is first asked for.

        **Arguments:**

        - `key`: what it is, besides what all of this is kept for.
        - `make`: makes it; nothing in it may refer to the functions of the user.
        """
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values


# The weak references stand beside what is kept: they must live to call back.
_KEPT: Final[dict[Hashable, tuple[tuple[weakref.ref[Any], ...], Kept]]] = {}


def kept_for(*parts: Any) -> Kept:
    """Return the cache entries of functions with settings, under JAX's configuration.

    **Arguments:**

    - `parts`: functions, an API or an algorithm, a batcher, shapes, settings.

    **Returns:**

    What was kept before for the same parts; something new if there is none, or if one
    of them can be held neither by its value nor weakly.
    """
    walk = _Walk()
    key = walk.of((_EMPTY.trace().jaxpr, parts))

    def forget(_: Any) -> None:
        _KEPT.pop(key, None)

    try:
        hash(key)
        refs = tuple(weakref.ref(x, forget) for x in walk.held)
    except TypeError:
        return Kept()
    return _KEPT.setdefault(key, (refs, Kept()))[1]


def type_of(tree: PyTree) -> Hashable:
    """Key of compiled arguments: structure, shapes, dtypes and shardings."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(
        (x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves
    )


@final
class _Walk:
    """One walk through parts: what they are known by, and which to hold weakly."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        # With the parts themselves: an id is only theirs while they live.
        self._seen: dict[int, tuple[int, Any]] = {}

    def of(self, part: Any) -> Hashable:
        match part:
            case None | bool() | int() | float() | complex() | str() | bytes():
                return type(part), repr(part)  # -0.0 is not 0.0, nor 1 True
            case np.dtype() | jax.tree_util.PyTreeDef() | AbstractBatcher():
                return part
            case AbstractPolicy():
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
                return self._function(part)
        self.held.append(part)
        return id(part)

    def _function(self, function: FunctionType) -> Hashable:
        """A function of blackjax, by all that it computes from besides arguments."""
        defaults = function.__defaults__, function.__kwdefaults__
        return (
            function.__code__,
            _Namespace(function.__globals__),
            self.of((*defaults, *closure_contents(function))),
        )


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
    """The globals of a function: held, since the functions of the user are not there.

    Those of a rebuilt function are no module, and a dict cannot be held weakly.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Namespace) and other._names is self._names

    def __hash__(self) -> int:
        return id(self._names)
