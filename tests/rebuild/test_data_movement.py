"""Sites that only move data stay as vmap, and no others do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import batchkit as bk

from ..helpers import SPLITTING, counted, explained, mesh


ROWS = jnp.arange(24.0).reshape(6, 2, 2)
NOTE = "only moves data, kept as vmap"

SOURCE = """
    import jax
    def run(f, *args, **axes): return jax.vmap(f, **axes)(*args)
    def nested(f, x): return jax.vmap(lambda r: jax.vmap(f)(r))(x)
    """


@pytest.fixture
def rebuild(make_package: Any) -> Callable[..., Any]:
    module = make_package(init=SOURCE)

    def make(batcher: bk.AbstractBatcher, name: str = "run") -> Any:
        api = getattr(module, name)
        return bk.rebuild_sampler(api, batcher=batcher, packages=("toy",))

    return make


def loops(fun: Callable[..., Any], *args: Any) -> int:
    text = str(jax.make_jaxpr(fun)(*args))
    return text.count("scan[") + text.count("shard_map[")


BATCHERS = {
    **SPLITTING,
    "Chunked(4, Sequential())": bk.Chunked(4, inner=bk.Sequential()),
    "Chunked(4, Sharded(2))": bk.Chunked(4, inner=bk.Sharded(mesh(2))),
}

MOVES: dict[str, Callable[[Any], Any]] = {
    "ravel": lambda r: ravel_pytree({"a": r, "b": r})[0],
    "nothing": lambda r: r,
    "a constant": lambda r: 1.0,
    "transpose": lambda r: r.T,
    "concatenate": lambda r: jnp.concatenate([r, r]),
    "slice": lambda r: r[0, 1:],
    "reverse": lambda r: r[::-1],
    "broadcast": lambda r: jnp.broadcast_to(r, (3, 2, 2)),
    "convert": lambda r: r.astype(jnp.int32),
    "pad": lambda r: jnp.pad(r, 1),
    "split": lambda r: jnp.split(r, 2)[1],
    "jitted twice": jax.jit(lambda r: jax.jit(jnp.ravel)(r)[:2]),
}
COMPUTES: dict[str, Callable[[Any], Any]] = {
    "add": lambda r: r + 1,
    "negate": lambda r: -r,
    "sum": lambda r: r.sum(),
    "select": lambda r: jnp.where(r > 0, r, 0.0),
    "after moving": lambda r: jnp.concatenate([r.T, r]).reshape(-1)[1:] * 2,
    "jitted twice": jax.jit(lambda r: jax.jit(jnp.sin)(r)),
    "in a branch": lambda r: jax.lax.cond(r.shape[0] == 2, lambda: r, lambda: r.T),
    "in a loop": lambda r: jax.lax.fori_loop(0, 2, lambda i, x: x.T, r),
    "with an effect": lambda r: (jax.debug.callback(lambda: None), r)[1],
}


@pytest.mark.parametrize("name", BATCHERS)
def test_moving_data_stays_vmap(name, rebuild):
    run = rebuild(BATCHERS[name])
    for move in MOVES.values():
        assert loops(lambda x, f=move: run(f, x), ROWS) == 0
    ravel = MOVES["ravel"]
    np.testing.assert_array_equal(run(ravel, ROWS), jax.vmap(ravel)(ROWS))


@pytest.mark.parametrize("name", BATCHERS)
def test_tasks_that_compute_are_split(name, rebuild):
    run = rebuild(BATCHERS[name])
    for what, compute in COMPUTES.items():
        jaxpr = jax.make_jaxpr(lambda x, f=compute: run(f, x))(ROWS)
        outermost = {eqn.primitive.name for eqn in jaxpr.jaxpr.eqns}
        assert outermost & {"scan", "shard_map"}, what


def test_moving_keys_stays_vmap_and_splitting_them_does_not(rebuild):
    keys = jax.random.split(jax.random.key(0), 6)
    run = rebuild(bk.Chunked(2))
    assert loops(lambda k: run(lambda key: key[None], k), keys) == 0
    assert loops(lambda k: run(jax.random.key_data, k), keys) == 0
    assert loops(lambda k: run(jax.random.split, k), keys) == 1


def test_data_movement_keeps_the_axes(rebuild):
    run = rebuild(bk.Sequential())

    def paste(r: jax.Array, whole: jax.Array) -> dict[str, jax.Array]:
        return {"both": jnp.concatenate([r, whole])}

    axes = {"in_axes": (1, None), "out_axes": -1}
    whole = jnp.ones((3, 2))
    fun = lambda x: run(paste, x, whole, **axes)
    assert loops(fun, ROWS) == 0
    expected = jax.vmap(paste, **axes)(ROWS, whole)
    np.testing.assert_array_equal(fun(ROWS)["both"], expected["both"])


@pytest.mark.parametrize("name", BATCHERS)
def test_task_is_traced_once_and_data_movement_twice(name, rebuild):
    run = rebuild(BATCHERS[name])
    compute, traces = counted(COMPUTES["after moving"])
    jax.make_jaxpr(lambda x: run(compute, x))(ROWS)
    assert len(traces) == 1
    # Looked at once, and once more under `jax.vmap`.
    move, traces = counted(MOVES["ravel"])
    jax.make_jaxpr(lambda x: run(move, x))(ROWS)
    assert len(traces) == 2
    fun, traces = counted(MOVES["ravel"])  # a batcher that would not split it
    jax.make_jaxpr(lambda x: rebuild(bk.Chunked(6))(fun, x))(ROWS)
    assert len(traces) == 1


def test_nested_tasks_are_split_twice_if_they_compute(rebuild):
    nested = rebuild(bk.Sequential(), "nested")
    assert loops(lambda x: nested(lambda s: s[::-1], x), ROWS) == 0
    fun, traces = counted(jnp.sin)
    assert loops(lambda x: nested(fun, x), ROWS) == 2
    assert len(traces) == 1


def test_movement_inside_computing_stays_vmap(rebuild):
    run = rebuild(bk.Sequential())

    def outer(r: jax.Array) -> jax.Array:
        return run(lambda s: s[::-1], r) * 2

    assert loops(lambda x: run(outer, x), ROWS) == 1


def test_batcher_called_by_the_user_splits_data_movement():
    # Only the sites of a sampler are left: who calls a batcher means it.
    assert loops(bk.Chunked(2)(MOVES["ravel"]), ROWS) == 1


def notes(fun: Callable[..., Any], *args: Any) -> list[tuple[str, str, int]]:
    reached = explained(fun, *args)
    return [(x.note, x.layout, x.at_once) for x in reached]


@pytest.mark.parametrize(
    "name", ["Sequential()", "Sharded(3, Chunked(2))", "Chunked(4, Sharded(2))"]
)
@pytest.mark.usefixtures("no_type_checks")
def test_explain_names_sites_that_only_move_data(name, rebuild):
    run = rebuild(BATCHERS[name])

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return run(MOVES["ravel"], x), run(COMPUTES["negate"], x)

    moved, computed = notes(both, ROWS)
    assert moved == (NOTE, "all at once", 6)
    assert computed[0] == ""
    assert computed[2] < 6
    (whole,) = notes(lambda x: rebuild(bk.Vmap())(MOVES["ravel"], x), ROWS)
    assert whole[0] == ""
