"""Traversal of a jaxpr and of the jaxprs nested in its equations."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np


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


def axis_names(jaxpr: Any) -> set[Any]:
    """Return the names of the mapped axes that the equations of a jaxpr use."""
    names: set[Any] = set()
    for eqn in equations(jaxpr):
        used = eqn.params.get("axis_name")
        names.update(used if isinstance(used, tuple) else (used,))
    # Most collectives are effects of the jaxpr; `ppermute` is only an equation.
    names |= {getattr(effect, "name", None) for effect in jaxpr.effects}
    return names - {None}


def zeros(x: Any) -> Any:
    """Make zeros with the shape and dtype of `x`, for abstract evaluation."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return jnp.zeros(x.shape, x.dtype)
    # A NumPy array: `jnp.zeros` warns when it narrows a 64-bit dtype.
    return np.zeros(x.shape, x.dtype)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)
