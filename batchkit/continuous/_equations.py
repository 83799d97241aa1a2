"""Reading JAX's equations: the one file that knows their names and parameters.

The parameters of control flow are JAX's own business and change between releases
(`scan` counted its operands by `num_consts` and `num_carry` until 0.10 and describes
them by trees since). Tested with JAX 0.9, 0.10 and 0.12; what is not recognised is an
error that says so, never a guess.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

import jax
import jax.core
import jax.extend as jex
import jax.numpy as jnp
import numpy as np


# Equations that only call a jaxpr, and the parameter that holds it.
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

# Those of them that come with a rule for their derivative.
_OWN_DERIVATIVE: Final = {"custom_jvp_call", "custom_vjp_call"}
# `jax.extend` has it since 0.10, when `jax.core` began to warn of it.
_DROPPED: Final = getattr(jex.core, "DropVar", None) or getattr(jax.core, "DropVar")  # noqa: B009


# They only tell the type of a value inside `jax.shard_map`.
_SILENT: Final = {"pcast", "pvary"}


@final
@dataclass(frozen=True)
class Jaxpr:
    """A jaxpr with the values of its constants."""

    jaxpr: Any
    consts: tuple[Any, ...] = ()

    def __call__(self, *args: Any) -> list[Any]:
        closed = jex.core.ClosedJaxpr(self.jaxpr, list(self.consts))
        return jex.core.jaxpr_as_fun(closed)(*args)


@final
@dataclass(frozen=True)
class WhileLoop:
    """A `while` equation and what it is applied to."""

    cond: Jaxpr
    cond_consts: Sequence[Any]
    body: Jaxpr
    body_consts: Sequence[Any]
    init: Sequence[Any]


@final
@dataclass(frozen=True)
class Scan:
    """A `scan` equation and what it is applied to."""

    body: Jaxpr
    consts: Sequence[Any]
    init: Sequence[Any]
    rows: Sequence[Any]  # scanned over
    length: int
    reverse: bool


@final
@dataclass(frozen=True)
class Cond:
    """A `cond` or `switch` equation and what it is applied to."""

    branches: tuple[Jaxpr, ...]
    index: Any
    args: Sequence[Any]


def called(eqn: Any) -> Jaxpr | None:
    """The jaxpr of an equation that does nothing but call it."""
    name = eqn.primitive.name
    return opened(_parameter(eqn, _CALLS[name])) if name in _CALLS else None


def control_flow(eqn: Any, inputs: Sequence[Any]) -> WhileLoop | Scan | Cond | None:
    """A loop or a branch, with its inputs told apart; None for other equations."""
    name = eqn.primitive.name
    if name == "while":
        conds = _parameter(eqn, "cond_nconsts")
        consts = conds + _parameter(eqn, "body_nconsts")
        return _with_one_test(
            WhileLoop(
                opened(_parameter(eqn, "cond_jaxpr")),
                inputs[:conds],
                opened(_parameter(eqn, "body_jaxpr")),
                inputs[conds:consts],
                inputs[consts:],
            )
        )
    if name == "scan":
        consts, carries = _scan_counts(eqn)
        return Scan(
            opened(_parameter(eqn, "jaxpr")),
            inputs[:consts],
            inputs[consts : consts + carries],
            inputs[consts + carries :],
            _parameter(eqn, "length"),
            _parameter(eqn, "reverse"),
        )
    if name == "cond":
        branches = tuple(opened(branch) for branch in _parameter(eqn, "branches"))
        return Cond(branches, inputs[0], inputs[1:])
    return None


def opened(jaxpr: Any) -> Jaxpr:
    """A closed jaxpr, or an open one without constants, as one kind of thing."""
    if isinstance(jaxpr, jex.core.ClosedJaxpr):
        return Jaxpr(jaxpr.jaxpr, tuple(jaxpr.consts))
    return Jaxpr(jaxpr, tuple(getattr(jaxpr, "consts", ())))


def name_of_call(eqn: Any) -> str:
    """The name of the function that an equation of `jax.jit` calls, or nothing."""
    is_jit = eqn.primitive.name in ("jit", "pjit")
    return str(_parameter(eqn, "name")) if is_jit else ""


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Every jaxpr among the parameters of an equation."""
    for leaf in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
        if _is_jaxpr(leaf):
            yield opened(leaf).jaxpr


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def communicates(eqn: Any) -> bool:
    """Whether an equation needs those who are mapped over some axis beside it."""
    if eqn.primitive.name in _SILENT:
        return False
    names = eqn.params.get("axis_name", eqn.params.get("axes", ()))
    names = names if isinstance(names, tuple | list) else (names,)
    effects = any(hasattr(effect, "name") for effect in eqn.effects)
    return effects or any(isinstance(name, str) for name in names)


def may_not_end(eqn: Any) -> bool:
    """Whether an equation holds a loop whose length depends on values."""
    if eqn.primitive.name == "while":
        return True
    return any(each.primitive.name == "while" for each in _inner_equations(eqn))


def has_own_derivative(eqn: Any) -> bool:
    """Whether an equation holds a rule for its derivative, which cannot be compared."""
    names = (each.primitive.name for each in (eqn, *_inner_equations(eqn)))
    return not _OWN_DERIVATIVE.isdisjoint(names)


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
    if call is not None and eqn.primitive.name in _OWN_DERIVATIVE:
        return _run_with_derivative(eqn, call, active, values)
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


