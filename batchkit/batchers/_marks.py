"""Marking the functions whose calls lanes should make together.

A mark costs nothing where nobody asks for it: it is a plain call of the function. Only
while a task is traced for a batcher that looks for marks does it become an equation
with a name, a call of `jax.jit`, which differentiation and batching keep.
"""

import functools
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar, final

import equinox as eqx
import jax
import jax.core
import numpy as np


# Names of functions that are called together, as they stand in a program: those that
# a user marked, and those that were taken for it.
MARKED: Final = "batchkit.expensive:"
SUPPOSED: Final = "batchkit.function:"

# Where a marked function has the one that was marked.
_WITHOUT: Final = "__batchkit_without_mark__"

# Bound while a task is traced for a batcher that looks for marks. JAX looks up what it
# has traced before by the axes that are bound, so no trace without marks is reused.
_TASK_AXIS: Final = "batchkit.task"

_P = ParamSpec("_P")
_T = TypeVar("_T")


@final
@dataclass
class _Function:
    """A marked function for arguments of one type."""

    fun: Any
    static: Any  # arguments that are no tracers, kept for their identity
    jitted: Callable[..., Any]
    plain: Any = None  # results that are no arrays
    opaque: bool = False  # whether there may be arrays in those


@final
@dataclass
class _Calls:
    """The marked functions that one trace has come by."""

    names: dict[str, Any] = field(default_factory=dict)
    functions: dict[Hashable, _Function] = field(default_factory=dict)


_CALLS: ContextVar[_Calls | None] = ContextVar("calls", default=None)


def expensive(fun: Callable[_P, _T]) -> Callable[_P, _T]:
    """Marks a function whose calls the lanes of `Continuous` should make together.

    Mark the likelihood, or the log-density, and not the whole step around it. Outside
    the tasks of a `Continuous` the mark does nothing. Derivatives of the function are
    evaluated together as well. In an algorithm from `rebuild_sampler` your functions
    need no mark: the costliest is found, unless you mark one.

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

    - `fun`: a pure function, as for `jax.jit`. Arguments and results that are no arrays
        are fine.

    **Returns:**

    A function with the same arguments and results.

    **Raises:**

    `TypeError` if `fun` is not callable.
    """
    if not callable(fun):
        raise TypeError(
            f"expensive(fun={fun!r}): fun must be a function, such as a likelihood; "
            f"got {type(fun).__name__}."
        )
    return mark(fun, MARKED, getattr(fun, "__name__", type(fun).__name__))


def mark(fun: Callable[_P, _T], kind: str, name: str) -> Callable[_P, _T]:
    """Marks a function as one of a kind, under a name."""

    @functools.wraps(fun)
    def marked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        calls = _CALLS.get()
        if calls is None or not in_task():
            return fun(*args, **kwargs)
        return _call(calls, fun, kind + name, args, kwargs)

    setattr(marked, _WITHOUT, fun)
    return marked


def without_mark(fun: Any) -> Any:
    """What a mark was put on; anything else as it is."""
    while hasattr(fun, _WITHOUT):
        fun = getattr(fun, _WITHOUT)
    return fun


def in_task() -> bool:
    """Whether a task is being traced for a batcher that looks for marks."""
    try:
        jax.lax.axis_size(_TASK_AXIS)
    except NameError:
        return False
    return True


def looks_for_marks(batcher: object) -> bool:
    """Whether a batcher, or one inside it, looks for marks in its tasks."""
    return wants(batcher, "looks_for_marks")


def wants(batcher: object, what: str) -> bool:
    """Whether a batcher, or one inside it, has a class variable that says yes."""
    if getattr(batcher, what, False):
        return True
    inner = [x for x in vars(batcher).values() if hasattr(x, what)]
    return any(wants(x, what) for x in inner)


def with_marks(trace: Callable[[], _T]) -> _T:
    """Traces something with the marks in it as equations."""
    traced: list[_T] = []

    def probe() -> tuple[()]:
        traced.append(trace())
        return ()

    token = _CALLS.set(_Calls())
    try:
        jax.vmap(probe, axis_name=_TASK_AXIS, axis_size=1)()
    finally:
        _CALLS.reset(token)
    return traced[0]


def _call(
    calls: _Calls, fun: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call of `fun` as one equation, traced once for each type of its arguments."""
    # What is known while tracing, such as an array of NumPy, stays known.
    dynamic, static = eqx.partition((args, kwargs), _is_traced)
    key = (id(fun), name, _types(dynamic), _identities(static))
    try:
        function = calls.functions.get(key)
    except TypeError:  # a tree that cannot be compared: a trace of its own
        key, function = object(), None
    if function is None:

        def named(dynamic: Any) -> Any:
            full_args, full_kwargs = eqx.combine(dynamic, static)
            arrays, rest = eqx.partition(fun(*full_args, **full_kwargs), _is_array)
            made.opaque = not all(map(_is_plain, jax.tree.leaves(rest)))
            made.plain = None if made.opaque else rest
            return None if made.opaque else arrays

        named.__name__ = named.__qualname__ = _unique(calls, fun, name)
        made = function = _Function(fun, static, jax.jit(named))
        calls.functions[key] = made
    # Its first call tells whether it is opaque: what it returns, such as a function,
    # may close over arrays, which must not leave the trace of the call.
    arrays = None if function.opaque else function.jitted(dynamic)
    if function.opaque:
        return fun(*args, **kwargs)
    return eqx.combine(arrays, function.plain)


def _types(tree: Any) -> Hashable:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(map(jax.typeof, leaves))


def _identities(tree: Any) -> Hashable:
    """What tells trees apart whose leaves may be neither hashed nor compared."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((type(x), repr(x)) if _is_plain(x) else id(x) for x in leaves)


def _unique(calls: _Calls, fun: Any, name: str) -> str:
    """The name, with a number where another function goes by it already."""
    number, found = 1, name
    while calls.names.setdefault(found, fun) is not fun:
        number += 1
        found = f"{name}#{number}"
    return found


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _is_plain(x: Any) -> bool:
    return isinstance(x, bool | int | float | complex | str)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)
