"""`Auto`: the choice, that it fits the budget, and that nothing runs to find it."""

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.auto import _auto
from batchkit.auto._auto import CACHE_BYTES
from batchkit.auto._lane_memory import (
    FREE_SHARE,
    bytes_of_lanes,
    free_bytes,
)
from batchkit.devices._target import compile_options
from batchkit.explain._explain import reached_sites, recording

from ..devices.test_described import needs_cuda
from ..helpers import (
    assert_refuses,
    assert_same,
    counted,
    explained,
    mesh,
    temp_bytes,
    unchecked,
)


SIDE = 100
X = jnp.linspace(0.5, 1.5, 60 * SIDE, dtype=jnp.float32).reshape(60, SIDE)
LANE = SIDE * SIDE * 4  # one of the matrices of a lane


def squares(x: jax.Array) -> jax.Array:
    """Hold some matrices of `SIDE` x `SIDE`: XLA fuses no operation with a sort."""
    matrix = jnp.sort(jnp.outer(x, x), axis=0)
    return jnp.sum(jnp.cos(jnp.sort(matrix @ matrix / SIDE, axis=1) / SIDE))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of lanes that are compiled, with an empty cache of choices."""
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())
    sizes: list[int] = []

    def measure(task: Any, axis_name: Any, lanes: int, device: Any) -> int:
        sizes.append(lanes)
        return bytes_of_lanes(task, axis_name, lanes, device)

    monkeypatch.setattr(_auto, "bytes_of_lanes", measure)
    return sizes


@pytest.mark.parametrize("budget", [3 * LANE, 10 * LANE, 40 * LANE, 100 * LANE])
def test_chosen_chunk_is_the_largest_that_fits(
    budget: int, compiled: list[int]
) -> None:
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


def test_results_equal_those_of_the_chosen_batcher() -> None:
    auto = bk.Auto(10 * LANE)
    chosen = auto.select(squares, X).batcher
    found = jax.jit(auto(squares))(X)
    assert_same(found, jax.jit(chosen(squares))(X), ulps=0)
    np.testing.assert_allclose(found, jax.vmap(squares)(X), rtol=1e-5)


def test_vmap_is_chosen_if_all_tasks_fit(compiled: list[int]) -> None:
    whole = bytes_of_whole()
    assert bk.Auto(whole).select(squares, X).batcher == bk.Vmap()
    assert bk.Auto(whole - 1).select(squares, X).batcher != bk.Vmap()
    assert compiled[0] == len(X)


def bytes_of_whole() -> int:
    stats = jax.jit(jax.vmap(squares)).lower(X).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes + stats.output_size_in_bytes + X.nbytes


def test_nothing_is_compiled_far_below_the_budget(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_auto, "CACHE_BYTES", 1 << 40)
    chosen = bk.Auto("1 GiB").select(squares, X[:6])
    assert (chosen.batcher, chosen.bytes, compiled) == (bk.Vmap(), None, [])
    found = jax.jit(bk.Auto("1 GiB")(squares))(X[:6])
    assert_same(found, jax.jit(jax.vmap(squares))(X[:6]), ulps=0)


def test_choice_is_for_the_device_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = jax.devices()[1]
    chosen = bk.Auto(10 * LANE, device=other).select(squares, X)
    assert chosen.batcher == bk.Auto(10 * LANE).select(squares, X).batcher
    monkeypatch.setattr(_auto, "CACHE_BYTES", 10 * LANE)
    monkeypatch.setattr(_auto, "platform_of", lambda device: "gpu" if device else "cpu")
    assert bk.Auto("1 GB").select(squares, X).batcher != bk.Vmap()
    assert bk.Auto("1 GB", device=other).select(squares, X).batcher == bk.Vmap()


@needs_cuda
def test_choice_for_a_described_gpu_fits() -> None:
    device = bk.described_device("A100-40GB")
    chosen = bk.Auto(10 * LANE, device=device).select(squares, X)
    assert isinstance(chosen.batcher, bk.Chunked)
    fun = bk.Chunked(chosen.batcher.size)(squares)
    rows = X[: chosen.batcher.size]
    assert bk.memory(fun, rows, device=device).temporary <= 10 * LANE
    assert bk.Auto(device=device).select(squares, X).budget == 42_331_013_120 // 2


def test_devices_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong: Any = "H100"
    with pytest.raises(TypeError, match="device must be a device of JAX"):
        bk.Auto("1 GB", device=wrong)
    monkeypatch.setattr(_auto, "is_described", lambda device: True)
    with pytest.raises(ValueError, match="a described device cannot run anything"):
        bk.Auto("1 GB", measure=True, device=jax.devices()[0])


def test_lanes_on_a_cpu_fit_its_cache() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("about CPUs")
    many = jnp.concatenate([X] * 16)
    chosen = bk.Auto("1 GiB").select(squares, many)
    assert isinstance(chosen.batcher, bk.Chunked)
    assert chosen.bytes is not None
    assert 0.9 * CACHE_BYTES < chosen.bytes <= CACHE_BYTES
    assert "stay in the cache of a CPU" in chosen.reason


@pytest.mark.parametrize("name", ["another platform", "a lane beyond the cache"])
def test_cache_limits_only_small_lanes_on_a_cpu(
    name: str, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "another platform":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        monkeypatch.setattr(_auto, "CACHE_BYTES", LANE // 2)
    assert bk.Auto("1 GiB").select(squares, X).batcher == bk.Vmap()
    assert compiled == []


def test_choices_are_cached_by_computation_and_shapes(compiled: list[int]) -> None:
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


def test_function_is_traced_once() -> None:
    fun, traces = counted(squares)
    jax.jit(bk.Auto(10 * LANE)(fun))(X)
    assert len(traces) == 1


def test_nothing_runs_during_the_choice(compiled: list[int]) -> None:
    ran: list[int] = []

    def task(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return squares(x)

    bk.Auto(10 * LANE).select(task, X)
    jax.jit(bk.Auto(10 * LANE)(task)).lower(X).compile()
    jax.effects_barrier()
    assert compiled
    assert ran == []


def test_closed_over_arrays_count_once() -> None:
    data = jnp.ones((1000, SIDE))
    task = lambda x: jnp.sum(data @ x) + squares(x)
    one = bk.Auto(10 * LANE).select(squares, X)
    other = bk.Auto(10 * LANE).select(task, X)
    assert isinstance(one.batcher, bk.Chunked)
    assert isinstance(other.batcher, bk.Chunked)
    assert other.batcher.size >= one.batcher.size - 1  # a lane has `data @ x` more


def test_function_may_close_over_tracers() -> None:
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
def test_budget_is_divided_among_outer_lanes(
    outer: bk.AbstractBatcher, parts: int, compiled: list[int]
) -> None:
    budget = 40 * LANE
    whole = bk.Auto(budget // parts).select(squares, X)
    task = lambda x: bk.Auto(budget)(squares)(x)
    (record,) = explained(outer(task), jnp.stack([X] * 4))
    assert whole.reason in record.inside[0].note
    found = jax.jit(outer(task))(jnp.stack([X] * 4))
    np.testing.assert_allclose(found[3], jax.vmap(squares)(X), rtol=1e-5)


def test_auto_inside_sharded_chunks_each_share() -> None:
    batcher = bk.Sharded(mesh(2), inner=bk.Auto(10 * LANE))
    (record,) = explained(batcher(squares), X)
    assert record.layout.startswith("2 devices of 30, ")
    assert " of 30 tasks at once need " in record.note
    np.testing.assert_allclose(
        jax.jit(batcher(squares))(X), jax.vmap(squares)(X), rtol=1e-5
    )


def test_collective_over_an_outer_axis_is_compiled() -> None:
    def task(x: jax.Array) -> jax.Array:
        return squares(x) / jax.lax.psum(jnp.sum(x), "outer")

    def outer(batcher: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(batcher(task), axis_name="outer")(x)

    both = jnp.stack([X, 2 * X])
    found = jax.jit(lambda x: outer(bk.Auto(10 * LANE), x))(both)
    np.testing.assert_allclose(found, outer(jax.vmap, both), rtol=1e-5)


def test_communicating_tasks_are_never_split() -> None:
    def task(x: jax.Array) -> jax.Array:
        return squares(x) / jax.lax.pmax(jnp.sum(x), "tasks")

    expected = jax.vmap(task, axis_name="tasks")(X)
    found = jax.jit(bk.Auto("1 GiB")(task, axis_name="tasks"))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="collective") as info:
        jax.jit(bk.Auto(10 * LANE)(task, axis_name="tasks"))(X)
    assert "all 60 tasks at once need" in info.value.__notes__[0]


def test_budget_below_one_lane_is_an_error() -> None:
    with pytest.raises(bk.BudgetError, match="one lane needs") as info:
        bk.Auto("1 kB").select(squares, X)
    assert info.value.budget == 1000
    assert LANE <= info.value.needed <= 4 * LANE
    assert "float32[100,100] of dot_general" in str(info.value)
    assert "Auto(budget='1 kB'" in str(info.value)


def test_zero_tasks_need_no_budget() -> None:
    assert bk.Auto("1 kB")(squares)(X[:0]).shape == (0,)
    assert bk.Auto("1 kB").select(squares, X[:0]).batcher == bk.Vmap()


def test_select_accepts_shapes_and_axes() -> None:
    rows = jax.ShapeDtypeStruct((SIDE, 60), jnp.float32)
    auto = bk.Auto(10 * LANE)
    chosen = auto.select(lambda x, y: squares(x * y), rows, 2.0, in_axes=(1, None))
    assert isinstance(chosen.batcher, bk.Chunked)
    assert "of 60 tasks" in chosen.reason
    assert auto.select(lambda: squares(X[0]), axis_size=5).batcher == bk.Vmap()


def test_default_budget_is_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = bk.Auto().select(squares, X)
    free = free_bytes()
    assert 0.5 * FREE_SHARE * free < chosen.budget <= 1.1 * FREE_SHARE * free
    assert chosen.batcher == bk.Vmap()


def test_reverse_mode_equals_vmap() -> None:
    auto = bk.Auto(10 * LANE)
    found = jax.jit(jax.grad(lambda x: auto(squares)(x).sum()))(X)
    expected = jax.grad(lambda x: jax.vmap(squares)(x).sum())(X)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_fast_compile_options_keep_the_buffers() -> None:
    lowered = jax.jit(jax.vmap(squares)).lower(X)
    one, other = lowered.compile(), lowered.compile(compile_options(None))
    quick, slow = one.memory_analysis(), other.memory_analysis()
    assert quick is not None
    assert slow is not None
    assert quick.temp_size_in_bytes == slow.temp_size_in_bytes


# Tasks that loop a different number of times.


def halvings(work: int) -> Callable[[jax.Array], jax.Array]:
    grid = np.linspace(0.0, 1.0, work, dtype=np.float32)

    @bk.expensive
    def half(x: jax.Array) -> jax.Array:
        return x / 2 + 1e-30 * jnp.sum(jnp.sort(jnp.sin(grid * x)))

    return lambda x: jax.lax.while_loop(lambda x: x > 0.1, half, x)


@pytest.mark.usefixtures("two_cores")
def test_continuous_is_chosen_for_expensive_loops() -> None:
    x = jnp.linspace(0.2, 9.0, 80)
    chosen = bk.Auto("1 GB").select(halvings(20_000), x)
    assert chosen.batcher == bk.Continuous(16)
    assert chosen.reason.startswith("half (")
    found = jax.jit(bk.Auto("1 GB")(halvings(20_000)))(x)
    expected = jax.vmap(halvings(20_000))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("work", "kind"), [(10_000, bk.Vmap), (10**6, bk.Continuous)])
def test_on_an_accelerator_calls_must_occupy_it(
    work: int, kind: type[bk.AbstractBatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call in 80 lanes has 1.6e7 operations, and 1.8e9."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    chosen = bk.Auto("100 GB").select(halvings(work), jnp.linspace(0.2, 9.0, 80))
    assert isinstance(chosen.batcher, kind)


def test_continuous_lanes_are_reduced_to_fit() -> None:
    x = jnp.linspace(0.2, 9.0, 80)
    task = halvings(20_000)
    chosen = bk.Auto(5 * 20_000 * 4).select(task, x)
    assert isinstance(chosen.batcher, bk.Continuous)
    assert chosen.batcher.lanes < 10
    assert chosen.bytes is not None
    assert temp_bytes(chosen.batcher(task), x) == chosen.bytes <= chosen.budget
    assert temp_bytes(bk.Continuous(chosen.batcher.lanes + 1)(task), x) > chosen.budget


@pytest.mark.parametrize("task", [halvings(10), lambda x: jnp.sin(x)])
def test_cheap_or_loopless_tasks_get_no_continuous(task: Callable[..., Any]) -> None:
    chosen = bk.Auto("1 GB").select(task, jnp.linspace(0.2, 9, 80))
    assert not isinstance(chosen.batcher, bk.Continuous)


WORK = np.linspace(0.0, 1.0, 20_000, dtype=np.float32)
NSS: dict[str, Any] = {
    "logprior_fn": lambda x: -0.5 * jnp.sum(x**2),
    "loglikelihood_fn": lambda x: (
        -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sort(WORK * x[0]))
    ),
    "num_inner_steps": 3,
    "num_delete": 20,
}
POSITIONS = jax.random.normal(jax.random.key(0), (40, 2))


@pytest.mark.usefixtures("two_cores")
def test_auto_chooses_for_every_site_of_nss() -> None:
    auto = bk.rebuild_sampler(blackjax.nss, batcher=bk.Auto("1 MB"))(**NSS)
    with unchecked(), recording() as init_log:
        state = jax.eval_shape(auto.init, POSITIONS)
    with unchecked(), recording() as step_log:
        jax.eval_shape(auto.step, jax.random.key(1), state)
    (init, *_), (step, *_) = reached_sites(init_log), reached_sites(step_log)
    assert init.batcher == step.batcher == "Auto(budget='1 MB')"
    assert "of 40 tasks at once need" in init.note
    assert step.layout == "8 lanes kept busy"
    assert "loglikelihood_fn" in step.note


@pytest.mark.slow
def test_nss_under_auto_has_the_numbers_of_upstream() -> None:
    auto = bk.rebuild_sampler(blackjax.nss, batcher=bk.Auto("1 MB"))(**NSS)
    upstream = blackjax.nss(**NSS)
    state = jax.jit(upstream.init)(POSITIONS)
    new, _ = jax.jit(auto.step)(jax.random.key(1), state)
    expected, _ = jax.jit(upstream.step)(jax.random.key(1), state)
    np.testing.assert_allclose(
        new.particles.loglikelihood, expected.particles.loglikelihood, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: bk.Auto(0), ValueError, ("Auto(budget=0", "at least one byte")),
        (lambda: bk.Auto("lots"), ValueError, ("budget='lots'", "'8 GiB'")),
        (lambda: bk.Auto(1.5), TypeError, ("budget=1.5", "float")),  # pyright: ignore
        (lambda: bk.Auto(True), TypeError, ("budget=True", "bool")),
    ],
)
def test_invalid_budget_is_refused(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    assert_refuses(make, error, words)


def test_callback_for_one_task_at_a_time_is_called_so() -> None:
    def task(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, x, x)

    x = jnp.arange(5.0)
    chosen = bk.Auto("1 MB").select(task, x)
    assert chosen.batcher == bk.Sequential()
    np.testing.assert_allclose(jax.jit(bk.Auto("1 MB")(task))(x), np.sin(x), 1e-6)


def test_select_takes_arguments_that_are_no_arrays() -> None:
    def task(count: int, fun: Any, x: jax.Array) -> jax.Array:
        return jnp.zeros(count) + fun(x).sum()

    axes = (None, None, 0)
    chosen = bk.Auto("1 MB").select(task, 3, jnp.sin, jnp.ones((4, 5)), in_axes=axes)
    assert chosen.batcher == bk.Vmap()


def test_choice_depends_on_the_size_of_an_outer_axis() -> None:
    def task(x: jax.Array) -> jax.Array:
        return jnp.outer(x, jax.lax.psum(x, "outer"))

    _auto._CHOICES.clear()
    for size in (2, 50, 50):
        fun = jax.vmap(bk.Auto("1 MB")(task), axis_name="outer")
        jax.eval_shape(fun, jnp.ones((size, 3, 4)))
    assert len(_auto._CHOICES) == 2
