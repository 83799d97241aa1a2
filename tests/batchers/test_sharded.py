"""Tasks spread over devices: no device gathers the tasks or results of another."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import batchkit as bk

from ..helpers import (
    assert_all_same,
    assert_same,
    collectives,
    mesh,
    outputs_of,
    primitives,
)
from ..run.compilations import compilations


def _rows(n: int) -> np.ndarray:
    return np.arange(1, n + 1, dtype=np.float32)


def _until_100(x: Any) -> Any:
    """A loop with a different number of steps for every task."""
    return jax.lax.while_loop(lambda y: y < 100, lambda y: 1.5 * y, x)


SIZES = (1, 2, 5, 12)


@functools.cache
def _of_all_sizes(mapped: Any) -> Any:
    run = mapped(lambda x: (_until_100(x), jnp.arange(2) * x))
    return jax.jit(lambda rows: [run(x) for x in rows])([_rows(n) for n in SIZES])


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_any_number_of_tasks_equals_vmap(devices: int) -> None:
    batcher = bk.Sharded(mesh(devices))
    assert_same(_of_all_sizes(batcher), _of_all_sizes(jax.vmap))
    for n in SIZES:
        assert outputs_of(batcher(jnp.sin), "sin", _rows(n)) == [(-(-n // devices),)]


def _by_every_inner(devices: int) -> Callable[[Any], Any]:
    batchers = [
        bk.Sharded(mesh(devices), inner=inner)
        for inner in (bk.Vmap(), bk.Sequential(), bk.Chunked(2))
    ]
    return lambda x: [batcher(lambda x: _until_100(x.sum()))(x) for batcher in batchers]


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_even_shares_need_no_collective(devices: int) -> None:
    sharding = NamedSharding(mesh(devices), P("tasks"))
    x = jax.device_put(np.ones((12, 3), np.float32), sharding)
    assert collectives(_by_every_inner(devices), x) == ([], [])


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_uneven_shares_need_no_collective_inside_loops(devices: int) -> None:
    """An uneven count moves rows before the loop over chunks, and after it."""
    x = np.ones((13, 3), np.float32)
    assert collectives(_by_every_inner(devices), x)[1] == []


def test_reader_of_programs_finds_collectives() -> None:
    """Chunking outside of `shard_map` needs collectives, and the reader finds them."""
    x = jax.device_put(np.ones((16, 3), np.float32), NamedSharding(mesh(4), P("tasks")))
    found, _ = collectives(lambda x: jax.lax.map(jnp.sum, x, batch_size=2), x)
    assert found == ["all-gather"]

    def summed(x: Any) -> Any:
        body = lambda c, row: (jax.lax.psum(c + row, "tasks"), None)
        return jax.lax.scan(body, jnp.zeros(3), x)[0]

    mapped = jax.shard_map(
        summed,
        mesh=mesh(4),
        in_specs=P("tasks"),
        out_specs=P(),
        check_vma=False,
    )
    assert collectives(mapped, x) == (["all-reduce"], ["all-reduce"])


def test_chunks_inside_and_outside_of_shards() -> None:
    x = _rows(24)
    inside = bk.Sharded(mesh(4), inner=bk.Chunked(2))
    outside = bk.Chunked(8, inner=bk.Sharded(mesh(4)))
    for batcher in (inside, outside):
        assert outputs_of(batcher(jnp.sin), "sin", x) == [(2,)]
        assert_same(jax.jit(batcher(jnp.sin))(x), jax.jit(jax.vmap(jnp.sin))(x))


@pytest.mark.parametrize("n", [4, 5])
def test_function_may_close_over_tracers(n: int) -> None:
    """Arguments of `jit`, of an outer vmap and of a scan; arrays, keys and integers."""

    def run(mapped: Any) -> Any:
        def outer(w: Any, key: Any, i: Any) -> Any:
            def f(x: Any) -> Any:
                return x * w + i, jax.random.uniform(key) + x, jax.random.key_data(key)

            _, y = jax.lax.scan(lambda c, _: (c, mapped(f)(_rows(n))), None, length=2)
            return y

        keys = jax.random.split(jax.random.key(1), 3)
        return jax.jit(jax.vmap(outer))(_rows(3), keys, np.arange(3))

    assert_same(run(bk.Sharded(mesh(4))), run(jax.vmap))


OUTERS: dict[str, Callable[[], bk.AbstractBatcher]] = {
    "Sharded(4)": lambda: bk.Sharded(mesh(4)),
    "Sharded()": bk.Sharded,
    "Sharded(2)": lambda: bk.Sharded(mesh(2)),
    "Sharded(4, Chunked(1))": lambda: bk.Sharded(mesh(4), inner=bk.Chunked(1)),
    "Sharded(4, Sequential())": lambda: bk.Sharded(mesh(4), inner=bk.Sequential()),
}


def _nested(outer: Any, inners: list[Any]) -> Callable[[Any], Any]:
    y = _rows(5)
    run = lambda inner: outer(
        lambda x: jnp.cumsum(x) * inner(lambda v: v * x.sum())(y).sum()
    )
    return jax.jit(lambda x: [run(inner)(x) for inner in inners])


@pytest.mark.parametrize("outer", OUTERS.values(), ids=OUTERS)
def test_sharded_inside_sharded_acts_as_its_inner_batcher(
    outer: Callable[[], bk.AbstractBatcher],
) -> None:
    run = _nested(outer(), [bk.Sharded(), bk.Sharded(mesh(4), inner=bk.Chunked(2))])
    x = np.arange(18, dtype=np.float32).reshape(9, 2)
    (expected,) = _nested(jax.vmap, [jax.vmap])(x)
    for actual in run(x):
        assert_same(actual, expected)
    assert primitives(run, x).count("shard_map") == 2


@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_inside_shard_map_acts_as_its_inner_batcher(check_vma: bool) -> None:
    w = jnp.float32(3)
    inners = [bk.Vmap(), bk.Chunked(2), bk.Sequential()]

    def share(x: Any) -> list[Any]:
        f = lambda x: jnp.sin(x) * w
        return [bk.Sharded(mesh(2), inner=inner)(f)(x) for inner in inners]

    mapped = jax.shard_map(
        share,
        mesh=mesh(2),
        in_specs=P("tasks"),
        out_specs=P("tasks"),
        check_vma=check_vma,
    )
    assert primitives(mapped, _rows(10)).count("shard_map") == 1
    expected = jax.jit(jax.vmap(lambda x: jnp.sin(x) * w))(_rows(10))
    for actual in jax.jit(mapped)(_rows(10)):
        assert_same(actual, expected)


def _grid(types: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(types, types))


AXES = {"a": 2, "b": 2, ("b",): 2, ("a", "b"): 4, ("b", "a"): 4, None: 4}


def test_tasks_are_spread_over_the_named_axes() -> None:
    """Devices along an axis that is not named repeat the work, also in gradients."""
    x = _rows(7)

    def run(mapped: Any, x: Any, w: Any) -> Any:
        loss = lambda x, w: mapped(lambda x: jnp.sin(x) * w)(x).sum()
        return jax.value_and_grad(loss, argnums=(0, 1))(x, w)

    batchers = [bk.Sharded(_grid(), axis) for axis in AXES]
    for batcher, shards in zip(batchers, AXES.values(), strict=True):
        assert outputs_of(batcher(jnp.sin), "sin", x) == [(-(-7 // shards),)]
    args = x, np.float32(2)
    actual = jax.jit(lambda *args: [run(each, *args) for each in batchers])(*args)
    expected = jax.jit(lambda *args: run(jax.vmap, *args))(*args)
    for each in actual:
        assert_same(each, expected)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("where", ["argument", "set_mesh", "both"])
def test_automatic_and_explicit_meshes(types: AxisType, where: str) -> None:
    """Meshes of `jax.make_mesh`, given to the batcher or set around the call."""
    grid = jax.make_mesh((4,), ("tasks",), axis_types=(types,))
    batcher = bk.Sharded(None if where == "set_mesh" else grid, inner=bk.Chunked(1))
    w = jnp.float32(2)
    f = lambda x: (_until_100(x), x * w)
    grad = jax.grad(lambda x: batcher(f)(x)[1].sum())
    rows = [_rows(n) for n in (2, 7, 8)]
    expected = jax.jit(lambda *rows: [jax.vmap(f)(x) for x in rows])(*rows)
    context = contextlib.nullcontext() if where == "argument" else jax.set_mesh(grid)
    with context:
        actual = jax.jit(lambda *rows: [batcher(f)(x) for x in rows])(*rows)
        grads = jax.jit(lambda *rows: [grad(x) for x in rows])(*rows)
    # Where the arrays are is a matter of the mesh, what they hold is not.
    assert_same(jax.device_get(actual), jax.device_get(expected))
    for x, found in zip(rows, grads, strict=True):
        np.testing.assert_array_equal(found, np.full_like(x, 2))


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arguments_stay_on_their_devices(types: AxisType) -> None:
    grid = jax.make_mesh((4,), ("tasks",), axis_types=(types,))
    sharding = NamedSharding(grid, P("tasks"))
    x = jax.device_put(_rows(8), sharding)
    y = jax.jit(bk.Sharded(grid)(jnp.sin))(x)
    assert y.sharding.is_equivalent_to(sharding, 1)
    with jax.set_mesh(grid):
        z = jax.jit(bk.Sharded()(jnp.sin))(x)
    assert_same(jax.device_get(z), jax.device_get(y))


def test_default_mesh_has_all_devices() -> None:
    y = bk.Sharded()(jnp.sin)(_rows(8))
    assert y.sharding.device_set == set(jax.devices())
    assert outputs_of(bk.Sharded()(jnp.sin), "sin", _rows(8)) == [(2,)]


def test_default_mesh_is_that_of_set_mesh() -> None:
    with jax.set_mesh(mesh(2)):
        assert outputs_of(bk.Sharded()(jnp.sin), "sin", _rows(8)) == [(4,)]


@pytest.mark.parametrize("where", ["jit", "no jit"])
def test_unmapped_outputs_equal_vmap(where: str) -> None:
    f = lambda x, w: (x * w, {"w": w * 2, "one": jnp.ones(2)})
    wrap = jax.jit if where == "jit" else lambda f: f
    run = lambda m: wrap(m(f, (0, None), out_axes=(0, None)))(_rows(5), jnp.float32(3))
    assert_same(run(bk.Sharded(mesh(4))), run(jax.vmap))


WITH_ROWS_ON_A_MESH: dict[str, Callable[..., Any]] = {
    "rows": lambda m, x, y: m(lambda a: a * x.sum())(y),
    "closure": lambda m, x, y: m(lambda a: a * y.sum())(x),
    "shape": lambda m, x, y: m(lambda a: a + jnp.zeros_like(y).sum())(x),
    "vmap": lambda m, x, y: m(lambda a: jax.vmap(lambda b: a * b)(y).sum())(x),
    "loop": lambda m, x, y: m(
        lambda a: jax.lax.scan(lambda c, t: (c + jnp.ones_like(t) * t, None), a, y)[0]
    )(x),
    "branch": lambda m, x, y: m(
        lambda a: jax.lax.cond(a > 2, lambda: jnp.full_like(y, 2).sum(), y.sum)
    )(x),
    "gradient by a row": lambda m, x, y: m(jax.grad(lambda a: a**2 * x.sum()))(y),
    "gradient by a closure": lambda m, x, y: m(
        lambda a: jax.grad(lambda c: jnp.sum(a * c**2))(y)
    )(x),
}


def test_arrays_with_the_mesh_in_their_type() -> None:
    """The results of a first `Sharded` have the mesh in their type."""

    def run(mapped: Any, x: Any) -> dict[str, Any]:
        y = mapped(jnp.sin)(x)
        return {name: fun(mapped, x, y) for name, fun in WITH_ROWS_ON_A_MESH.items()}

    x = jnp.arange(4.0)
    actual = jax.jit(functools.partial(run, bk.Sharded(mesh(2))))(x)
    expected = jax.jit(functools.partial(run, jax.vmap))(x)
    assert_all_same(jax.device_get(actual), jax.device_get(expected))


def test_gradient_by_a_constant_of_a_jitted_program() -> None:
    constant, x = jnp.arange(3.0), jnp.arange(4.0)

    def total(mapped: Any, c: Any) -> Any:
        return mapped(lambda a: (a * c).sum())(x).sum()

    gradient = lambda mapped: jax.grad(lambda c: total(mapped, c))(constant)
    actual = jax.jit(lambda: gradient(bk.Sharded(mesh(2))))()
    assert_same(jax.device_get(actual), jax.device_get(gradient(jax.vmap)))


def test_explicit_mesh_in_a_program_without_explicit_axes() -> None:
    """`jax.make_mesh` makes such meshes; the results have no explicit sharding."""
    explicit = jax.make_mesh((2,), ("tasks",), devices=jax.devices()[:2])
    spread = bk.Sharded(explicit)

    def fun(mapped: Any, x: Any) -> Any:
        y = mapped(jnp.sin)(x)
        z = mapped(lambda a: a * y.sum())(jnp.cumsum(y))
        return y @ z, jax.grad(lambda x: mapped(jnp.sum)(x).sum())(x)

    x = jnp.arange(4.0)
    expected = jax.device_get(jax.jit(lambda x: fun(jax.vmap, x))(x))
    assert_same(jax.device_get(jax.jit(lambda x: fun(spread, x))(x)), expected)
    assert_same(jax.device_get(fun(spread, x)), jax.device_get(fun(jax.vmap, x)))


def test_linear_solve_over_arrays_on_the_mesh() -> None:
    """The jaxprs of a linear solve are parts of a named tuple."""
    x = jnp.arange(4.0)

    def solve(mapped: Any) -> Any:
        w = mapped(jnp.cos)(x)
        a = lambda v: v * (w[:2] + 3)
        row = lambda r: jax.scipy.sparse.linalg.cg(a, r * jnp.ones(2), maxiter=3)[0]
        return jax.device_get(jax.jit(lambda: mapped(row)(x))())

    assert_same(solve(bk.Sharded(mesh(2))), solve(jax.vmap), ulps=64)


def test_mutable_array_over_arrays_on_the_mesh() -> None:
    x = jnp.arange(4.0)

    def fun(mapped: Any) -> Any:
        w = mapped(jnp.cos)(x)

        def row(r: Any) -> Any:
            ref = jax.new_ref(w)
            ref[...] = ref[...] * r
            return ref[...].sum()

        return mapped(row)(x)

    actual = jax.device_get(jax.jit(lambda: fun(bk.Sharded(mesh(2))))())
    assert_same(actual, jax.device_get(fun(jax.vmap)))


def test_an_eager_call_is_one_program() -> None:
    def task(x: jax.Array) -> jax.Array:
        for _ in range(5):
            x = jnp.sin(x) * 2 + jnp.cos(x)
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y), x)

    sharded = bk.Sharded(mesh(2))(task)
    x = jnp.arange(4.0)
    sharded(x)
    with compilations() as names:
        found = sharded(x)
    # Operation by operation there are more than ten, in every call anew.
    assert set(names) == {"jit(on_device)"}
    np.testing.assert_allclose(found, jax.vmap(task)(x), rtol=1e-6)
