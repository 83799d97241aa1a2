"""`rebuild_sampler`: an algorithm of blackjax with another layout."""

from collections.abc import Mapping
from typing import TypeVar

from .._util._formats import format_value
from ..batchers import AbstractBatcher
from ._family import Family
from ._finder import holds_code_of, reachable_by_phase
from ._ownership import packages_from
from ._policies import AbstractPolicy, policy_from, refuse_idle_patterns


_Api = TypeVar("_Api")


def rebuild_sampler(
    api: _Api,
    *,
    batcher: AbstractBatcher | AbstractPolicy | Mapping[str, AbstractBatcher],
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

    `TypeError` for a `batcher` or `packages` of the wrong type, `ValueError` if nothing
    in `api` belongs to `packages` or a name or pattern matches no site, and
    `batchkit.UnreachableSiteError` if a vmap stands where it cannot be reached (in an
    already jitted function or a method of a class), unless it is to stay `Vmap()`.
    """
    policy = policy_from(batcher)
    owners = packages_from("rebuild_sampler", packages)
    family = Family(policy, owners)
    if not holds_code_of(api, owners) or isinstance(api, type):
        raise ValueError(
            f"rebuild_sampler(api={format_value(api)}): there is no function of the "
            f"packages {owners.names} in it, so there is nothing to rebuild. Pass an "
            "API such as `blackjax.nss`, or name your own package in `packages`."
        )
    refuse_idle_patterns(policy, lambda: reachable_by_phase(api, owners))
    return family.rebuilt(api)
