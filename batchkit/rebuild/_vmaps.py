"""Recognising `jax.vmap`, its stand-ins, and the functions that either has mapped.

A function that `jax.vmap` mapped while its module was imported, such as one decorated
by `@jax.vmap`, is recognised by the code of the wrapper that JAX makes. No public
interface names that code, so it is read off an example. Tried with JAX 0.9.0, 0.10.2
and 0.12.0.
"""

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Final, final

import jax

from ..batchers import Site
from ._walk import closure_contents


# The attribute under which a function has its record.
RECORD: Final = "__batchkit_record__"
# The attribute of a stand-in for a module that holds the module.
ORIGINAL: Final = "__batchkit_original__"


@final
@dataclass(frozen=True)
class Mapped:
    """A function that a stand-in for `jax.vmap` has mapped, and how."""

    fun: Callable[..., Any]
    arguments: dict[str, Any]
    site: Site
    mapper: Any


@final
@dataclass
class Record:
    """How rebuilding made a function."""

    # `functools.wraps` hands the attributes of a function on to whatever wraps it, so a
    # record names its owner and means nothing on any other function.
    owner: weakref.ref[Any]
    original: weakref.ref[Any] | None = None  # of a copy, which does not keep it alive
    entry: Any = None  # the entry point of a copy
    behind: Any = None  # the copy that an entry point calls
    mapped: Mapped | None = None
    is_stand_in: bool = False


def record(function: Any, **made: Any) -> Any:
    """Note how a function was made, and return it."""
    # Where `functools.wraps` has handed on another record, it is replaced.
    previous = record_of(function) or Record(weakref.ref(function))
    function.__dict__[RECORD] = dataclasses.replace(previous, **made)
    return function


def record_of(value: object) -> Record | None:
    """Return how rebuilding made a value, or None if it did not."""
    if not isinstance(value, FunctionType):
        return None
    found = value.__dict__.get(RECORD)
    return found if found is not None and found.owner() is value else None


def attributes_of(function: FunctionType) -> dict[str, Any]:
    """Return the attributes of a function, without its record."""
    return {k: x for k, x in function.__dict__.items() if k != RECORD}


def is_vmap(value: object) -> bool:
    """Return True for `jax.vmap` or a stand-in for it."""
    made = record_of(value)
    return value is jax.vmap or (made is not None and made.is_stand_in)


def leads_to_vmap(value: object) -> bool:
    """Return True for a vmap, or a module that has `jax.vmap` as its `vmap`."""
    if isinstance(value, ModuleType):
        return vars(original_module(value)).get("vmap") is jax.vmap
    return is_vmap(value)


def original_module(module: ModuleType) -> ModuleType:
    """Return the module behind a stand-in, and any other as it is."""
    return vars(module).get(ORIGINAL, module)


def mapped_by_jax(value: object) -> Any:
    """Return the function that `jax.vmap` made a value from, or None."""
    made = _behind_boundary(value)
    if made is None or made.__code__ is not CODE_OF_MAPPED:
        return None
    return dict(closure_contents(made)).get("fun")


def shared_functions(function: FunctionType) -> list[Any]:
    """Return the functions inside a foreign function that is shared, never copied.

    Such a function is mapped, or generic with a table and a cache of its own.
    """
    registry = getattr(function, "registry", None)  # of `functools.singledispatch`
    if isinstance(registry, Mapping):
        return list(registry.values())
    fun = mapped_by_jax(function)
    return [] if fun is None else [fun]


def _behind_boundary(value: object) -> FunctionType | None:
    """Return the function inside the wrapper that JAX puts around public functions."""
    if not isinstance(value, FunctionType) or value.__code__ is not CODE_OF_BOUNDARY:
        return None
    inner = dict(closure_contents(value)).get("fun")
    return inner if isinstance(inner, FunctionType) else None


_MODEL = jax.vmap(lambda x: x)
CODE_OF_BOUNDARY = _MODEL.__code__  # pyright: ignore
_MADE = _behind_boundary(_MODEL)

# The code that runs when something mapped by `jax.vmap` is called, with the function
# and the axes among its variables; None with a JAX whose wrappers have another form.
CODE_OF_MAPPED = None if _MADE is None else _MADE.__code__
