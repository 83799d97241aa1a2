"""Marks of expensive functions, whose calls `Continuous` evaluates for all lanes.

Usually a marked function is a plain call of the function. Only while a task is traced
for a batcher that uses marks does the call become an equation with a name: a call of a
jitted function, since differentiation and batching keep its name.
"""

import functools
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar, final

import equinox as eqx
import jax
import jax.core

from .._util._checks import check_type
from ._trace_log import is_bound, under_axis


# Prefixes of the names of such equations: functions that a user marked, and those
# that a rebuilt sampler marks as candidates.
MARKED: Final = "batchkit.expensive:"
CANDIDATE: Final = "batchkit.function:"

# The attribute of a marked function with the original one.
_WITHOUT: Final = "__batchkit_without_mark__"

# Bound while a task is traced for a batcher that uses marks.
_TASK_AXIS: Final = "batchkit.task"

_P = ParamSpec("_P")
_T = TypeVar("_T")


@final
@dataclass
class _Function:
    """A marked function for arguments of one type."""

    fun: Any
    static: Any  # arguments that are not tracers, kept alive since ids are in the key
    jitted: Callable[..., Any]
    plain: Any = None  # results that are not arrays
    opaque: bool = False  # whether these may contain arrays


@final
@dataclass
class _Calls:
    """The marked functions called in one trace."""

    names: dict[str, Any] = field(default_factory=dict)
    functions: dict[Hashable, _Function] = field(default_factory=dict)


_CALLS: ContextVar[_Calls | None] = ContextVar("calls", default=None)


def expensive(fun: Callable[_P, _T]) -> Callable[_P, _T]:
    """Mark a function whose calls the lanes of `Continuous` should make together.

    Mark the likelihood, or the log-density, and not the whole step around it. Outside
    the tasks of a `Continuous` the mark does nothing. Derivatives of the function are
    evaluated together as well. In an algorithm from `rebuild_sampler` your functions
    need no mark: the one with the most operations is chosen, unless you mark one.

    ```python
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    @bk.expensive
    def loglikelihood(x):
        return -jnp.sum(x**2)

    def climb(x):  # a task whose length differs from one start to another
        value_and_grad = jax.value_and_grad(loglikelihood)
        return jax.lax.while_loop(
            lambda x: loglikelihood(x) < -1e-3,
            lambda x: x + 0.1 * value_and_grad(x)[1],
            x,
        )

    starts = jnp.arange(8.0).reshape(4, 2)
    assert jnp.allclose(bk.Continuous(2)(climb)(starts), jax.vmap(climb)(starts))
    ```

    **Arguments:**

    - `fun`: a pure function, as for `jax.jit`. Its arguments and results may include
        values that are not arrays.

    **Returns:**

    A function with the same arguments and results.

    **Raises:**

    `TypeError` if `fun` is not callable.
    """
    rule = "a function, such as a likelihood"
    check_type(callable(fun), "expensive", "fun", fun, rule)
    return mark(fun, MARKED, getattr(fun, "__name__", type(fun).__name__))


def mark(fun: Callable[_P, _T], kind: str, name: str) -> Callable[_P, _T]:
    """Mark a function as one of a kind, under a name."""

    @functools.wraps(fun)
    def marked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        calls = _CALLS.get()
        if calls is None or not in_task():
            return fun(*args, **kwargs)
        return _call(calls, fun, kind + name, args, kwargs)

    setattr(marked, _WITHOUT, fun)
    return marked


def without_mark(fun: Any) -> Any:
    """Return the original of a marked function, and any other value unchanged."""
    while hasattr(fun, _WITHOUT):
        fun = getattr(fun, _WITHOUT)
    return fun


def in_task() -> bool:
    """Return True while a task is traced for a batcher that uses marks."""
    return is_bound(_TASK_AXIS)


def has_flag(batcher: object, name: str) -> bool:
    """Return True if a class variable is set in a batcher, or in one inside it."""
    if getattr(batcher, name, False):
        return True
    inner = [x for x in vars(batcher).values() if hasattr(x, name)]
    return any(has_flag(x, name) for x in inner)


def with_marks(trace: Callable[[], _T]) -> _T:
    """Run `trace` so that calls of marked functions become equations."""
    token = _CALLS.set(_Calls())
    try:
        return under_axis(_TASK_AXIS, trace)
    finally:
        _CALLS.reset(token)


def _call(
    calls: _Calls, fun: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `fun` as one equation, traced once for each type of its arguments."""
    # Concrete values, such as NumPy arrays, stay concrete inside of `fun`.
    dynamic, static = eqx.partition((args, kwargs), _is_traced)
    leaves, treedef = jax.tree.flatten((args, kwargs))
    key: Hashable = (id(fun), name, treedef, tuple(map(_key, leaves)))
    try:
        function = calls.functions.get(key)
    except TypeError:  # a tree that cannot be hashed or compared is traced each time
        key, function = object(), None
    if function is None:

        def named(dynamic: Any) -> Any:
            full_args, full_kwargs = eqx.combine(dynamic, static)
            arrays, rest = eqx.partition(fun(*full_args, **full_kwargs), eqx.is_array)
            made.opaque = not all(map(_is_plain, jax.tree.leaves(rest)))
            made.plain = None if made.opaque else rest
            return None if made.opaque else arrays

        named.__name__ = named.__qualname__ = _unique(calls, fun, name)
        made = function = _Function(fun, static, jax.jit(named))
        calls.functions[key] = made
    # `opaque` is set while the first call is traced. A result such as a function may
    # close over arrays of that trace, which must not leave it.
    arrays = None if function.opaque else function.jitted(dynamic)
    if function.opaque:
        return fun(*args, **kwargs)
    return eqx.combine(arrays, function.plain)


def _key(leaf: Any) -> Hashable:
    """Make a key for a leaf that may be neither hashed nor compared."""
    if _is_traced(leaf):
        return jax.typeof(leaf)
    return (type(leaf), repr(leaf)) if _is_plain(leaf) else id(leaf)


def _unique(calls: _Calls, fun: Any, name: str) -> str:
    """Return the name, with a number if another function has it already."""
    number, found = 1, name
    while calls.names.setdefault(found, fun) is not fun:
        number += 1
        found = f"{name}#{number}"
    return found


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _is_plain(x: Any) -> bool:
    return isinstance(x, bool | int | float | complex | str)
