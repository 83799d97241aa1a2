"""`rebuild_sampler`: an algorithm of blackjax with another layout."""

import functools
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from ..batchers import AbstractBatcher
from ._copier import Copier, Found
from ._inside import holds, with_changed
from ._marks import BEHIND_ENTRY, ENTRY, mark, marked
from ._modules import ModuleStandIn, original_module
from ._ownership import Packages


_Api = TypeVar("_Api")


def rebuild_sampler(
    api: _Api,
    *,
    batcher: AbstractBatcher,
    packages: tuple[str, ...] | list[str] = ("blackjax",),
) -> _Api:
    """Returns a sampler whose every internal `jax.vmap` goes through a batcher.

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
    - `batcher`: the layout that each vmap of the packages' code gets.
    - `packages`: the packages whose functions are rebuilt, by name: a fork of blackjax,
        or one's own sampler built on it (`("blackjax", "my_sampler")`).

    **Returns:**

    The same kind of object as `api`. Functions of the packages that are handed to it
    later, as arguments, are rebuilt as well.

    **Raises:**

    `TypeError` for a `batcher` or `packages` of the wrong type, `ValueError` if nothing
    in `api` belongs to `packages`, and `batchkit.UnreachableSiteError` if a vmap stands
    where it cannot be reached: in an already jitted function or a method of a class.
    """
    if not isinstance(batcher, AbstractBatcher):
        raise TypeError(
            f"rebuild_sampler(batcher={batcher!r}): batcher must be a batcher such as "
            f"`Chunked(16)`; got {type(batcher).__name__}."
        )
    if not isinstance(packages, list | tuple) or not all(
        isinstance(name, str) for name in packages
    ):
        raise TypeError(
            f"rebuild_sampler(packages={packages!r}): packages must be a tuple of "
            'names such as ("blackjax",).'
        )
    copier = Copier(batcher, Packages(tuple(packages)))
    if not copier.holds_package_code(api) or isinstance(api, type):
        raise ValueError(
            f"rebuild_sampler(api={api!r}): there is no function of the packages "
            f"{tuple(packages)} in it, so there is nothing to rebuild. Pass an API "
            "such as `blackjax.nss`, or name your own package in `packages`."
        )
    return _exposed(copier.copy(api), copier)


def _exposed(value: Any, copier: Copier) -> Any:
    """`value` as users get it: its functions rebuild what users hand to them."""

    def is_inner(item: Any) -> bool:
        return copier.made(item) or isinstance(item, ModuleStandIn)

    def expose(item: Any) -> Any:
        if copier.made(item):
            return _entry_point(item, copier)
        if isinstance(item, ModuleStandIn):
            return _exposed_module(item, copier)
        if not holds(item, is_inner, copier.opens):
            return item
        return with_changed(item, expose, lambda *_: None)

    return expose(value)


def _entry_point(function: FunctionType, copier: Copier) -> Callable[..., Any]:
    """The one function through which users call a rebuilt one."""
    known = marked(function, ENTRY)
    if known is not None:
        return known

    @functools.wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        copier.resolve_late_names()
        args, kwargs = copier.copy((args, kwargs), Found.IN_ARGUMENT)
        return _exposed(function(*args, **kwargs), copier)

    mark(entry, BEHIND_ENTRY, function)
    mark(function, ENTRY, entry)
    return entry


def _exposed_module(module: ModuleStandIn, copier: Copier) -> ModuleType:
    original = original_module(module)

    def look_up(name: str) -> Any:
        return _exposed(getattr(module, name), copier)

    return ModuleStandIn(original, look_up, {})
