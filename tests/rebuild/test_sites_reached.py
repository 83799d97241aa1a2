"""Traces of blackjax's algorithms reach the sites that `sites` lists."""

from collections.abc import Callable, Iterator
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import optax
import pytest

import batchkit as bk
from batchkit.explain import ReachedSite

from ..helpers import explained
from .problems import SMC


# The log of a trace is called for every Python function, and type checks of its
# arguments would take longer than all else.
pytestmark = pytest.mark.usefixtures("no_type_checks")

Place = tuple[str, str, int, str]


def place(site: bk.Site) -> Place:
    return site.module, site.qualname, site.line, site.spelling


def run_by_batchers(reached: tuple[ReachedSite, ...]) -> Iterator[ReachedSite]:
    """Yield the reached sites that have been rebuilt, also the nested ones."""
    for each in reached:
        if each.batcher:
            yield each
        yield from run_by_batchers(each.inside)


def reached_by(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> set[Place]:
    reached = explained(fun, *args, **kwargs)
    return {place(x.site) for x in run_by_batchers(reached)}


def listed_in(api: Any) -> set[Place]:
    return {place(x) for x in bk.sites(api)}


def logdensity(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def rebuilt(api: Any) -> Any:
    return bk.rebuild_sampler(api, batcher=bk.Chunked(4))


def names(found: set[Place]) -> set[str]:
    return {f"{module}:{qualname}" for module, qualname, _, _ in found}


PARTICLES = jax.ShapeDtypeStruct((6, 2), jnp.float32)
KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
ROWS = "blackjax.smc.tuning.from_particles:particles_as_rows"


def test_nss_reaches_the_sites_that_are_listed():
    nss = rebuilt(blackjax.nss)(logdensity, logdensity, 2, num_delete=2)
    listed = listed_in(blackjax.nss)
    init = reached_by(nss.init, PARTICLES)
    assert init < listed
    assert names(init) == {ROWS, "blackjax.ns.nss:as_top_level_api.<locals>.init_fn"}
    step = reached_by(nss.step, KEY, jax.eval_shape(nss.init, PARTICLES))
    assert step < listed
    update = "update_with_mcmc_take_last.<locals>.update_function"
    assert names(step) == {ROWS, f"blackjax.ns.from_mcmc:{update}"}


def test_tempered_smc_reaches_the_sites_that_are_listed():
    smc = rebuilt(blackjax.tempered_smc)(**SMC)
    state = jax.eval_shape(smc.init, PARTICLES)
    listed = listed_in(blackjax.tempered_smc)
    assert names(listed) == {f"blackjax.smc.base:{x}" for x in ("map_fn", "map_kernel")}
    assert reached_by(smc.step, KEY, state, 0.5) == listed


def test_svgd_reaches_the_sites_that_are_listed():
    svgd = rebuilt(blackjax.svgd)(jax.grad(logdensity), optax.sgd(0.1))
    state = jax.eval_shape(svgd.init, PARTICLES)
    listed = listed_in(blackjax.svgd)
    # Two vmaps on one line are one site.
    assert len(listed) == 4
    assert reached_by(svgd.step, state) == listed
    assert reached_by(svgd.init, PARTICLES) == set()


def test_pathfinder_reaches_the_sites_that_are_listed():
    pathfinder = rebuilt(blackjax.pathfinder)
    position = jax.ShapeDtypeStruct((2,), jnp.float32)

    def approximate(key: Any, position: Any) -> Any:
        return pathfinder.approximate(
            key, logdensity, position, num_samples=6, maxiter=1
        )

    listed = listed_in(blackjax.pathfinder)
    reached = reached_by(approximate, KEY, position)
    assert len(reached) == 3
    state = jax.eval_shape(approximate, KEY, position)[0]
    sampled = reached_by(lambda key, s: pathfinder.sample(key, s, 6), KEY, state)
    assert names(sampled) == {"blackjax.vi.pathfinder:sample"}
    assert reached | sampled == listed
