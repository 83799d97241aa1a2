"""The number of lanes of a `Continuous`: model, counts and measurements."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.auto import _lane_count
from batchkit.auto._lane_count import (
    IDLE,
    TURN,
    JointCalls,
    best_lane_count,
    lane_counts,
)
from batchkit.batchers._call import Call
from batchkit.continuous._continuous import compile_task


MATRIX = np.ones((40, 30), np.float32)


def calls_of(expensive: Any, dim: int = 30, tasks: int = 64) -> JointCalls:
    """The calls of a task that makes them until a number is small."""
    marked = bk.expensive(expensive)

    def task(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0] > 0.1, lambda x: x - marked(x), x)

    arguments = (jnp.ones((tasks, dim), jnp.float32),)
    call = Call(task, arguments, {}, 0, 0, None, None, None)
    found: list[JointCalls] = []

    def trace() -> tuple[()]:
        found.append(JointCalls(compile_task(call.trace(bk.Continuous(2)))[0]))
        return ()

    jax.eval_shape(trace)
    return found[0]


@pytest.mark.parametrize("tasks", [10, 150, 1000])
@pytest.mark.parametrize("share", [1e-6, 1e-5, 1e-4])
def test_lanes_are_those_of_the_closed_form(tasks: int, share: float) -> None:
    """(c + T/w)(1 + I w/n) is least at w = sqrt(n T / (I c))."""
    shares = dict.fromkeys(range(1, tasks + 1), share)
    lowest = (tasks * TURN / (IDLE * share)) ** 0.5
    assert abs(best_lane_count(shares, tasks) - min(max(lowest, 1), tasks)) < 1


def test_a_shape_that_is_slow_is_not_chosen() -> None:
    shares = {8: 12.5e-4, 16: 18.6e-4, 32: 13.0e-4, 64: 9.8e-4, 128: 9.8e-4}
    assert best_lane_count(shares, tasks=1000) == 64


def test_numbers_of_lanes_that_are_compared() -> None:
    assert lane_counts(150) == [4, 8, 16, 32, 64, 128, 150]
    assert lane_counts(64) == [4, 8, 16, 32, 64]
    assert lane_counts(3) == [3]


def never_ends(x: jax.Array) -> jax.Array:
    return jax.lax.while_loop(lambda x: x[0] != 1, lambda x: x, x)[0]


def on_the_host(x: jax.Array) -> jax.Array:
    kind = jax.ShapeDtypeStruct((), x.dtype)
    return jax.pure_callback(np.sum, kind, x, vmap_method="sequential")


def test_only_what_is_safe_to_call_is_measured() -> None:
    assert calls_of(lambda x: jnp.sum(MATRIX @ x)).can_run
    assert not calls_of(never_ends).can_run
    assert not calls_of(on_the_host).can_run


def test_a_lanes_share_is_measured_also_while_tracing() -> None:
    def traced(matrix: jax.Array) -> jax.Array:
        calls = calls_of(lambda x: jnp.sum(matrix @ x))
        assert calls.can_run
        shares = calls.measured_shares([4, 8], budget=10**9)
        assert list(shares) == [4, 8]
        assert all(0 < share < 1 for share in shares.values())
        return matrix

    traced(jnp.asarray(MATRIX))
    jax.jit(traced)(MATRIX)


def test_lanes_that_exceed_the_budget_are_not_run() -> None:
    calls = calls_of(lambda x: jnp.sum(jnp.sort(jnp.outer(jnp.sin(x), x).ravel())))
    assert list(calls.measured_shares([4, 8, 1000], budget=10**6)) == [4, 8]
    assert calls.measured_shares([4, 8], budget=1000) == {}


def task(x: jax.Array) -> jax.Array:
    @bk.expensive
    def half(x: jax.Array) -> jax.Array:
        return x / 2 + 1e-30 * jnp.sum(jnp.sin(jnp.arange(20_000.0) * x))

    return jax.lax.while_loop(lambda x: x > 0.1, half, x)


def test_auto_takes_the_lanes_that_were_measured_to_be_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The share of 64 lanes is the least. 80 tasks have six numbers to compare.
    taken = {4: 9e-4, 8: 5e-4, 16: 6e-4, 32: 4e-4, 64: 1e-4, 80: 9e-4}
    ran: list[list[int]] = []

    def measured(self: JointCalls, lanes: list[int], budget: int) -> dict[int, float]:
        ran.append(lanes)
        return {each: taken[each] for each in lanes}

    monkeypatch.setattr(JointCalls, "measured_shares", measured)
    x = jnp.linspace(0.2, 9.0, 80)
    counted = bk.Auto("1 GB").select(task, x)
    assert isinstance(counted.batcher, bk.Continuous)
    assert ran == []
    chosen = bk.Auto("1 GB", measure=True).select(task, x)
    assert ran == [[4, 8, 16, 32, 64, 80]]
    assert chosen.batcher == bk.Continuous(64)
    assert "100 with 64" in chosen.reason


def test_measured_layout_gives_the_results_of_vmap() -> None:
    x = jnp.linspace(0.2, 9.0, 20)
    found = jax.jit(bk.Auto("1 GB", measure=True)(task))(x)
    np.testing.assert_allclose(found, jax.vmap(task)(x), rtol=1e-6)


def test_measuring_is_refused_in_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"2 processes .* `measure=False`"):
        bk.Auto("1 GB", measure=True).select(task, jnp.ones(20))


@pytest.mark.usefixtures("no_type_checks")
def test_measure_must_be_a_bool() -> None:
    with pytest.raises(TypeError, match=r"measure='yes'.*must be True or False"):
        bk.Auto(measure="yes")  # pyright: ignore[reportArgumentType]


def test_a_measurement_repeats_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lane_count, "_seconds", lambda run, repeats: 1e-4)
    assert _lane_count._repeats(lambda: None) == 20
    monkeypatch.setattr(_lane_count, "_seconds", lambda run, repeats: 1.0)
    assert _lane_count._repeats(lambda: None) == 1
