"""Whether two pieces of a program are the same computation.

A function that is called in several places is traced for each of its derivatives, so
equal programs need not be the same objects.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ._equations import is_literal, literal_value, opened


# Derivative rules: of one marked function they are the same wherever it is called.
_IGNORED: Final = {
    "custom_jvp_call": {"jvp_jaxpr_fun"},
    "custom_vjp_call": {"fwd_jaxpr_thunk", "bwd", "out_trees"},
}


def same_number(one: np.ndarray | np.generic, other: np.ndarray | np.generic) -> bool:
    """Whether two constants have the same type and the same bits."""
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def same_equation(one: Any, other: Any) -> bool:
    """Whether two equations compute the same from the same inputs."""
    return one is other or (
        one.primitive is other.primitive
        and len(one.invars) == len(other.invars)
        and len(one.outvars) == len(other.outvars)
        and _same_params(one.params, other.params, _IGNORED.get(one.primitive.name, ()))
    )


def _same_params(
    one: Mapping[str, Any], other: Mapping[str, Any], ignored: Any
) -> bool:
    return one.keys() == other.keys() and all(
        name in ignored or _same(value, other[name]) for name, value in one.items()
    )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
        return _same_jaxpr(one, other)
    if isinstance(one, tuple | list):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(map(_same, one, other))
        )
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # whatever a comparison of strangers raises
        return False


def _same_jaxpr(one: Any, other: Any) -> bool:
    if not (hasattr(other, "eqns") or hasattr(other, "jaxpr")):
        return False
    first, second = opened(one), opened(other)
    if len(first.consts) != len(second.consts):
        return False
    if not all(a is b for a, b in zip(first.consts, second.consts, strict=True)):
        return False
    a, b = first.jaxpr, second.jaxpr
    if a is b:
        return True
    if len(a.eqns) != len(b.eqns):
        return False
    places: tuple[dict[Any, int], dict[Any, int]] = {}, {}
    for xs, ys in ((a.constvars, b.constvars), (a.invars, b.invars)):
        if not _same_new(xs, ys, places):
            return False
    for x, y in zip(a.eqns, b.eqns, strict=True):
        if not (
            same_equation(x, y)
            and _same_read(x.invars, y.invars, places)
            and _same_new(x.outvars, y.outvars, places)
        ):
            return False
    return _same_read(a.outvars, b.outvars, places)


def _same_new(
    xs: Sequence[Any], ys: Sequence[Any], places: tuple[dict[Any, int], dict[Any, int]]
) -> bool:
    if len(xs) != len(ys):
        return False
    for x, y in zip(xs, ys, strict=True):
        if (x.aval.shape, x.aval.dtype) != (y.aval.shape, y.aval.dtype):
            return False
        places[0][x] = places[1][y] = len(places[0])
    return True


def _same_read(
    xs: Sequence[Any], ys: Sequence[Any], places: tuple[dict[Any, int], dict[Any, int]]
) -> bool:
    if len(xs) != len(ys):
        return False
    for x, y in zip(xs, ys, strict=True):
        if is_literal(x) != is_literal(y):
            return False
        if is_literal(x):
            if not same_number(literal_value(x), literal_value(y)):
                return False
        elif places[0].get(x) != places[1].get(y):
            return False
    return True
