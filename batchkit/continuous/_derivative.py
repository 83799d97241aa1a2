"""Arrays that cannot be differentiated in reverse mode, and say why.

A primitive of its own, because JAX's `linear_call`, which could also refuse to be
transposed, cannot be mapped.
"""

from typing import Any, NoReturn

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


_forward_only = jex.core.Primitive("batchkit_forward_only")


def forward_only(tree: PyTree) -> PyTree:
    """The same arrays, but for reverse-mode differentiation."""

    def guard(x: Any) -> Any:
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return _forward_only.bind(x) if inexact else x

    return jax.tree.map(guard, tree)


def _identity(x: Any) -> Any:
    return x


def _refuse(*_: Any) -> NoReturn:
    raise ValueError(
        "Reverse-mode differentiation through Continuous is not possible: its lanes "
        "run in a loop whose length depends on the values, and the way there is not "
        "stored. Use `Vmap()`, `Chunked` or `Sequential()` where you take a gradient "
        "of the whole batch (of tasks whose own loops allow it), or forward mode "
        "(`jax.jvp`, `jax.jacfwd`). Gradients inside a task are fine."
    )


_forward_only.def_impl(_identity)
_forward_only.def_abstract_eval(_identity)
ad.deflinear2(_forward_only, _refuse)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, lambda _, x: [x])
