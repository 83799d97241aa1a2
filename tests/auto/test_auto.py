"""`Auto`: what it chooses, that it fits, and that nothing is run to find out."""

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.auto import _auto, _select
from batchkit.auto._budget import FREE_SHARE, free_bytes
from batchkit.auto._probe import bytes_of_lanes, quick_options
from batchkit.auto._rule import CACHE

from ..helpers import (
    assert_refuses,
    assert_same,
    counted,
    explained,
    mesh,
    temp_bytes,
)


SIDE = 100
X = jnp.linspace(0.5, 1.5, 60 * SIDE, dtype=jnp.float32).reshape(60, SIDE)
LANE = SIDE * SIDE * 4  # one of the matrices of a lane


def squares(x: jax.Array) -> jax.Array:
    """Holds some matrices of `SIDE` x `SIDE`."""
    matrix = jnp.sin(jnp.outer(x, x))
    return jnp.sum(jnp.cos(matrix @ matrix))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of lanes that were compiled; nothing is remembered from before."""
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())
    sizes: list[int] = []

    def measure(task: Any, axis_name: Any, lanes: int) -> int:
        sizes.append(lanes)
        return bytes_of_lanes(task, axis_name, lanes)

    monkeypatch.setattr(_select, "bytes_of_lanes", measure)
    return sizes


@pytest.mark.parametrize("budget", [3 * LANE, 10 * LANE, 40 * LANE, 100 * LANE])
def test_the_largest_chunk_that_fits(budget: int, compiled: list[int]) -> None:
    chosen = bk.Auto(budget).select(squares, X)
    assert isinstance(chosen.batcher, bk.Chunked)
    assert len(compiled) <= 3
    assert chosen.bytes is not None
    assert chosen.bytes <= budget

    def lanes(size: int) -> int:
        rows = jax.ShapeDtypeStruct((size, SIDE), X.dtype)
        stats = jax.jit(jax.vmap(squares)).lower(rows).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes + 4 * size + 4 * SIDE * size

    assert lanes(chosen.batcher.size) == chosen.bytes
    assert lanes(chosen.batcher.size + 1) > budget
    assert f"{chosen.batcher.size} of 60 tasks" in chosen.reason
    assert temp_bytes(bk.Auto(budget)(squares), X) <= budget + X.nbytes


def test_results_are_those_of_the_chosen_batcher() -> None:
    auto = bk.Auto(10 * LANE)
    chosen = auto.select(squares, X).batcher
    found = jax.jit(auto(squares))(X)
    assert_same(found, jax.jit(chosen(squares))(X), ulps=0)
    np.testing.assert_allclose(found, jax.vmap(squares)(X), rtol=1e-5)


def test_vmap_where_all_fits(compiled: list[int]) -> None:
    whole = bytes_of_whole()
    assert bk.Auto(whole).select(squares, X).batcher == bk.Vmap()
    assert bk.Auto(whole - 1).select(squares, X).batcher != bk.Vmap()
    assert compiled[0] == len(X)


def bytes_of_whole() -> int:
    stats = jax.jit(jax.vmap(squares)).lower(X).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes + stats.output_size_in_bytes + X.nbytes


def test_where_all_fits_by_far_nothing_is_compiled(compiled: list[int]) -> None:
    chosen = bk.Auto("1 GiB").select(squares, X[:4])
    assert (chosen.batcher, chosen.bytes, compiled) == (bk.Vmap(), None, [])
    found = jax.jit(bk.Auto("1 GiB")(squares))(X[:4])
    assert_same(found, jax.jit(jax.vmap(squares))(X[:4]), ulps=0)


def test_no_more_lanes_than_stay_in_the_cache_of_a_cpu() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("about CPUs")
    many = jnp.concatenate([X] * 20)
    chosen = bk.Auto("1 GiB").select(squares, many)
    assert isinstance(chosen.batcher, bk.Chunked)
    assert chosen.bytes is not None
    assert 0.9 * CACHE < chosen.bytes <= CACHE
    assert "stay in the cache of a CPU" in chosen.reason


def test_choices_are_remembered_by_what_is_computed(compiled: list[int]) -> None:
    def make(power: float) -> Callable[[jax.Array], jax.Array]:
        return lambda x: squares(x) ** power

    for _ in range(3):  # a new closure each time
        jax.jit(bk.Auto(10 * LANE)(make(2.0)))(X)
    once = len(compiled)
    assert once > 0
    jax.jit(bk.Auto(10 * LANE)(make(3.0)))(X)
    assert len(compiled) > once
    for other in (X[:30], X[:, :50], X.astype(jnp.float16)):
        before = len(compiled)
        jax.jit(bk.Auto(10 * LANE)(make(2.0)))(other)
        assert len(compiled) > before or other.size < X.size


def test_a_function_is_traced_once() -> None:
    fun, traces = counted(squares)
    jax.jit(bk.Auto(10 * LANE)(fun))(X)
    assert len(traces) == 1


def test_nothing_runs_while_it_chooses(compiled: list[int]) -> None:
    ran: list[int] = []

    def task(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return squares(x)

    bk.Auto(10 * LANE).select(task, X)
    jax.jit(bk.Auto(10 * LANE)(task)).lower(X).compile()
    jax.effects_barrier()
    assert compiled
    assert ran == []


def test_what_is_closed_over_counts_once() -> None:
    data = jnp.ones((1000, SIDE))
    task = lambda x: jnp.sum(data @ x) + squares(x)
    one = bk.Auto(10 * LANE).select(squares, X)
    other = bk.Auto(10 * LANE).select(task, X)
    assert isinstance(one.batcher, bk.Chunked)
    assert isinstance(other.batcher, bk.Chunked)
    assert other.batcher.size >= one.batcher.size - 1  # a lane has `data @ x` more


def test_closed_over_tracers() -> None:
    @jax.jit
    def outer(scale: jax.Array, x: jax.Array) -> jax.Array:
        return bk.Auto(10 * LANE)(lambda x: squares(scale * x))(x)

    expected = jax.vmap(lambda x: squares(2.0 * x))(X)
    np.testing.assert_allclose(outer(jnp.float32(2.0), X), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("outer", "parts"),
    [
        (bk.Vmap(), 4),
        (bk.Chunked(2), 2),
        (bk.Sequential(), 1),
        (bk.Sharded(mesh(2)), 2),
        (bk.Auto("1 GB"), 2),
    ],
)
def test_lanes_around_share_the_budget(
    outer: bk.AbstractBatcher, parts: int, compiled: list[int]
) -> None:
    budget = 40 * LANE
    whole = bk.Auto(budget // parts).select(squares, X)
    task = lambda x: bk.Auto(budget)(squares)(x)
    (record,) = explained(outer(task), jnp.stack([X] * 4))
    assert whole.reason in record.inside[0].note
    found = jax.jit(outer(task))(jnp.stack([X] * 4))
    np.testing.assert_allclose(found[3], jax.vmap(squares)(X), rtol=1e-5)


def test_inside_a_chunk_and_on_devices() -> None:
    batcher = bk.Sharded(mesh(2), inner=bk.Auto(10 * LANE))
    (record,) = explained(batcher(squares), X)
    assert record.layout.startswith("2 devices of 30, ")
    assert " of 30 tasks at once need " in record.note
    np.testing.assert_allclose(
        jax.jit(batcher(squares))(X), jax.vmap(squares)(X), rtol=1e-5
    )


def test_an_axis_around() -> None:
    def task(x: jax.Array) -> jax.Array:
        return squares(x) / jax.lax.psum(jnp.sum(x), "outer")

    def outer(batcher: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(batcher(task), axis_name="outer")(x)

    both = jnp.stack([X, 2 * X])
    found = jax.jit(lambda x: outer(bk.Auto(10 * LANE), x))(both)
    np.testing.assert_allclose(found, outer(jax.vmap, both), rtol=1e-5)


def test_tasks_that_communicate_run_together_or_not_at_all() -> None:
    def task(x: jax.Array) -> jax.Array:
        return squares(x) / jax.lax.pmax(jnp.sum(x), "tasks")

    expected = jax.vmap(task, axis_name="tasks")(X)
    found = jax.jit(bk.Auto("1 GiB")(task, axis_name="tasks"))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="collective") as info:
        jax.jit(bk.Auto(10 * LANE)(task, axis_name="tasks"))(X)
    assert "all 60 tasks at once need" in info.value.__notes__[0]


def test_not_even_one_lane() -> None:
    with pytest.raises(bk.BudgetError, match="one lane needs") as info:
        bk.Auto("1 kB").select(squares, X)
    assert info.value.budget == 1000
    assert LANE <= info.value.needed <= 4 * LANE
    assert "float32[100,100] of dot_general" in str(info.value)
    assert "Auto(budget='1 kB')" in str(info.value)


def test_no_tasks() -> None:
    assert bk.Auto("1 kB")(squares)(X[:0]).shape == (0,)
    assert bk.Auto("1 kB").select(squares, X[:0]).batcher == bk.Vmap()


def test_select_takes_shapes_and_axes() -> None:
    rows = jax.ShapeDtypeStruct((SIDE, 60), jnp.float32)
    auto = bk.Auto(10 * LANE)
    chosen = auto.select(lambda x, y: squares(x * y), rows, 2.0, in_axes=(1, None))
    assert isinstance(chosen.batcher, bk.Chunked)
    assert "of 60 tasks" in chosen.reason
    assert auto.select(lambda: squares(X[0]), axis_size=5).batcher == bk.Vmap()


def test_without_a_budget_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = bk.Auto().select(squares, X)
    free = free_bytes()
    assert 0.5 * FREE_SHARE * free < chosen.budget <= 1.1 * FREE_SHARE * free
    assert chosen.batcher == bk.Vmap()


def test_backward_mode() -> None:
    auto = bk.Auto(10 * LANE)
    found = jax.jit(jax.grad(lambda x: auto(squares)(x).sum()))(X)
    expected = jax.grad(lambda x: jax.vmap(squares)(x).sum())(X)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_quick_compilation_assigns_the_same_buffers() -> None:
    lowered = jax.jit(jax.vmap(squares)).lower(X)
    one, other = lowered.compile(), lowered.compile(quick_options())
    quick, slow = one.memory_analysis(), other.memory_analysis()
    assert quick is not None
    assert slow is not None
    assert quick.temp_size_in_bytes == slow.temp_size_in_bytes


# Lanes that take different ways.


def halvings(work: int) -> Callable[[jax.Array], jax.Array]:
    grid = np.linspace(0.0, 1.0, work, dtype=np.float32)

    @bk.expensive
    def half(x: jax.Array) -> jax.Array:
        return x / 2 + 1e-30 * jnp.sum(jnp.sin(grid * x))

    return lambda x: jax.lax.while_loop(lambda x: x > 0.1, half, x)


def test_lanes_that_never_wait_for_what_is_expensive() -> None:
    x = jnp.linspace(0.2, 9.0, 80)
    chosen = bk.Auto("1 GB").select(halvings(20_000), x)
    assert chosen.batcher == bk.Continuous(16)
    assert chosen.reason.startswith("half (")
    found = jax.jit(bk.Auto("1 GB")(halvings(20_000)))(x)
    expected = jax.vmap(halvings(20_000))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_fewer_lanes_where_memory_is_short() -> None:
    x = jnp.linspace(0.2, 9.0, 80)
    task = halvings(20_000)
    chosen = bk.Auto(5 * 20_000 * 4).select(task, x)
    assert isinstance(chosen.batcher, bk.Continuous)
    assert chosen.batcher.lanes < 10
    assert chosen.bytes is not None
    assert temp_bytes(chosen.batcher(task), x) == chosen.bytes <= chosen.budget
    assert temp_bytes(bk.Continuous(chosen.batcher.lanes + 1)(task), x) > chosen.budget


@pytest.mark.parametrize("task", [halvings(10), lambda x: jnp.sin(x)])
def test_lanes_wait_otherwise(task: Callable[..., Any]) -> None:
    assert bk.Auto("1 GB").select(task, jnp.linspace(0.2, 9, 80)).batcher == bk.Vmap()


def test_every_site_of_a_rebuilt_sampler() -> None:
    work = np.linspace(0.0, 1.0, 20_000, dtype=np.float32)
    algorithm = bk.rebuild_sampler(blackjax.nss, batcher=bk.Auto("1 MB"))(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: (
            -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(work * x[0]))
        ),
        num_inner_steps=3,
        num_delete=20,
    )
    plain = blackjax.nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: (
            -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(work * x[0]))
        ),
        num_inner_steps=3,
        num_delete=20,
    )
    positions = jax.random.normal(jax.random.key(0), (40, 2))
    init, *_ = explained(algorithm.init, positions)
    assert init.batcher == "Auto(budget='1 MB')"
    assert "of 40 tasks at once need" in init.note
    state = jax.jit(plain.init)(positions)
    step, *_ = explained(algorithm.step, jax.random.key(1), state)
    assert step.layout == "6 lanes kept busy"
    assert "loglikelihood_fn" in step.note
    new, _ = jax.jit(algorithm.step)(jax.random.key(1), state)
    expected, _ = jax.jit(plain.step)(jax.random.key(1), state)
    np.testing.assert_allclose(
        new.particles.loglikelihood, expected.particles.loglikelihood, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: bk.Auto(0), ValueError, ("Auto(budget=0)", "at least one byte")),
        (lambda: bk.Auto("lots"), ValueError, ("budget='lots'", "'8 GiB'")),
        (lambda: bk.Auto(1.5), TypeError, ("budget=1.5", "float")),  # pyright: ignore
        (lambda: bk.Auto(True), TypeError, ("budget=True", "bool")),
    ],
)
def test_constructor(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    assert_refuses(make, error, words)