def _run_with_derivative(
    eqn: Any, call: Jaxpr, active: Any, values: Sequence[Any]
) -> list[Any]:
    """The same for a function with a derivative of its own, which it keeps."""
    function, kept = _function(eqn)
    smooth = [jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in eqn.invars]

    @jax.custom_jvp
    def guarded(active: Any, *values: Any) -> tuple[Any, ...]:
        outs = _run_jaxpr(active, call, values)
        return tuple(out for out, keep in zip(outs, kept, strict=True) if keep)

    @guarded.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        active, *values = primals
        moved = [t for t, s in zip(tangents[1:], smooth, strict=True) if s]

        def derivative(values: Any, moved: Any) -> list[Any]:
            rest = iter(moved)
            pairs = zip(values, smooth, strict=True)
            full = [next(rest) if s else _no_tangent(x) for x, s in pairs]
            _, outs = jax.jvp(function, tuple(values), tuple(full))
            return [t for t in outs if t.dtype != jax.dtypes.float0]

        outs = guarded(active, *values)
        rule = opened(jax.make_jaxpr(derivative)(values, moved))
        given = iter(_run_jaxpr(active, rule, [*values, *moved]))
        return outs, tuple(
            next(given) if jnp.issubdtype(x.dtype, jnp.inexact) else _no_tangent(x)
            for x in outs
        )

    outs = iter(guarded(active, *values))
    return [next(outs) if keep else None for keep in kept]


def _with_one_test(loop: WhileLoop) -> WhileLoop:
    """The same loop, with one test where `jax.vmap` left one for each of its rows.

    It turns as long as one row goes on; the others keep what they have.
    """
    (test,) = loop.cond.jaxpr.outvars
    if not test.aval.shape:
        return loop
    conds, bodies = len(loop.cond_consts), len(loop.body_consts)

    def goes_on(*args: Any) -> Any:
        return jnp.any(loop.cond(*args)[0])

    def turn(*args: Any) -> list[Any]:
        carry = args[conds + bodies :]
        (rows,) = loop.cond(*args[:conds], *carry)
        return [
            jnp.where(rows.reshape(*rows.shape, *[1] * (x.ndim - rows.ndim)), new, x)
            for new, x in zip(loop.body(*args[conds:]), carry, strict=True)
        ]

    def types(jaxpr: Jaxpr) -> list[Any]:
        avals = [x.aval for x in jaxpr.jaxpr.invars]
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]

    return WhileLoop(
        opened(jax.make_jaxpr(goes_on)(*types(loop.cond))),
        loop.cond_consts,
        opened(jax.make_jaxpr(turn)(*types(loop.cond)[:conds], *types(loop.body))),
        [*loop.cond_consts, *loop.body_consts],
        loop.init,
    )


def _no_tangent(x: Any) -> np.ndarray:
    return np.zeros(jnp.shape(x), jax.dtypes.float0)


def with_weak_type(x: Any) -> Any:
    """The same array, but with the weak type that numbers of Python have."""
    return jex.core.primitives.convert_element_type_p.bind(
        x, new_dtype=x.dtype, weak_type=True, sharding=None
    )


def literal_value(literal: Any) -> np.ndarray:
    """The value of a literal, in the type that it has in the program."""
    return np.asarray(literal.val, literal.aval.dtype)


def _run_jaxpr(active: Any, jaxpr: Jaxpr, args: Sequence[Any]) -> list[Any]:
    env = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    env.update(zip(jaxpr.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return literal_value(atom) if is_literal(atom) else env[atom]

    for eqn in jaxpr.jaxpr.eqns:
        outs = run_guarded(eqn, active, *map(read, eqn.invars))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def is_literal(atom: Any) -> bool:
    """Whether an atom of a jaxpr is a number and no variable."""
    return isinstance(atom, jex.core.Literal)


def is_dropped(var: Any) -> bool:
    """Whether nobody reads a result."""
    return isinstance(var, _DROPPED)


def _strong(values: Sequence[Any]) -> tuple[Any, ...]:
    """Without weak types, which a loop could not keep."""
    return tuple(jnp.asarray(x, jnp.result_type(x)) for x in values)


def _function(eqn: Any) -> tuple[Callable[..., Sequence[Any]], list[bool]]:
    """An equation as a function of its inputs, and which results it returns."""
    kept = [not is_dropped(x) for x in eqn.outvars]
    invars = list(dict.fromkeys(x for x in eqn.invars if not is_literal(x)))
    jaxpr = jex.core.Jaxpr(
        (),
        invars,
        [x for x, keep in zip(eqn.outvars, kept, strict=True) if keep],
        [eqn],
        eqn.effects,
    )
    function = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, []))

    def on_all_inputs(*values: Any) -> Sequence[Any]:
        pairs = zip(eqn.invars, values, strict=True)
        given = {atom: value for atom, value in pairs if not is_literal(atom)}
        return function(*(given[x] for x in invars))

    return on_all_inputs, kept


def _scan_counts(eqn: Any) -> tuple[int, int]:
    """How many constants and carried values a scan has."""
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
        f"batchkit does not know the equation {eqn.primitive.name!r} of JAX "
        f"{jax.__version__}: {what}. Continuous is tested with JAX 0.9, 0.10 and 0.12; "
        "use one of them, or a newer batchkit, or another batcher."
    )


def _inner_equations(eqn: Any) -> Iterator[Any]:
    for jaxpr in inner_jaxprs(eqn):
        yield from equations(jaxpr)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)
