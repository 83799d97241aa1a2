"""Computing what an equation computes, in lanes that may have no business there."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.api_util import debug_info

from ._equations import (
    Cond,
    Jaxpr,
    Scan,
    WhileLoop,
    called,
    control_flow,
    is_dropped,
    is_literal,
    literal_value,
    may_not_end,
)


def run(eqn: Any, *values: Any) -> list[Any]:
    """What an equation computes, None for results that nobody reads."""
    function, kept = _function(eqn)
    outs = iter(function(*values))
    return [next(outs) if keep else None for keep in kept]


def run_guarded(eqn: Any, active: Any, *values: Any) -> list[Any]:
    """The same, but no loop in it turns unless `active`.

    Under `jax.vmap` a loop runs until the last lane is done. A lane that has no
    business here holds old values, with which a loop might never be.
    """
    if not may_not_end(eqn):
        return run(eqn, *values)
    inside = functools.partial(_run_jaxpr, active)
    call = called(eqn)
    if call is not None:
        return inside(call, values)
    match control_flow(eqn, values):
        case WhileLoop() as loop:
            return list(
                jax.lax.while_loop(
                    lambda c: active & inside(loop.cond, [*loop.cond_consts, *c])[0],
                    lambda c: tuple(inside(loop.body, [*loop.body_consts, *c])),
                    _strong(loop.init),
                )
            )
        case Scan() as scan:
            count = len(scan.init)

            def body(carry: Any, row: Any) -> tuple[Any, Any]:
                outs = inside(scan.body, [*scan.consts, *carry, *row])
                return tuple(outs[:count]), tuple(outs[count:])

            carry, rows = jax.lax.scan(
                body,
                _strong(scan.init),
                tuple(scan.rows),
                length=scan.length,
                reverse=scan.reverse,
            )
            return [*carry, *rows]
        case Cond() as cond:
            taken = jnp.clip(cond.index, 0, len(cond.branches) - 1)
            # Under `jax.vmap` every lane goes through all branches.
            branches = [
                lambda *args, i=i, branch=branch: tuple(
                    _run_jaxpr(active & (taken == i), branch, args)
                )
                for i, branch in enumerate(cond.branches)
            ]
            return list(jax.lax.switch(cond.index, branches, *cond.args))
        case None:  # a loop inside what only JAX can run
            return run(eqn, *values)


def _run_jaxpr(active: Any, jaxpr: Jaxpr, args: Sequence[Any]) -> list[Any]:
    env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    env.update(zip(jaxpr.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return literal_value(atom) if is_literal(atom) else env[atom]

    for eqn in jaxpr.jaxpr.eqns:
        outs = run_guarded(eqn, active, *map(read, eqn.invars))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _strong(values: Sequence[Any]) -> tuple[Any, ...]:
    """Without weak types, which a loop could not keep."""
    return tuple(jnp.asarray(x, jnp.result_type(x)) for x in values)


def _function(eqn: Any) -> tuple[Callable[..., Sequence[Any]], list[bool]]:
    """An equation as a function of its inputs, and which results it returns."""
    kept = [not is_dropped(x) for x in eqn.outvars]
    invars = list(dict.fromkeys(x for x in eqn.invars if not is_literal(x)))
    outvars = [x for x, keep in zip(eqn.outvars, kept, strict=True) if keep]

    def on_all_inputs(*values: Any) -> Sequence[Any]:
        pairs = zip(eqn.invars, values, strict=True)
        given = {atom: value for atom, value in pairs if not is_literal(atom)}
        return function(*(given[x] for x in invars))

    # JAX deprecates a jaxpr that does not say where it comes from.
    origin = debug_info(
        "Continuous",
        on_all_inputs,
        tuple(invars),
        {},
        result_paths_thunk=lambda: ("",) * len(outvars),
    )
    jaxpr = jex.core.Jaxpr((), invars, outvars, [eqn], eqn.effects, origin)
    function = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, []))

    return on_all_inputs, kept
