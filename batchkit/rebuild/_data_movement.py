"""Sites that only move data, such as ravelling a pytree for every particle.

Under `jax.vmap` they cost nothing and hold no more than their result; chunk after chunk
they would become a loop. They are recognised by the jaxpr of one task.
"""

from typing import Any, Final, final

import jax.extend as jex

from .._util._jaxprs import inner_jaxprs


MOVES_DATA: Final = frozenset(
    {
        "bitcast_convert_type",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "dynamic_slice",
        "dynamic_update_slice",
        "expand_dims",
        "gather",
        "iota",
        "pad",
        "random_unwrap",
        "random_wrap",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
    }
)
_CALLS: Final = frozenset({"closed_call", "core_call", "jit", "pjit"})


@final
class OnlyMovesDataError(Exception):
    """Raised while a batcher traces a task, to have it left to `jax.vmap`."""


def only_moves_data(jaxpr: jex.core.ClosedJaxpr) -> bool:
    """Whether every equation of a jaxpr only puts its inputs somewhere else."""
    return _moves(jaxpr.jaxpr)


def _moves(jaxpr: Any) -> bool:
    return all(
        eqn.primitive.name in MOVES_DATA
        or (eqn.primitive.name in _CALLS and all(map(_moves, inner_jaxprs(eqn))))
        for eqn in jaxpr.eqns
    )
