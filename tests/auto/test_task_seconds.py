"""The time of a task on a CPU: which layouts it leads to, and where it must not."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap

import batchkit as bk
from batchkit.auto._task_seconds import longest_of

from ..helpers import assert_same, explained
from .conftest import set_cores


X = jnp.linspace(0.1, 1.0, 40, dtype=jnp.float32)
GRID = np.linspace(0.0, 1.0, 3_000, dtype=np.float32)


def costly(x: jax.Array) -> jax.Array:
    return x + 1e-30 * jnp.sum(jnp.sin(GRID * x))


def cheap(x: jax.Array) -> jax.Array:
    return x / 2


def rarely(x: jax.Array) -> jax.Array:
    return jax.lax.cond(x > 0.9, costly, cheap, x)


def in_scan(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (rarely(x), None), x, length=9)[0]


def in_while(x: jax.Array) -> jax.Array:
    turn = lambda carry: (rarely(carry[0]), carry[1] + 1)
    return jax.lax.while_loop(lambda carry: carry[1] < 9, turn, (x, 0))[0]


with_derivative = jax.custom_jvp(rarely)
with_derivative.defjvps(lambda t, out, x: t)


def chosen(task: Callable[..., Any], x: Any = X, **options: Any) -> bk.AbstractBatcher:
    return bk.Auto("1 GB").select(task, x, **options).batcher


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    "task", [rarely, in_scan, in_while, with_derivative, bk.expensive(rarely)]
)
def test_branch_that_may_be_rare_is_kept(task: Callable[..., Any]) -> None:
    assert chosen(task) == bk.Sequential()
    assert_same(jax.jit(bk.Auto("1 GB")(task))(X), jax.jit(jax.vmap(task))(X), ulps=4)


def same_for_all(x: jax.Array) -> jax.Array:
    return jax.lax.cond(GRID[0] + jnp.zeros(()) > 0.9, costly, cheap, x)


def small_share(x: jax.Array) -> jax.Array:
    return in_scan_of_costly(jax.lax.cond(x > 0.9, costly, cheap, x))


def in_scan_of_costly(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (costly(x), None), x, length=9)[0]


def cheap_branch(x: jax.Array) -> jax.Array:
    turn = lambda x, _: (jax.lax.cond(x > 0.9, jnp.sin, cheap, x), None)
    return jax.lax.scan(turn, x, length=100)[0]


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("task", [same_for_all, small_share, cheap_branch])
def test_branch_that_saves_little_is_not_kept(task: Callable[..., Any]) -> None:
    assert chosen(task) != bk.Sequential()


@pytest.mark.usefixtures("two_cores")
def test_branch_is_kept_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen(in_scan) == bk.Vmap()


@pytest.mark.usefixtures("two_cores")
def test_branch_is_not_kept_where_other_lanes_share_it() -> None:
    inner = lambda x: bk.Auto("1 GB")(in_scan)(x)
    (outer,) = explained(bk.Chunked(2)(inner), jnp.stack([X] * 4))
    assert "chunks of 20" in outer.inside[0].layout


def loop(body: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    turn = lambda x: body(x) - 0.01
    return lambda x: jax.lax.while_loop(lambda x: x > 0.0, turn, x)


@pytest.mark.usefixtures("two_cores")
def test_loops_that_differ_run_in_few_tasks_at_once() -> None:
    many = jnp.linspace(0.1, 1.0, 500, dtype=jnp.float32)
    assert chosen(loop(costly), many) == bk.Sequential()
    # Evaluations are too short to make up for the turns of a `Continuous`.
    sines = bk.expensive(lambda x: x + 1e-30 * jnp.sum(jnp.sin(GRID[::3] * x)))
    assert chosen(loop(sines)) == bk.Sequential()
    # Two hundred operations on one number: a core computes them for 16 tasks at once.
    scalar = lambda x: functools.reduce(lambda x, _: x * x, range(200), x)
    assert chosen(loop(scalar), many) == bk.Chunked(16)


def test_tasks_at_once_occupy_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(x: jax.Array) -> jax.Array:  # arrays of 12 kB
        return jnp.sum(jnp.sin(jnp.cos(GRID * x)))

    many = jnp.ones(64, jnp.float32)
    for cores, batcher in [(1, bk.Sequential()), (2, bk.Chunked(32)), (4, bk.Vmap())]:
        set_cores(monkeypatch, cores)
        assert chosen(task, many) == batcher


def test_what_is_the_same_for_all_tasks_is_computed_once() -> None:
    def task(x: jax.Array) -> jax.Array:
        return x * jnp.sum(jnp.sin(GRID))

    assert chosen(task) == bk.Vmap()


@custom_vmap
def centred(x: jax.Array) -> jax.Array:
    return x


@centred.def_vmap
def _(size: int, is_batched: Any, x: jax.Array) -> tuple[jax.Array, bool]:
    return x - x.mean(0), True


def printing(x: jax.Array) -> jax.Array:
    jax.debug.callback(lambda x: None, x)
    return rarely(x)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("task", [printing, lambda x: rarely(centred(x))])
def test_tasks_whose_batch_matters_are_not_split(task: Callable[..., Any]) -> None:
    assert chosen(task) == bk.Vmap()


def test_longest_task_is_that_of_exponential_lengths() -> None:
    lengths = np.random.default_rng(0).exponential(size=(20_000, 12))
    assert longest_of(12) == pytest.approx(lengths.max(1).mean(), rel=0.02)


@pytest.mark.parametrize("tasks", [2, 3, 50, 1000])
def test_longest_of_exponential_times_is_a_harmonic_number(tasks: int) -> None:
    harmonic = sum(1 / i for i in range(1, tasks + 1))
    assert longest_of(tasks) == pytest.approx(harmonic, rel=1e-3)
