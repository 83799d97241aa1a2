"""`rebuild_sampler`: an algorithm of blackjax with another layout.

A policy may give the functions that `init` calls another batcher than those that `step`
calls. So there is a copier for each phase, with namespaces of its own. A context
variable would not do: JAX caches traces by function, so a function that both phases
call would keep the batcher of the first. Users get entry points, which copy the
functions of the packages that users pass to them later.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeVar, final

from .._util._formats import format_value
from ..batchers import AbstractBatcher
from ._copier import Copier, ModuleStandIn
from ._mapper import Mapper
from ._policies import AbstractPolicy, policy_from, refuse_idle_patterns
from ._sites import Origin, holds_code_of, phase_of, sites_by_phase
from ._users import Marker
from ._vmaps import original_module, record, record_of
from ._walk import Packages, flatten, packages_from, parts, recursion_error, walk


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
    owners = packages_from("rebuild_sampler", packages)
    if not holds_code_of(api, owners) or isinstance(api, type):
        raise ValueError(
            f"rebuild_sampler(api={format_value(api)}): there is no function of the "
            f"packages {owners.names} in it, so there is nothing to rebuild. Pass an "
            "API such as `blackjax.nss`, or name your own package in `packages`."
        )
    refuse_idle_patterns(policy, lambda: sites_by_phase(api, owners))
    return _Family(policy, owners).exposed(api, None, Origin.CLOSURE)


@final
class _Family:
    """The copiers of one call of `rebuild_sampler`, and the entry points of users."""

    def __init__(
        self, policy: AbstractBatcher | AbstractPolicy, packages: Packages
    ) -> None:
        self._policy = policy
        self._packages = packages
        self._lock = threading.RLock()
        self._copiers: dict[str | None, Copier] = {}
        self._marker = Marker(policy, packages)

    def _copier(self, phase: str | None) -> Copier:
        """Return the copier of a phase. One serves all if the policy is a batcher."""
        if isinstance(self._policy, AbstractBatcher):
            phase = None
        with self._lock:
            if phase not in self._copiers:
                mapper = Mapper(self._policy, phase, self._marker.names)
                self._copiers[phase] = Copier(
                    mapper, self._packages, self._marker, self._lock
                )
        return self._copiers[phase]

    def exposed(
        self, value: Any, phase: str | None, origin: Origin, outer: tuple[Any, ...] = ()
    ) -> Any:
        """Return `value`, a part of `outer`, with an entry point for each function."""

        def inside(item: Any) -> list[Any]:
            return parts(item, self._packages.opens)

        with self._lock:
            copier = self._copier(phase)
            if not any(map(_may_call, walk([value], inside))):
                # Results of calls are data, as a rule, and need not be looked into.
                is_result = origin is Origin.ARGUMENT
                return value if is_result else copier.copy(value, origin)
            inner, names, make = flatten(value, self._packages.opens)
            if not inner:
                new = copier.copy(value, origin)
                if isinstance(new, ModuleStandIn):
                    return self._module(new, phase)
                return self._entry_point(new, phase) if copier.made(new) else new
            if any(value is x for x in outer):
                raise recursion_error(value)
            origins = [origin for _ in inner]
            if isinstance(value, functools.partial):  # its arguments are the user's
                origins[1:] = [Origin.ARGUMENT for _ in inner[1:]]
            new = [
                self.exposed(x, phase_of(name, phase), y, (*outer, value))
                for x, name, y in zip(inner, names, origins, strict=True)
            ]
            changed = any(x is not y for x, y in zip(new, inner, strict=True))
            return make(new) if changed else value

    def _entry_point(
        self, function: FunctionType, phase: str | None
    ) -> Callable[..., Any]:
        """Return the one function through which users call a rebuilt one."""
        made = record_of(record(function))
        if made is not None and made.entry is not None:
            return made.entry
        copier = self._copier(phase)

        @functools.wraps(function)
        def entry(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = copier.copy((args, kwargs), Origin.ARGUMENT)
            args, kwargs = self._marker.arguments(
                function, args, kwargs, copier.is_users_function
            )
            return self.exposed(function(*args, **kwargs), phase, Origin.ARGUMENT)

        record(function, entry=record(entry, behind=function))
        return entry

    def _module(self, module: ModuleStandIn, phase: str | None) -> ModuleType:
        def look_up(name: str) -> Any:
            part = getattr(module, name)
            return self.exposed(part, phase_of(name, phase), Origin.CLOSURE)

        return ModuleStandIn(original_module(module), look_up, {})


def _may_call(value: Any) -> bool:
    """Return True for a function, an object or a module that users may call."""
    if isinstance(value, type):
        return False
    return callable(value) or isinstance(value, ModuleType)
