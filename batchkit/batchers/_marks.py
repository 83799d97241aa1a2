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
import numpy as np


# Names of functions that are called together, as they stand in a program: those that
# a user marked, and those that were taken for it.
MARKED: Final = "batchkit.expensive:"
SUPPOSED: Final = "batchkit.function:"

# Bound while a task is traced for a batcher that looks for marks. JAX looks up what it
# has traced before by the axes that are bound, so no trace without marks is reused.
_TASK_AXIS: Final = "batchkit.task"

_P = ParamSpec("_P")
_T = TypeVar("_T")


@final
@dataclass
class _Calls:
    """The marked functions that one trace has come by."""

    names: dict[str, Any] = field(default_factory=dict)
    jitted: dict[Hashable, tuple[Any, Callable[..., Any], list[Any]]] = field(
        default_factory=dict
    )


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

    return marked


def in_task() -> bool:
    """Whether a task is being traced for a batcher that looks for marks."""
    try:
        jax.lax.axis_size(_TASK_AXIS)
    except NameError:
        return False
    return True


def looks_for_marks(batcher: object) -> bool:
    """Whether a batcher, or one inside it, looks for marks in its tasks."""
    if getattr(batcher, "looks_for_marks", False):
        return True
    inner = [x for x in vars(batcher).values() if hasattr(x, "looks_for_marks")]
    return any(map(looks_for_marks, inner))


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
    dynamic, static = eqx.partition((args, kwargs), _is_array)
    leaves, treedef = jax.tree.flatten(static)
    # Results that are no arrays may depend on the types of the arguments as well.
    arrays, where = jax.tree.flatten(dynamic)
    types = (where, *map(jax.typeof, arrays))
    key: Hashable = (id(fun), treedef, types, tuple(map(_told_apart, leaves)))
    try:
        hash(key)
    except TypeError:  # an argument that cannot be compared: a trace of its own
        key = object()
    if key not in calls.jitted:
        plain: list[Any] = []  # results that are no arrays

        def named(dynamic: Any) -> Any:
            full_args, full_kwargs = eqx.combine(dynamic, static)
            arrays, rest = eqx.partition(fun(*full_args, **full_kwargs), _is_array)
            plain[:] = [rest]
            return arrays

        named.__name__ = named.__qualname__ = _unique(calls, fun, name)
        calls.jitted[key] = fun, jax.jit(named), plain
    _, jitted, plain = calls.jitted[key]
    return eqx.combine(jitted(dynamic), plain[0])


def _unique(calls: _Calls, fun: Any, name: str) -> str:
    """The name, with a number where another function goes by it already."""
    number, found = 1, name
    while calls.names.setdefault(found, fun) is not fun:
        number += 1
        found = f"{name}#{number}"
    return found


def _told_apart(x: Any) -> Any:
    """Equal only for what no function tells apart: 1, 1.0 and True are equal."""
    return type(x), repr(x) if isinstance(x, int | float | complex) else x


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)
