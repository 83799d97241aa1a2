"""`Auto` where `jax.vmap` works: collectives, mutable arrays and side effects.

Each program gets what maps the tasks, so that `jax.vmap` is the oracle.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk


SIDE = 30
X = jnp.linspace(0.5, 1.5, 6 * SIDE, dtype=jnp.float32).reshape(6, SIDE)
# Of a lane's four matrices; three lanes fit the small budget, and six do not.
SMALL = 4 * 3 * SIDE * SIDE * 4


def work(x: jax.Array) -> jax.Array:
    matrix = jnp.sort(jnp.outer(x, x), axis=0)
    return jnp.sum(jnp.cos(jnp.sort(matrix @ matrix, axis=1)))


def nested_axes(over: Any, x: jax.Array) -> Any:
    def task(x: jax.Array) -> jax.Array:
        return work(x) / jax.lax.psum(jnp.sum(x), ("outer", "inner"))

    inner = lambda x: jax.vmap(task, axis_name="inner")(x)
    return over(inner, axis_name="outer")(jnp.stack([x, 2 * x]))


def auto_in_named_axes(over: Any, x: jax.Array) -> Any:
    def task(x: jax.Array) -> jax.Array:
        shared = jax.lax.all_gather(x, "inner") * jax.lax.axis_index("outer")
        return work(x) + shared.sum()

    inner = lambda x: over(task, axis_name="inner")(x)
    return over(inner, axis_name="outer")(jnp.stack([x, 2 * x]))


def permuted(over: Any, x: jax.Array) -> Any:
    pairs = [(i, (i + 1) % len(x)) for i in range(len(x))]
    return over(lambda x: jax.lax.ppermute(x, "i", pairs), axis_name="i")(x)


def collective_in_loop(over: Any, x: jax.Array) -> Any:
    half = bk.expensive(lambda x: x / 2 + 1e-30 * jax.lax.psum(work(x), "i"))
    goes_on = lambda x: jax.lax.pmax(x[0], "i") > 0.1
    return over(lambda x: jax.lax.while_loop(goes_on, half, x), axis_name="i")(x)


def sharded_lanes(over: Any, x: jax.Array) -> Any:
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("devices",), axis_types=automatic)
    everywhere = jax.NamedSharding(mesh, jax.P())

    def task(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x * work(x), everywhere)

    return over(task, spmd_axis_name="devices")(x)


def mapped_ref(over: Any, x: jax.Array) -> Any:
    ref = jax.new_ref(x)

    def task(ref: Any, x: jax.Array) -> None:
        ref[...] = ref[...] * work(x)

    over(task)(ref, x)
    return ref[...]


def closed_over_ref(over: Any, x: jax.Array) -> Any:
    ref = jax.new_ref(x[0])
    ref[...] += 1.0
    return over(lambda x: jnp.sum(ref[...]) * work(x))(x)


def ref_of_a_task(over: Any, x: jax.Array) -> Any:
    def task(x: jax.Array) -> Any:
        # Under vmap JAX 0.9 cannot write to a part of an array.
        ref = jax.new_ref(x)
        ref[...] = ref[...] * work(x)
        return ref[...]

    return over(task)(x)


def effect_in_loop(over: Any, x: jax.Array) -> Any:
    half = bk.expensive(lambda x: x / 2 + 1e-30 * work(x))

    def turn(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: None, x)
        return half(x)

    return over(lambda x: jax.lax.while_loop(lambda x: x[0] > 0.1, turn, x))(x)


TOGETHER = [nested_axes, auto_in_named_axes, permuted, collective_in_loop, mapped_ref]
SPLIT = [sharded_lanes, closed_over_ref, ref_of_a_task, effect_in_loop]


def assert_agrees(program: Callable[[Any, jax.Array], Any], budget: Any) -> None:
    found = jax.jit(lambda x: program(bk.Auto(budget), x))(X)
    expected = jax.jit(lambda x: program(jax.vmap, x))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("program", [*TOGETHER, *SPLIT])
def test_auto_works_where_vmap_does(program: Callable[..., Any]) -> None:
    assert_agrees(program, "1 GiB")


@pytest.mark.parametrize("program", SPLIT)
def test_tasks_that_do_not_fit_are_split(program: Callable[..., Any]) -> None:
    assert_agrees(program, SMALL)


def test_effect_of_each_task_happens_once() -> None:
    seen: list[float] = []

    def task(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(float(x)), x[0])
        return work(x)

    jax.jit(bk.Auto("1 GiB")(task))(X)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), sorted(X[:, 0]))
