"""Removal of the mesh from the types in a jaxpr, so that it runs on one device.

The results of `jax.shard_map` have the mesh in their type, and so has every array
computed from them. A task that is traced with such an array has the type in its loops
and calls. JAX rejects it inside another `shard_map`, where the array is local to one
device.
"""

import functools
from typing import Any, Final, final

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding

from .._util._jaxprs import equations


NO_MESH: Final = AbstractMesh((), ())

_JAXPR_TYPES: Final = (jex.core.ClosedJaxpr, jex.core.Jaxpr)

# In these a sharding is an instruction; in other equations it only types the result.
_KEEP_SHARDING: Final = frozenset(
    {"device_put", "jit", "pjit", "shard_map", "sharding_constraint"}
)


def without_mesh(closed: jex.core.ClosedJaxpr) -> jex.core.ClosedJaxpr:
    """Return the jaxpr with types that have no mesh; its constants are unchanged."""
    # Usually there is none. The same object then keeps the caches of JAX valid.
    if not _uses_mesh(closed.jaxpr):
        return closed
    return _MeshRemover().rewritten(closed)


def _uses_mesh(jaxpr: Any) -> bool:
    eqns = list(equations(jaxpr))
    atoms = [*jaxpr.constvars, *jaxpr.invars]
    atoms += [x for eqn in eqns for x in (*eqn.invars, *eqn.outvars)]
    return any(_has_mesh(x.aval) for x in atoms) or any(map(_traced_in_mesh, eqns))


@final
class _MeshRemover:
    """Rewrites a jaxpr and the jaxprs nested in it, each of them once."""

    def __init__(self) -> None:
        # By id; the old jaxpr is kept alive so that its id stays unique.
        self._done: dict[int, tuple[Any, Any]] = {}

    def rewritten(self, jaxpr: Any) -> Any:
        if id(jaxpr) not in self._done:
            if isinstance(jaxpr, jex.core.ClosedJaxpr):
                # Since JAX 0.11 it is of the same type as its `jaxpr`.
                new = jex.core.ClosedJaxpr(self._rewrite(jaxpr.jaxpr), jaxpr.consts)
            else:
                new = self._rewrite(jaxpr)
            self._done[id(jaxpr)] = jaxpr, new
        return self._done[id(jaxpr)][1]

    def _rewrite(self, jaxpr: Any) -> Any:
        new: dict[Any, Any] = {}

        def strip(x: Any) -> Any:
            if isinstance(x, jex.core.Literal):
                return x
            if x not in new and _has_mesh(x.aval):
                new[x] = type(x)(_type(x.aval))
            return new.get(x, x)

        constvars, invars = map(strip, jaxpr.constvars), map(strip, jaxpr.invars)
        parts = {"constvars": list(constvars), "invars": list(invars), "eqns": []}
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "reshard":  # the identity on a single device
                new[eqn.outvars[0]] = strip(eqn.invars[0])
                continue
            parts["eqns"].append(
                eqn.replace(
                    invars=list(map(strip, eqn.invars)),
                    outvars=list(map(strip, eqn.outvars)),
                    params=self._parameters(eqn),
                    ctx=_context_without_mesh() if _traced_in_mesh(eqn) else eqn.ctx,
                )
            )
        return jaxpr.replace(**parts, outvars=list(map(strip, jaxpr.outvars)))

    def _parameters(self, eqn: Any) -> Any:
        keeps_sharding = eqn.primitive.name in _KEEP_SHARDING

        def stripped(x: Any) -> Any:
            if isinstance(x, _JAXPR_TYPES):
                return self.rewritten(x)
            is_type = isinstance(x, NamedSharding) and not keeps_sharding
            return None if is_type else x

        is_jaxpr = lambda x: isinstance(x, _JAXPR_TYPES)
        return jax.tree.map(stripped, eqn.params, is_leaf=is_jaxpr)


def _traced_in_mesh(eqn: Any) -> bool:
    return not eqn.ctx.cur_abstract_mesh.empty


@functools.cache
def _context_without_mesh() -> Any:
    """Return the context of an equation that is traced without a mesh.

    JAX has no public constructor for it.
    """
    with jax.sharding.use_abstract_mesh(NO_MESH):
        return jax.make_jaxpr(jnp.sin)(0.0).jaxpr.eqns[0].ctx


def type_mesh(x: Any) -> AbstractMesh:
    """Return the mesh in the type of an array, or an empty one."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    is_named = isinstance(sharding, NamedSharding)
    return sharding.mesh.abstract_mesh if is_named else NO_MESH


def _has_mesh(aval: Any) -> bool:
    sharding = getattr(aval, "sharding", None)
    return isinstance(sharding, NamedSharding) and not sharding.mesh.empty


def _type(aval: Any) -> Any:
    inner = getattr(aval, "inner_aval", None)
    if inner is not None:  # the type of a mutable array
        return aval.update(inner_aval=_type(inner))
    with jax.sharding.use_abstract_mesh(NO_MESH):
        return aval.update(sharding=None)
