"""Reading JAX's equations: the one file that knows their names and parameters.

The parameters of control flow are JAX's own business and change between releases
(`scan` counted its operands by `num_consts` and `num_carry` until 0.10 and describes
them by trees since). Tested with JAX 0.9, 0.10 and 0.12; what is not recognised is an
error that says so, never a guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

import jax
import jax.core
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from .._util._jaxprs import inner_equations


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

# `jax.extend` has it since 0.10, when `jax.core` began to warn of it.
_DROPPED: Any = getattr(jex.core, "DropVar", None) or getattr(jax.core, "DropVar", None)


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
    return any(each.primitive.name == "while" for each in inner_equations(eqn))


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


def with_weak_type(x: Any) -> Any:
    """The same array, but with the weak type that numbers of Python have."""
    return jex.core.primitives.convert_element_type_p.bind(
        x, new_dtype=x.dtype, weak_type=True, sharding=None
    )


def literal_value(literal: Any) -> np.ndarray:
    """The value of a literal, in the type that it has in the program."""
    return np.asarray(literal.val, literal.aval.dtype)


def is_literal(atom: Any) -> bool:
    """Whether an atom of a jaxpr is a number and no variable."""
    return isinstance(atom, jex.core.Literal)


def is_dropped(var: Any) -> bool:
    """Whether nobody reads a result."""
    return isinstance(var, _DROPPED)


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
