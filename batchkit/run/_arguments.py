"""Arguments that functions of several kinds take, and refuse alike."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.errors import (
    ConcretizationTypeError,
    TracerArrayConversionError,
    TracerBoolConversionError,
)
from jaxtyping import PyTree

from .._util._formats import format_type as kind_of, format_value as in_short
from ..batchers._abstract import check_batcher as check_batcher


_BOOL_ERRORS: Final = TracerBoolConversionError
_NUMBER_ERRORS: Final = (ConcretizationTypeError, TracerArrayConversionError)
_BRANCHES: Final = (
    "Python's `if` cannot depend on a position; use `jnp.where` or `jax.lax.cond`."
)
_NUMPY: Final = (
    "It cannot call NumPy, SciPy or other code that is not of JAX. Use `jax.numpy` and "
    "`jax.scipy`, or `jax.pure_callback`, which has no gradient of its own: give it "
    "one by `jax.custom_vjp` if the sampler takes gradients."
)


def check_count(owner: str, name: str, value: object, remedy: str = "") -> int:
    """An int of at least 1, or an error.

    **Arguments:**

    - `owner`: what it is an argument of, such as `"run_chains"`.
    - `name`: what it is called there.
    - `value`: what was given for it.
    - `remedy`: what to do in place of a smaller number, after a space.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{owner}({name}={in_short(value)}): {name} must be an int, at least 1; "
            f"got {kind_of(value)}."
        )
    if value < 1:
        raise ValueError(f"{owner}({name}={value}): {name} must be at least 1.{remedy}")
    return value


def check_acceptance(owner: str, value: object) -> float:
    """A rate between 0 and 1, or an error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{owner}(target_acceptance={in_short(value)}): target_acceptance must be "
            f"a number between 0 and 1, such as 0.8; got {kind_of(value)}."
        )
    if not 0 < value < 1:
        raise ValueError(
            f"{owner}(target_acceptance={value}): target_acceptance must be between "
            "0 and 1, such as 0.8, or 0.95 if transitions diverge."
        )
    return float(value)


def check_not_traced(owner: str, *arguments: PyTree) -> None:
    """Raises `TypeError` inside `jax.jit`, `jax.vmap` and other transformations.

    **Arguments:**

    - `owner`: the function that must not be traced.
    - `arguments`: what it was called with, pytrees.
    """
    # Inside jit a constant is traced too, inside vmap and grad only the arguments are.
    leaves = [jnp.zeros(()), *jax.tree.leaves(arguments)]
    if any(isinstance(x, Tracer) for x in leaves):
        raise TypeError(
            f"{owner} was called inside `jax.jit`, `jax.vmap` or another "
            "transformation of JAX. It compiles its own programs and watches them from "
            "the host, so it cannot be traced. Call it outside, without `jax.jit`."
        )


def row_of(positions: PyTree) -> PyTree:
    """The shapes and dtypes of one position, from those of arrays of many."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)


@contextlib.contextmanager
def noting_position(owner: str, name: str, row: PyTree) -> Iterator[None]:
    """Adds notes to what a function of the user's raises while the body traces it.

    **Arguments:**

    - `owner`: the function that the user called.
    - `name`: the name of the user's function.
    - `row`: one position, or its shapes and dtypes.
    """
    try:
        yield
    except _BOOL_ERRORS as error:
        error.add_note(f"{owner} was tracing {name}. {_BRANCHES}")
        raise
    except _NUMBER_ERRORS as error:
        error.add_note(f"{owner} was tracing {name}. {_NUMPY}")
        raise
    except Exception as error:
        error.add_note(
            f"{owner} was tracing {name}, a function of one argument, which is one "
            f"position: {in_short(row)}."
        )
        raise


def check_scalar(
    owner: str, name: str, function: Callable[..., Any], row: PyTree
) -> np.dtype:
    """The dtype of a function of one position; raises if that is no real number.

    What the function raises gets notes, see `noting_position`.

    **Arguments:**

    - `owner`: the function that the user called.
    - `name`: the name of the user's function.
    - `function`: the user's function.
    - `row`: one position, or its shapes and dtypes.
    """
    with noting_position(owner, name, row):
        out = jax.eval_shape(function, row)
    dtype, shape = getattr(out, "dtype", None), getattr(out, "shape", None)
    if dtype is None or shape != ():
        raise TypeError(
            f"{owner}({name}=...): {name} must return one real number, a scalar, for "
            f"one position; got {in_short(out)}. Sum over data and dimensions, as in "
            "`jnp.sum(...)`."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{owner}({name}=...): {name} must return one real number, of a floating-"
            f"point dtype; got {in_short(out)}. Compute with floats, or convert the "
            "result, as in `jnp.asarray(value, float)`."
        )
    return dtype
