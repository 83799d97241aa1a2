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


# In these a sharding is an instruction; in other equations it only types the result.
_KEEP_SHARDING: Final = frozenset(
    {"device_put", "jit", "pjit", "shard_map", "sharding_constraint"}
)


def without_mesh(closed: jex.core.ClosedJaxpr) -> jex.core.ClosedJaxpr:
    """Return the jaxpr with types that have no mesh; its constants are unchanged.

    A jaxpr without any mesh is returned as the same object.
    """
    return _MeshRemover().closed(closed)


@final
class _MeshRemover:
    """Rewrites a jaxpr and the jaxprs nested in it, each of them once."""

    def __init__(self) -> None:
        # By id; the old jaxpr is kept alive so that its id stays unique.
        self._done: dict[int, tuple[Any, Any]] = {}

    def closed(self, closed: jex.core.ClosedJaxpr) -> jex.core.ClosedJaxpr:
        if id(closed) not in self._done:
            jaxpr = self.open(closed.jaxpr)
            is_same = jaxpr is closed.jaxpr
            new = closed if is_same else jex.core.ClosedJaxpr(jaxpr, closed.consts)
            self._done[id(closed)] = closed, new
        return self._done[id(closed)][1]

    def open(self, jaxpr: Any) -> Any:
        if id(jaxpr) not in self._done:
            self._done[id(jaxpr)] = jaxpr, self._rewrite(jaxpr)
        return self._done[id(jaxpr)][1]

    def _rewrite(self, jaxpr: Any) -> Any:
        new: dict[Any, Any] = {}

        def strip(atom: Any) -> Any:
            if isinstance(atom, jex.core.Literal):
                return atom
            if atom not in new and _has_mesh(atom.aval):
                new[atom] = type(atom)(_type(atom.aval))
            return new.get(atom, atom)

        parts: dict[str, list[Any]] = {
            name: [strip(atom) for atom in getattr(jaxpr, name)]
            for name in ("constvars", "invars")
        }
        parts["eqns"] = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "reshard":  # the identity on a single device
                new[eqn.outvars[0]] = strip(eqn.invars[0])
                continue
            changes = {
                "invars": [strip(atom) for atom in eqn.invars],
                "outvars": [strip(var) for var in eqn.outvars],
                "params": {
                    name: self._parameter(value, eqn.primitive.name)
                    for name, value in eqn.params.items()
                },
            }
            if not eqn.ctx.cur_abstract_mesh.empty:
                changes["ctx"] = _context_without_mesh()
            parts["eqns"].append(eqn if _same(eqn, changes) else eqn.replace(**changes))
        parts["outvars"] = [strip(atom) for atom in jaxpr.outvars]
        return jaxpr if _same(jaxpr, parts) else jaxpr.replace(**parts)

    def _parameter(self, value: Any, primitive: str) -> Any:
        if isinstance(value, jex.core.ClosedJaxpr):
            return self.closed(value)
        if isinstance(value, jex.core.Jaxpr):
            return self.open(value)
        if isinstance(value, tuple):  # such as the branches of a `cond`
            items = [self._parameter(item, primitive) for item in value]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            make = getattr(type(value), "_make", type(value))
            return make(items)
        if isinstance(value, NamedSharding) and primitive not in _KEEP_SHARDING:
            return None
        return value


def _same(whole: Any, parts: dict[str, Any]) -> bool:
    """Return True if each part is the same object as that of `whole`."""
    for name, new in parts.items():
        old = getattr(whole, name)
        if isinstance(new, dict):
            old, new = list(old.values()), list(new.values())
        if not isinstance(new, list):
            old, new = [old], [new]
        if len(old) != len(new):
            return False
        if any(a is not b for a, b in zip(old, new, strict=True)):
            return False
    return True


@functools.cache
def _context_without_mesh() -> Any:
    """Return the context of an equation that is traced without a mesh.

    JAX has no public constructor for it.
    """
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        return jax.make_jaxpr(jnp.sin)(0.0).jaxpr.eqns[0].ctx


def type_mesh(x: Any) -> AbstractMesh:
    """Return the mesh in the type of an array, or an empty one."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    is_named = isinstance(sharding, NamedSharding)
    return sharding.mesh.abstract_mesh if is_named else AbstractMesh((), ())


def _has_mesh(aval: Any) -> bool:
    sharding = getattr(aval, "sharding", None)
    return isinstance(sharding, NamedSharding) and not sharding.mesh.empty


def _type(aval: Any) -> Any:
    inner = getattr(aval, "inner_aval", None)
    if inner is not None:  # the type of a mutable array
        return aval.update(inner_aval=_type(inner))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        return aval.update(sharding=None)
