"""`rebuild_sampler`: an algorithm of blackjax with another layout.

A policy may give the functions that `init` calls another batcher than those that `step`
calls. So there is a copier for each phase, with namespaces of its own. A context
variable would not do: JAX caches traces by function, so a function that both phases
call would keep the batcher of the first. Users get entry points, which copy the
functions of the packages that users pass to them later.
"""

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from ..batchers import AbstractBatcher
from ._copier import Copier, ModuleStandIn
from ._policies import AbstractPolicy, policy_from, refuse_idle_patterns
from ._sites import Origin, packages_in, sites_by_phase
from ._users import Marker
from ._values import (
    flatten,
    original_module,
    parts,
    record,
    record_of,
    recursion_error,
    walk,
)


_Api = TypeVar("_Api")


def rebuild_sampler(
    api: _Api,
    batcher: AbstractBatcher | AbstractPolicy | Mapping[str, AbstractBatcher],
    *,
    packages: tuple[str, ...] | list[str] = ("blackjax",),
) -> _Api:
    """Return a sampler whose every internal `jax.vmap` goes through a batcher.

    Neither `jax` nor `blackjax` is changed: the functions of the sampler are copied
    into namespaces of their own, in which `jax.vmap` is the batcher. States and infos
    are blackjax's own types and pass freely between the rebuilt and the original
    algorithm. The user's own functions, and any vmap inside them, stay as they are.

    Rebuild once and keep the result: the functions are new objects each time, so a
    function jitted by `jax.jit` compiles again. Jit `init` and `step`; called eagerly
    they work, but trace and compile their loops at every call.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(16))
    algorithm = nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -2.0 * jnp.sum((x - 1.0) ** 2),
        num_inner_steps=5,
        num_delete=10,
    )
    state = jax.jit(algorithm.init)(jax.random.normal(jax.random.key(0), (40, 2)))
    state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    assert info.particles.loglikelihood.shape == (10,)
    ```

    **Arguments:**

    - `api`: a top-level API such as `blackjax.nss`, one of its functions, a
        `functools.partial` or a method of one, an algorithm's module, or an algorithm
        already built by upstream.
    - `batcher`: the layout that each vmap of the packages' code gets: a batcher for
        all of them, a policy such as `ByPhase` or `BySite`, or a plain mapping as
        sugar for both. Its keys are `"init"`, `"step"`, `"default"` (for all else;
        `Vmap()` if left out), and names or patterns of sites, which come first. Sites
        that only move data (reshape, transpose, concatenate, slice, broadcast,
        convert, ...) stay as vmap: they cost nothing there, and a loop elsewhere.
    - `packages`: the packages whose functions are rebuilt, by name: a fork of blackjax,
        or one's own sampler built on it (`("blackjax", "my_sampler")`).

    **Returns:**

    The same kind of object as `api`. Functions of the packages that are handed to it
    later, as arguments, are rebuilt as well.

    **Raises:**

    `TypeError` for a `batcher` or `packages` of the wrong type; `ValueError` if nothing
    in `api` belongs to `packages`, a name or pattern matches no site, or a function
    calls `globals`, `eval` or `exec` or assigns a `nonlocal` variable; and
    `batchkit.UnreachableSiteError` if a vmap stands where it cannot be reached (in an
    already jitted function, a class, a cache), unless it is to stay `Vmap()`.
    """
    policy = policy_from(batcher)
    owners = packages_in(api, packages, "rebuild_sampler")
    refuse_idle_patterns(policy, lambda: sites_by_phase(api, owners))
    copier = Copier(policy, owners, Marker(policy, owners))
    return _exposed(copier, api, Origin.CLOSURE)


def _exposed(
    copier: Copier, value: Any, origin: Origin, outer: tuple[Any, ...] = ()
) -> Any:
    """Return `value`, a part of `outer`, with an entry point for each function."""
    opens = copier.packages.opens
    with copier.lock:
        items = walk([value], lambda x: parts(x, opens))
        objects = (x for x in items if not isinstance(x, type))
        if not any(callable(x) or isinstance(x, ModuleType) for x in objects):
            # Results of calls are data, as a rule, and need not be looked into.
            is_result = origin is Origin.ARGUMENT
            return value if is_result else copier.copy(value, origin)
        inner, names, make = flatten(value, opens)
        if not inner:
            new = copier.copy(value, origin)
            if isinstance(new, ModuleStandIn):
                return _module(copier, new)
            return _entry_point(copier, new) if copier.made(new) else new
        if any(value is x for x in outer):
            raise recursion_error(value)
        if copier.packages.own(value):
            # Its class is shared, so a vmap in a method could not be rebuilt.
            copier.copy(type(value), origin)
        origins = [origin for _ in inner]
        if isinstance(value, functools.partial):  # its arguments are the user's
            origins[1:] = [Origin.ARGUMENT, Origin.ARGUMENT]
        new = [
            _exposed(copier.for_part(name), x, y, (*outer, value))
            for x, name, y in zip(inner, names, origins, strict=True)
        ]
        changed = any(x is not y for x, y in zip(new, inner, strict=True))
        return make(new) if changed else value


def _entry_point(copier: Copier, function: FunctionType) -> Callable[..., Any]:
    """Return the one function through which users call a rebuilt one."""
    made = record_of(function)
    if made is not None and made.entry is not None:
        return made.entry

    @functools.wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        copies, by_name = copier.arguments(function, args, kwargs)
        return _exposed(copier, function(*copies, **by_name), Origin.ARGUMENT)

    record(function, entry=record(entry, behind=function))
    return entry


def _module(copier: Copier, module: ModuleStandIn) -> ModuleType:
    def look_up(name: str) -> Any:
        part = getattr(module, name)
        return _exposed(copier.for_part(name), part, Origin.CLOSURE)

    return ModuleStandIn(original_module(module), look_up, {})
