"""Which of several marked functions is worth a pause."""

from typing import Any

import jax
import jax.extend as jex

from .._util._jaxprs import equations, inner_jaxprs
from ..batchers._marks import MARKED, SUPPOSED
from ._equations import called, communicates, control_flow, name_of_call


def marked_calls(jaxpr: Any) -> dict[str, list[Any]]:
    """The equations that call each marked function, by its name in the program.

    Those inside of what only JAX can run, such as a linear solver, cannot be paused at.
    """
    found: dict[str, list[Any]] = {}
    for eqn in jaxpr.eqns:
        name = name_of_call(eqn)
        # What returns no arrays, such as a maker of functions, costs nothing.
        if eqn.outvars and name.startswith((MARKED, SUPPOSED)):
            found.setdefault(name, []).append(eqn)
        if called(eqn) is None and control_flow(eqn, eqn.invars) is None:
            continue
        for inner in inner_jaxprs(eqn):
            for name, calls in marked_calls(inner).items():
                found.setdefault(name, []).extend(calls)
    return found


def without_callers(calls: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Those functions that call no other one.

    A kernel that is handed in costs more than the density that it is given to call, but
    lanes that wait for whole kernels wait for the slowest of them.
    """

    def calls_another(name: str, eqn: Any) -> bool:
        return any(marked_calls(x).keys() - {name} for x in inner_jaxprs(eqn))

    return {
        name: eqns
        for name, eqns in calls.items()
        if not any(calls_another(name, eqn) for eqn in eqns)
    }


def costliest(calls: dict[str, list[Any]]) -> tuple[str, float]:
    """The function whose costliest call has most operations, and how many."""
    costs = {name: max(map(operations, eqns)) for name, eqns in calls.items()}
    name = max(costs, key=lambda name: costs[name])
    return name, costs[name]


def operations(eqn: Any) -> float:
    """How many floating-point operations XLA counts in one call; each loop once."""
    call = called(eqn)
    assert call is not None
    closed = jex.core.ClosedJaxpr(call.jaxpr, list(call.consts))
    args = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in eqn.invars]
    if any(map(communicates, equations(call.jaxpr))):
        return 0.0  # it cannot be compiled by itself
    lowered = jax.jit(jex.core.jaxpr_as_fun(closed)).lower(*args)
    analysis = lowered.cost_analysis()
    if isinstance(analysis, list | tuple):
        analysis = analysis[0]
    costs = analysis or {}
    return costs.get("flops", 0.0) + costs.get("transcendentals", 0.0)
