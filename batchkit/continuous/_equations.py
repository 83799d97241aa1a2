"""JAX's equations: reading their parameters, and evaluating them under predication.

This is the one file that names JAX's primitives and their parameters. Those of control
flow are private to JAX and change between releases (`scan` counted its operands by
`num_consts` and `num_carry` until 0.10 and describes them by trees since). Tested with
JAX 0.9, 0.10 and 0.12; an unknown form is an error, never a guess.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

import jax
import jax.core
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from .._util._jaxprs import (
    axes_of_effects,
    equations,
    evaluate,
    inner_equations,
    is_literal,
    literal_value,
)
from ..batchers._splitting import JAX_PRIMITIVES, UNVMAP


# Primitives that only call a jaxpr, and the parameter that holds it.
_CALLS: Final = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}

# These change the type of a value inside `jax.shard_map`, and communicate nothing.
_SILENT: Final = {"pcast", "pvary"}


@final
@dataclass(frozen=True)
class WhileLoop:
    """A `while` equation and its operands."""

    cond: ClosedJaxpr
    cond_consts: Sequence[Any]
    body: ClosedJaxpr
    body_consts: Sequence[Any]
    init: Sequence[Any]


@final
@dataclass(frozen=True)
class Scan:
    """A `scan` equation and its operands."""

    body: ClosedJaxpr
    consts: Sequence[Any]
    init: Sequence[Any]
    rows: Sequence[Any]  # the scanned arrays
    length: int
    reverse: bool


@final
@dataclass(frozen=True)
class Cond:
    """A `cond` or `switch` equation and its operands."""

    branches: tuple[ClosedJaxpr, ...]
    index: Any
    args: Sequence[Any]


def called_jaxpr(eqn: Any) -> ClosedJaxpr | None:
    """Return the jaxpr of an equation that only calls it; None for others."""
    name = eqn.primitive.name
    return closed_jaxpr(_parameter(eqn, _CALLS[name])) if name in _CALLS else None


def control_flow(eqn: Any, inputs: Sequence[Any]) -> WhileLoop | Scan | Cond | None:
    """Return a loop or a branch with its operands by role; None for other equations."""
    name = eqn.primitive.name
    if name == "while":
        conds = _parameter(eqn, "cond_nconsts")
        consts = conds + _parameter(eqn, "body_nconsts")
        return _with_scalar_test(
            WhileLoop(
                closed_jaxpr(_parameter(eqn, "cond_jaxpr")),
                inputs[:conds],
                closed_jaxpr(_parameter(eqn, "body_jaxpr")),
                inputs[conds:consts],
                inputs[consts:],
            )
        )
    if name == "scan":
        consts, carries = _scan_counts(eqn)
        return Scan(
            closed_jaxpr(_parameter(eqn, "jaxpr")),
            inputs[:consts],
            inputs[consts : consts + carries],
            inputs[consts + carries :],
            _parameter(eqn, "length"),
            _parameter(eqn, "reverse"),
        )
    if name == "cond":
        branches = tuple(map(closed_jaxpr, _parameter(eqn, "branches")))
        return Cond(branches, inputs[0], inputs[1:])
    return None


def closed_jaxpr(jaxpr: Any) -> ClosedJaxpr:
    """Return a jaxpr with its constants; open ones without constants are accepted."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr
    return ClosedJaxpr(jaxpr, list(getattr(jaxpr, "consts", ())))


def jit_name(eqn: Any) -> str:
    """Return the name of the function that a `jit` equation calls, or an empty one."""
    is_jit = eqn.primitive.name in ("jit", "pjit")
    return str(_parameter(eqn, "name")) if is_jit else ""


def is_collective(eqn: Any) -> bool:
    """Return whether an equation communicates along a named axis."""
    if eqn.primitive.name in _SILENT:
        return False
    names = eqn.params.get("axis_name", eqn.params.get("axes", ()))
    names = names if isinstance(names, tuple | list) else (names,)
    return bool(axes_of_effects(eqn)) or any(isinstance(x, str) for x in names)


def has_while_loop(eqn: Any) -> bool:
    """Return whether an equation is or holds a `while`, which might never end."""
    return _holds(eqn, ("while",))


def has_loop(eqn: Any) -> bool:
    """Return whether an equation is or holds a loop."""
    return _holds(eqn, ("scan", "while"))


def has_callback(jaxpr: Any) -> bool:
    """Return whether a jaxpr calls a Python function on the host."""
    return any(map(is_callback, equations(jaxpr)))


def is_callback(eqn: Any) -> bool:
    """Return whether an equation calls a Python function on the host."""
    return eqn.primitive.name in ("io_callback", "pure_callback")


def needs_valid_inputs(eqn: Any) -> bool:
    """Return whether an equation may do harm if some lanes have stale inputs."""
    # A loop might never end. A primitive that is not JAX's own may hide a loop, call
    # the host, or reduce over the lanes.
    primitives = {each.primitive for each in (eqn, *inner_equations(eqn))}
    return has_while_loop(eqn) or bool(eqn.effects or primitives - JAX_PRIMITIVES)


