"""The two faces of `jax.vmap`: the function itself, and what it has mapped already.

The second, `@jax.vmap` on a module's own function, has run before anybody could
intervene. What it was given stands in the closure of the wrapper that JAX made. No
public interface tells, so this file reads the closure; a wrapper of another form is
not recognised, and then its site is reported as unreachable. Read with JAX 0.9.0,
0.10.2 and 0.12.0.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, final

import jax

from ..batchers import Site
from ._marks import MAPPED, mark, marked


_STAND_IN = "__batchkit_stand_in_for_vmap__"
_ARGUMENTS = ("in_axes", "out_axes", "axis_name", "axis_size", "spmd_axis_name")


def is_vmap(value: object) -> bool:
    """Whether `value` is `jax.vmap` or stands in for it in something rebuilt."""
    if value is jax.vmap:
        return True
    # `functools.wraps` hands attributes on; only the stand-in itself names itself.
    return isinstance(value, FunctionType) and value.__dict__.get(_STAND_IN) is value


def has_vmap(module: object) -> bool:
    """Whether it is a module, such as `jax`, that offers `jax.vmap`."""
    if not isinstance(module, ModuleType):
        return False
    return vars(module).get("vmap") is jax.vmap


def leads_to_vmap(value: object) -> bool:
    """Whether it is `jax.vmap`, or a module that offers it."""
    return is_vmap(value) or has_vmap(value)


def as_stand_in(vmap: FunctionType) -> FunctionType:
    """Marks a function that stands in for `jax.vmap`."""
    vars(vmap)[_STAND_IN] = vmap
    return vmap


@final
@dataclass(frozen=True)
class Mapped:
    """A function that has been mapped, as `jax.vmap` was told to."""

    fun: Callable[..., Any]
    arguments: dict[str, Any]
    site: Site | None  # where, if it was inside something rebuilt


def remember_mapped(new: Callable[..., Any], mapped: Mapped, maker: object) -> None:
    """Lets `mapped_function` know what a stand-in has made."""
    mark(new, MAPPED, (mapped, maker))


def mapped_by(value: object) -> object:
    """Whose stand-in made `value`; None if none did."""
    known = marked(value, MAPPED)
    return None if known is None else known[1]


def mapped_function(value: object) -> Mapped | None:
    """What `jax.vmap`, or a stand-in for it, made `value` from, if one did."""
    known = marked(value, MAPPED)
    if known is not None:
        return known[0]
    made, model = _behind_boundary(value), _behind_boundary(_MODEL)
    if made is None or model is None or made.__code__ is not model.__code__:
        return None
    closure = inspect.getclosurevars(made).nonlocals
    if not {"fun", *_ARGUMENTS} <= closure.keys():
        return None
    arguments = {name: closure[name] for name in _ARGUMENTS}
    if arguments["axis_name"] is inspect.getclosurevars(model).nonlocals["axis_name"]:
        arguments["axis_name"] = None  # JAX's own mark for an axis without a name
    return Mapped(closure["fun"], arguments, None)


def _behind_boundary(value: object) -> FunctionType | None:
    """The function inside the wrapper that JAX puts around its public functions."""
    if not isinstance(value, FunctionType) or value.__code__ is not _MODEL.__code__:
        return None
    inner = inspect.getclosurevars(value).nonlocals.get("fun")
    return inner if isinstance(inner, FunctionType) else None


_MODEL = jax.vmap(lambda x: x)
_MADE = _behind_boundary(_MODEL)

# The code that runs when something mapped by `jax.vmap` is called, with the function
# and the axes among its variables; None with a JAX whose wrappers have another form.
CODE_OF_MAPPED = None if _MADE is None else _MADE.__code__
CODE_OF_BOUNDARY = _MODEL.__code__
