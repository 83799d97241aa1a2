"""Walking through a jaxpr and those inside of its equations; stand-ins for values."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Every jaxpr among the parameters of an equation, opened."""
    for leaf in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
        if isinstance(leaf, jex.core.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, jex.core.Jaxpr):
            yield leaf


def inner_equations(eqn: Any) -> Iterator[Any]:
    """The equations of the jaxprs inside of an equation, however deep."""
    for jaxpr in inner_jaxprs(eqn):
        yield from equations(jaxpr)


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        yield from inner_equations(eqn)


def zeros(x: Any) -> Any:
    """Zeros of a shape and type, for abstract runs that show what becomes of them."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return jnp.zeros(x.shape, x.dtype)
    # Of NumPy, whose dtypes JAX narrows without a warning.
    return np.zeros(x.shape, x.dtype)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)
