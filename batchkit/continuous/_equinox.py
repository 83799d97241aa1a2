"""Equinox's primitives for whole batches, rewritten to what they do for one task.

Loops of diffrax, optimistix and lineax ask about the batch around them: `unvmap_any`
keeps a loop going until the last task of a batch is done, `nonbatchable` demands one
step counter for all, and `select_if_vmap` protects tasks that are done before others.
Lanes have no such batch. Each runs a task by itself, at a step of its own, so these
primitives become what they are without `jax.vmap`: a reduction of one value, or the
identity. Primitives that hide an implementation, such as lineax's solvers, are replaced
by it, so that lanes can part in its loops. A loop of bounded length, which is a `scan`
that skips its remaining steps, becomes a `while` loop that ends in time.

Two places stay as they are. The expensive function runs for all lanes at once, as under
`jax.vmap`. And an error that the task raises (`equinox.error_if`) is a branch to a host
callback, which must not become a select, as it would then always be called. Its
condition stays a reduction over lanes, of which `evaluate_masked` takes active ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, final

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from .._util._jaxprs import equations, is_literal
from ._equations import (
    UNVMAP,
    Scan,
    called_jaxpr,
    control_flow,
    has_callback,
    is_callback,
)


_REDUCTIONS: Final = dict(zip(UNVMAP, (jnp.all, jnp.any, jnp.max), strict=True))

# The operand that each of these returns when it is not mapped.
_IDENTITIES: Final = {
    "nonbatchable": 0,
    "nondifferentiable_backward": 0,
    "nontraceable": 0,
    "select_if_vmap": 1,
}

# Parameters of a primitive of `equinox.internal.filter_primitive_bind`, whose `impl` is
# made of JAX operations.
_FILTERED: Final = {"flatten", "static", "treedef"}


def as_one_task(jaxpr: ClosedJaxpr, is_call: Callable[[Any], bool]) -> ClosedJaxpr:
    """Return a task in which no primitive outside of calls asks about its batch."""
    if not any(map(_is_rewritten, equations(jaxpr.jaxpr))):
        return jaxpr
    return _Rewriter(is_call).rewritten(jaxpr)


def _is_rewritten(eqn: Any) -> bool:
    name = eqn.primitive.name
    is_of_equinox = name in _REDUCTIONS or name in _IDENTITIES
    return is_of_equinox or _has_implementation(eqn) or _bounded_loop(eqn) is not None


def _has_implementation(eqn: Any) -> bool:
    name = eqn.primitive.name
    # `noinline` is compiled on its own, and called through the host.
    is_filtered = eqn.params.keys() >= _FILTERED and name != "noinline"
    return is_filtered or name == "maybe_set"


@final
class _Rewriter:
    """Rewrites a jaxpr and the jaxprs nested in it, each of them once."""

    def __init__(self, is_call: Callable[[Any], bool]) -> None:
        self._is_call = is_call
        self._done: dict[Any, Any] = {}

    def rewritten(self, jaxpr: Any) -> Any:
        if jaxpr not in self._done:
            if isinstance(jaxpr, ClosedJaxpr):
                # Since JAX 0.11 it is of the same type as its `jaxpr`.
                new = ClosedJaxpr(self._rewrite(jaxpr.jaxpr), jaxpr.consts)
            else:
                new = self._rewrite(jaxpr)
            self._done[jaxpr] = new
        return self._done[jaxpr]

    def _rewrite(self, jaxpr: Any) -> Any:
        guarding = _guarding(jaxpr)
        new: dict[Any, Any] = {}
        eqns: list[Any] = []

        def read(x: Any) -> Any:
            return x if is_literal(x) else new.get(x, x)

        def inline(fun: Callable[..., Any], eqn: Any) -> bool:
            """Put the equations of a function in place of one; False if impossible."""
            inputs = [x.aval for x in eqn.invars]
            closed = jax.make_jaxpr(fun)(
                *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)
            )
            if closed.consts:  # an open jaxpr has no place for them
                return False
            inner = self.rewritten(closed).jaxpr
            new.update(zip(inner.invars, map(read, eqn.invars), strict=True))
            for each in inner.eqns:
                eqns.append(each.replace(invars=list(map(read, each.invars))))
            new.update(zip(eqn.outvars, map(read, inner.outvars), strict=True))
            return True

        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if not self._is_call(eqn):
                if name in _IDENTITIES:
                    new[eqn.outvars[0]] = read(eqn.invars[_IDENTITIES[name]])
                    continue
                is_reduced = name in _REDUCTIONS and eqn.outvars[0] not in guarding
                if is_reduced and inline(_REDUCTIONS[name], eqn):
                    continue
                if _has_implementation(eqn) and inline(_implementation(eqn), eqn):
                    continue
                loop = _bounded_loop(eqn)
                if loop is not None and inline(loop, eqn):
                    continue
                eqn = eqn.replace(params=self._parameters(eqn))
            eqns.append(eqn.replace(invars=list(map(read, eqn.invars))))
        return jaxpr.replace(eqns=eqns, outvars=list(map(read, jaxpr.outvars)))

    def _parameters(self, eqn: Any) -> Any:
        is_jaxpr = lambda x: isinstance(x, ClosedJaxpr | jex.core.Jaxpr)
        return jax.tree.map(
            lambda x: self.rewritten(x) if is_jaxpr(x) else x,
            eqn.params,
            is_leaf=is_jaxpr,
        )


def _implementation(eqn: Any) -> Callable[..., Any]:
    return lambda *values: eqn.primitive.impl(*values, **eqn.params)


def _bounded_loop(eqn: Any) -> Callable[..., Any] | None:
    """Return a `while` loop for a `scan` that does nothing once a test is false."""
    # Its body is `cond(condition(carry), step, identity, carry)`. Where the condition
    # is false the carry stays, and with it the condition.
    scan = control_flow(eqn, eqn.invars) if eqn.primitive.name == "scan" else None
    if not isinstance(scan, Scan) or scan.rows or len(eqn.outvars) != len(scan.init):
        return None
    body = _without_wrapper(scan.body)
    eqns, outvars = body.jaxpr.eqns, body.jaxpr.outvars
    if not eqns or eqns[-1].primitive.name != "cond" or body.jaxpr.effects:
        return None
    choice = eqns[-1]
    if any(is_literal(x) or x not in choice.outvars for x in outvars):
        return None
    cond: Any = control_flow(choice, choice.invars)
    # For each carried value its place among the results of `cond`.
    places = [choice.outvars.index(x) for x in outvars]
    count = len(scan.consts)
    carry = body.jaxpr.invars[count:]

    def is_identity(branch: ClosedJaxpr) -> bool:
        arg_of = dict(zip(branch.jaxpr.invars, cond.args, strict=True))
        outs = [branch.jaxpr.outvars[i] for i in places]
        return [None if is_literal(x) else arg_of.get(x) for x in outs] == carry

    is_skip = list(map(is_identity, cond.branches))
    if len(is_skip) != 2 or sum(is_skip) != 1:
        return None
    taken = is_skip.index(False)
    head = body.jaxpr.replace(eqns=eqns[:-1], outvars=[cond.index, *cond.args])
    before = jaxpr_as_fun(ClosedJaxpr(head, body.consts))
    step = jaxpr_as_fun(cond.branches[taken])

    def run(*values: Any) -> Any:
        consts, init = values[:count], list(values[count:])

        def goes_on(state: Any) -> Any:
            carry, turns = state
            index, *_ = before(*consts, *carry)
            return (turns < scan.length) & (jnp.clip(index, 0, 1) == taken)

        def turn(state: Any) -> Any:
            carry, turns = state
            _, *args = before(*consts, *carry)
            outs = step(*args)
            return [outs[i] for i in places], turns + 1

        return jax.lax.while_loop(goes_on, turn, (init, 0))[0]

    return run


def _without_wrapper(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """Return the jaxpr that a jaxpr only calls, as one under `jax.checkpoint` does."""
    while len(jaxpr.jaxpr.eqns) == 1:
        (eqn,) = jaxpr.jaxpr.eqns
        call = called_jaxpr(eqn)
        same = eqn.invars == jaxpr.jaxpr.invars and eqn.outvars == jaxpr.jaxpr.outvars
        if call is None or not same:
            break
        jaxpr = call
    return jaxpr


def _guarding(jaxpr: Any, in_guard: bool = False) -> set[Any]:
    """Return the inputs of host callbacks, and the conditions that guard them."""
    # They must be the same in all lanes, so that the branch to it stays a branch. With
    # `in_guard` the jaxpr is such a branch.
    found: set[Any] = set()
    for eqn in reversed(jaxpr.eqns):
        atoms: Sequence[Any] = ()
        call = called_jaxpr(eqn)
        if call is not None:
            atoms = _operands(eqn.invars, call, in_guard)
        elif eqn.primitive.name == "cond":
            cond: Any = control_flow(eqn, eqn.invars)
            guards = any(has_callback(x.jaxpr) for x in cond.branches)
            atoms = [cond.index] if guards else []
            for branch in cond.branches:
                atoms += _operands(cond.args, branch, guards)
        elif eqn.primitive.name == "convert_element_type":
            atoms = eqn.invars if eqn.outvars[0] in found else ()
        elif in_guard and is_callback(eqn):
            atoms = eqn.invars
        found.update(x for x in atoms if not is_literal(x))
    return found


def _operands(args: Sequence[Any], jaxpr: ClosedJaxpr, in_guard: bool) -> list[Any]:
    """Return the arguments of a jaxpr that guard a callback in it."""
    inner = _guarding(jaxpr.jaxpr, in_guard)
    pairs = zip(args, jaxpr.jaxpr.invars, strict=True)
    return [arg for arg, invar in pairs if invar in inner]