def _holds(eqn: Any, names: Sequence[str]) -> bool:
    every = (eqn, *inner_equations(eqn))
    return any(each.primitive.name in names for each in every)


def with_weak_type(x: Any) -> Any:
    """Return the array with the weak type that Python's numbers have."""
    # No public function of JAX makes a weak type from an array.
    return jex.core.primitives.convert_element_type_p.bind(
        x, new_dtype=x.dtype, weak_type=True, sharding=None
    )


def interpret(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    literal: Callable[[np.ndarray], Any],
    rule: Callable[[Any, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Interpret a jaxpr over any domain: arrays, operands of a program, or booleans."""
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return literal(literal_value(atom)) if is_literal(atom) else env[atom]

    for eqn in jaxpr.eqns:
        outs = rule(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_masked(eqn: Any, active: Any, *values: Any) -> list[Any]:
    """Evaluate an equation under a lane mask: no loop in it runs for inactive lanes."""
    # Under `jax.vmap` a loop runs until its last lane is done. Inactive lanes hold
    # stale values, with which a loop might never end, and an error might be raised.
    # Other results of theirs do no harm, since they are dropped.
    if not _holds(eqn, ("while", *UNVMAP)):
        return evaluate(eqn, *values)
    if eqn.primitive.name in UNVMAP:
        (x,) = values
        return evaluate(eqn, jnp.where(active, x, _neutral(eqn.primitive.name, x)))
    inside = functools.partial(_interpret_masked, active)
    call = called_jaxpr(eqn)
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
            # `jax.vmap` makes a select of the branch: every lane executes all branches,
            # and is inactive in those that it does not take.
            branches = [
                lambda *args, i=i, branch=branch: tuple(
                    _interpret_masked(active & (taken == i), branch, args)
                )
                for i, branch in enumerate(cond.branches)
            ]
            return list(jax.lax.switch(cond.index, branches, *cond.args))
        case None:  # a loop inside a primitive that cannot be opened
            return evaluate(eqn, *values)


def _neutral(unvmap: str, x: Any) -> Any:
    """Return the value that does not change a reduction over lanes."""
    if unvmap == "unvmap_max":
        return jnp.iinfo(x.dtype).min
    return unvmap == "unvmap_all"


def _interpret_masked(
    active: Any, jaxpr: ClosedJaxpr, args: Sequence[Any]
) -> list[Any]:
    return interpret(
        jaxpr.jaxpr,
        jaxpr.consts,
        args,
        lambda value: value,
        lambda eqn, values: evaluate_masked(eqn, active, *values),
    )


def _strong(values: Sequence[Any]) -> tuple[Any, ...]:
    """Remove weak types, which the body of a loop would not return."""
    return tuple(jnp.asarray(x, jnp.result_type(x)) for x in values)


def _with_scalar_test(loop: WhileLoop) -> WhileLoop:
    """Return a loop with a scalar test where `jax.vmap` left one test for each row."""
    # It runs as long as the test of any row holds; the other rows keep their values.
    (test,) = loop.cond.jaxpr.outvars
    if not test.aval.shape:
        return loop
    conds, bodies = len(loop.cond_consts), len(loop.body_consts)

    def test_any(*args: Any) -> Any:
        return jnp.any(jaxpr_as_fun(loop.cond)(*args)[0])

    def body(*args: Any) -> list[Any]:
        carry = args[conds + bodies :]
        (rows,) = jaxpr_as_fun(loop.cond)(*args[:conds], *carry)
        return [
            jnp.where(rows.reshape(*rows.shape, *[1] * (x.ndim - rows.ndim)), new, x)
            for new, x in zip(
                jaxpr_as_fun(loop.body)(*args[conds:]), carry, strict=True
            )
        ]

    def types(jaxpr: ClosedJaxpr) -> list[Any]:
        avals = [x.aval for x in jaxpr.jaxpr.invars]
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]

    return WhileLoop(
        closed_jaxpr(jax.make_jaxpr(test_any)(*types(loop.cond))),
        loop.cond_consts,
        closed_jaxpr(
            jax.make_jaxpr(body)(*types(loop.cond)[:conds], *types(loop.body))
        ),
        [*loop.cond_consts, *loop.body_consts],
        loop.init,
    )


def _scan_counts(eqn: Any) -> tuple[int, int]:
    """Return how many constants and carried values a scan has."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], _parameter(eqn, "num_carry")
    try:
        consts, carry, _ = _parameter(eqn, "ft_in").unpack()
        return len(consts), len(carry)
    except (AttributeError, TypeError, ValueError):
        _refuse(eqn, "its trees of operands cannot be read")


def _parameter(eqn: Any, name: str) -> Any:
    if name not in eqn.params:
        _refuse(eqn, f"it has no parameter {name!r}")
    return eqn.params[name]


def _refuse(eqn: Any, what: str) -> NoReturn:
    raise NotImplementedError(
        f"Continuous cannot read the equation {eqn.primitive.name!r} of JAX "
        f"{jax.__version__}: {what}. It is tested with JAX 0.9, 0.10 and 0.12; use one "
        "of them, or a newer batchkit, or another batcher."
    )
