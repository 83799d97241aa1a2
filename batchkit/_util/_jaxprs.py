"""Traversal of nested jaxprs, evaluating one equation, and the digest of a jaxpr.

For the digest, variables are numbered in order of appearance, functions are hashed by
their bytecode, and memory addresses are removed, so that tracing a program again gives
the same one, also in another process.
"""

import enum
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, Final, final

import jax
import jax.core
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.api_util import debug_info
from jax.core import Tracer

from ._multihost import global_array_bytes


_ADDRESS: Final = re.compile(r"(?<=\b)0x[0-9a-fA-F]{4,}\b")
# In `jax.extend` since 0.10; `jax.core`, which had it before, warns from then on.
_DROPPED: Any = getattr(jex.core, "DropVar", None) or getattr(jax.core, "DropVar", None)


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Iterate over the open jaxprs among the parameters of an equation."""
    for leaf in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
        if isinstance(leaf, jex.core.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, jex.core.Jaxpr):
            yield leaf


def inner_equations(eqn: Any) -> Iterator[Any]:
    """Iterate over the equations nested in an equation, at any depth."""
    for jaxpr in inner_jaxprs(eqn):
        yield from equations(jaxpr)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Iterate over the equations of a jaxpr, each followed by those nested in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        yield from inner_equations(eqn)


def literal_value(literal: Any) -> np.ndarray:
    """Return the value of a literal, in its type in the program."""
    return np.asarray(literal.val, literal.aval.dtype)


def is_literal(atom: Any) -> bool:
    """Return whether an atom of a jaxpr is a number instead of a variable."""
    return isinstance(atom, jex.core.Literal)


def is_dropped(var: Any) -> bool:
    """Return whether a result is unused."""
    return isinstance(var, _DROPPED)


def evaluate(eqn: Any, *values: Any) -> list[Any]:
    """Evaluate an equation; unused results are None."""
    pairs = zip(eqn.invars, values, strict=True)
    inputs = {atom: value for atom, value in pairs if not is_literal(atom)}
    outvars = [x for x in eqn.outvars if not is_dropped(x)]
    # JAX deprecates a jaxpr that does not say where it comes from.
    origin = debug_info(
        "batchkit",
        lambda *_: None,
        tuple(inputs),
        {},
        result_paths_thunk=lambda: ("",) * len(outvars),
    )
    # A jaxpr of one equation, because the parameters of an equation that holds other
    # jaxprs are not those that its `primitive.bind` takes.
    jaxpr = jex.core.Jaxpr((), list(inputs), outvars, [eqn], eqn.effects, origin)
    outs = iter(
        jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, []))(*inputs.values())
    )
    return [None if is_dropped(x) else next(outs) for x in eqn.outvars]


def axis_names(jaxpr: Any) -> set[Any]:
    """Return the names of the mapped axes that the equations of a jaxpr use."""
    names: set[Any] = set()
    for eqn in equations(jaxpr):
        used = eqn.params.get("axis_name")
        names.update(used if isinstance(used, tuple) else (used,))
    # Most collectives are effects of the jaxpr; `ppermute` is only an equation.
    return (names | axes_of_effects(jaxpr)) - {None}


def axes_of_effects(x: Any) -> set[Any]:
    """Return the names of the mapped axes among the effects of a jaxpr or equation."""
    # Reading or writing a mutable array has a name as well, but also an input, which
    # JAX 0.9 calls `input_index`.
    of_arrays = ("input", "input_index")
    axes = [e for e in x.effects if not any(hasattr(e, name) for name in of_arrays)]
    return {effect.name for effect in axes if hasattr(effect, "name")}


def zeros(x: Any) -> Any:
    """Make zeros with the shape and dtype of `x`, for abstract evaluation."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return jnp.zeros(x.shape, x.dtype)
    # A NumPy array: `jnp.zeros` warns when it narrows a 64-bit dtype.
    return np.zeros(x.shape, x.dtype)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)


def digest(closed: jex.core.ClosedJaxpr, values: bool) -> str:
    """Return the digest of a jaxpr, in hexadecimal.

    With `values`, those of its constants are hashed, which must not be tracers then;
    without, only their shapes and dtypes.
    """
    hasher = _JaxprHasher(values)
    hasher.write(closed)
    return hasher.hash.hexdigest()


@final
class _JaxprHasher:
    """Hash of nested values, each after a tag with its type."""

    def __init__(self, values: bool) -> None:
        self.hash = hashlib.sha256()
        self._values = values

    def write(self, x: Any) -> None:
        match x:
            case jex.core.ClosedJaxpr():
                self._add("closed")
                self._jaxpr(x.jaxpr)
                self.write(list(x.consts))
            case jex.core.Jaxpr():
                self._jaxpr(x)
            case jax.Array() | Tracer() | np.ndarray() | np.generic():
                self._array(x)
            # JAX 0.9 has a type of its own for NumPy arrays in a jaxpr.
            case _ if hasattr(x, "__array__") and hasattr(x, "dtype"):
                self._array(np.asarray(x))
            case list() | tuple():
                self._add(type(x).__name__, len(x))
                for item in x:
                    self.write(item)
            case Mapping():
                self._add("mapping", len(x))
                for key in sorted(x, key=str):
                    self._add(key)
                    self.write(x[key])
            case set() | frozenset():
                self._add("set", *sorted(map(_text, x)))
            case functools.partial():
                self._add("partial")
                self.write([x.func, x.args, x.keywords])
            case FunctionType():
                self._add("function", x.__module__, x.__qualname__)
                self._code(x.__code__)
            case enum.Enum() | None | bool() | int() | float() | complex() | str():
                self._add(type(x).__name__, repr(x))
            case _:
                self._add(type(x).__qualname__, _text(x))

    def _jaxpr(self, jaxpr: Any) -> None:
        numbers: dict[Any, int] = {}

        def atom(x: Any) -> None:
            if isinstance(x, jex.core.Literal):
                self._add("literal", _type(x.aval), repr(x.val))
            else:
                self._add("var", numbers.get(x, -1))

        def bind(x: Any) -> None:
            numbers[x] = len(numbers)
            self._add("new", _type(x.aval))

        self._add("jaxpr", len(jaxpr.eqns))
        for x in (*jaxpr.constvars, *jaxpr.invars):
            bind(x)
        for eqn in jaxpr.eqns:
            self._add("equation", eqn.primitive.name, len(eqn.invars))
            for x in eqn.invars:
                atom(x)
            self.write(dict(eqn.params))
            for x in eqn.outvars:
                bind(x)
        for x in jaxpr.outvars:
            atom(x)

    def _array(self, x: Any) -> None:
        dtype = getattr(x, "dtype", None)
        self._add("array", np.shape(x), dtype or type(x).__name__)
        if isinstance(x, Tracer) or not self._values:
            return
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        # No process may be able to hold a global array as a whole.
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            for piece in global_array_bytes(x):
                self.hash.update(piece)
            return
        self.hash.update(np.ascontiguousarray(np.asarray(x)).tobytes())

    def _code(self, code: CodeType) -> None:
        self._add("code", code.co_names, code.co_varnames)
        self.hash.update(code.co_code)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant)
            else:
                self._add(_text(constant))

    def _add(self, *words: Any) -> None:
        # With its length in front, `("ab", "c")` differs from `("a", "bc")`.
        for word in words:
            text = str(word).encode()
            self.hash.update(len(text).to_bytes(8, "little") + text)


def _type(aval: Any) -> str:
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    return f"{dtype}{shape}{getattr(aval, 'weak_type', False)}"


def _text(x: Any) -> str:
    return _ADDRESS.sub("", repr(x))
