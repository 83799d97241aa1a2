"""Loops, errors and solvers of Equinox and what stands on it, one task in each lane."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
import pytest
from jax.custom_batching import custom_vmap

import batchkit as bk

from ..helpers import every_splitting_batcher, explained


LANES = 3
# The trip count of each task; the longest is neither the first nor the last.
TURNS = np.array([3, 50, 1, 0, 20, 60, 7, 7], np.int32)
MOST = 60


def assert_as_vmap(task: Callable[..., Any], xs: Any, rtol: float = 2e-5) -> Any:
    """Assert that lanes compute what `jax.vmap` does, and return their statistics."""
    found, stats = jax.jit(bk.Continuous(LANES).with_stats(task))(xs)
    expected = jax.jit(jax.vmap(task))(xs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=1e-6)
    return stats


LOOPS: dict[str, dict[str, Any]] = {
    "lax": {"kind": "lax"},
    "lax, max_steps": {"kind": "lax", "max_steps": MOST},
    "checkpointed": {"kind": "checkpointed", "checkpoints": 4},
    "checkpointed, max_steps": {"kind": "checkpointed", "max_steps": MOST},
    "bounded": {"kind": "bounded", "max_steps": MOST},
}
every_loop = pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)


@every_loop
def test_loop_of_one_lane_does_not_wait_for_the_others(options: dict[str, Any]) -> None:
    def task(turns: Any) -> Any:
        # The rows are a buffer, which Equinox updates in place under `jax.vmap` only
        # for tasks that are not done.
        def turn(carry: Any) -> Any:
            i, x, rows = carry
            return i + 1, jnp.sin(x) + i, rows.at[i].set(x)

        start = jnp.zeros((), jnp.int32), 1.0, jnp.zeros(MOST)
        goes_on = lambda carry: carry[0] < turns
        return eqxi.while_loop(goes_on, turn, start, buffers=lambda c: c[2], **options)

    stats = assert_as_vmap(task, TURNS)
    # One turn of the loop over lanes for each turn of a task, and some to end it.
    needed = (TURNS + 2).sum()
    assert int(stats.needed) <= needed
    # At the end some lanes have no task left, while the longest task runs.
    assert int(stats.made) <= needed + (LANES - 1) * MOST


@every_loop
def test_turn_of_a_loop_is_known_to_be_costly(options: dict[str, Any]) -> None:
    def turn(x: Any) -> Any:
        return x / 2 + 1e-30 * jnp.sum(jnp.sin(jnp.linspace(0.0, 1.0, 3_000) * x))

    def task(x: Any) -> Any:
        return eqxi.while_loop(lambda x: x > 0.1, turn, x, **options)

    (reached,) = explained(bk.Continuous(LANES)(task), jnp.arange(8.0))
    assert "B stored per lane" in reached.note
    assert "fewer than" not in reached.note


@pytest.mark.parametrize(
    "options", [x for x in LOOPS.values() if x["kind"] != "lax"], ids=str
)
def test_gradient_of_a_loop_inside_a_task(options: dict[str, Any]) -> None:
    def task(x: Any) -> Any:
        goes_on = lambda carry: carry[0] < 10
        turn = lambda carry: (carry[0] * 1.3, jnp.sin(carry[1]) + x * carry[1])
        return eqxi.while_loop(goes_on, turn, (x, x), **options)[1]

    xs = np.geomspace(0.05, 8, 8).astype(np.float32)
    assert_as_vmap(jax.grad(task), xs)


def halve_to_one(x: Any) -> Any:
    """Halve until the number is at most one, and raise for a number below zero."""
    goes_on = lambda x: (x > 1) | (x < 0)
    turn = lambda x: eqx.error_if(x / 2, x < 0, "a negative number")
    return jax.lax.while_loop(goes_on, turn, x)


NUMBERS = np.array([5, 1000, 3, 1, 70, 2, 9], np.float32)


def test_error_of_one_task_is_raised() -> None:
    bad = NUMBERS.copy()
    bad[5] = -2
    lanes = eqx.filter_jit(bk.Continuous(LANES)(halve_to_one))
    np.testing.assert_allclose(lanes(NUMBERS), jax.vmap(halve_to_one)(NUMBERS))
    with pytest.raises(eqx.EquinoxRuntimeError, match="a negative number"):
        lanes(bad)


def test_inactive_lanes_raise_no_error() -> None:
    # A lane that is done holds a value for which the next turn would raise. Under
    # `jax.vmap` that turn is made, and raises.
    def task(x: Any) -> Any:
        turn = lambda x: eqx.error_if(x / 2, x <= 1, "the task is done")
        return jax.lax.while_loop(lambda x: x > 1, turn, x)

    found = eqx.filter_jit(bk.Continuous(LANES)(task))(NUMBERS)
    np.testing.assert_allclose(found, [task(x) for x in NUMBERS])


def test_error_with_a_choice_of_messages() -> None:
    def task(x: Any) -> Any:
        which = jnp.where(x < -10, 1, 0)
        messages = ["a negative number", "a number below -10"]
        turn = lambda c: eqx.branched_error_if(c / 2, c < 0, which, messages)
        return jax.lax.while_loop(lambda c: (c > 1) | (c < 0), turn, x)

    lanes = eqx.filter_jit(bk.Continuous(LANES)(task))
    bad = NUMBERS.copy()
    bad[2] = -30
    with pytest.raises(eqx.EquinoxRuntimeError, match="a number below -10"):
        lanes(bad)


def test_reductions_over_the_batch_are_of_one_task() -> None:
    def task(x: Any) -> Any:
        def turn(carry: Any) -> Any:
            i, x = carry
            i = eqxi.nonbatchable(eqxi.unvmap_max(i))
            return i + 1, jnp.where(eqxi.unvmap_all(x > 1e6), 0, x + i)

        goes_on = lambda carry: eqxi.unvmap_any(carry[0] < x)
        zero = jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(goes_on, turn, (zero, zero))[1]

    found = bk.Continuous(LANES)(task)(TURNS)
    assert found.tolist() == [n * (n - 1) // 2 for n in TURNS.tolist()]
    # With one task at a time they are as well; in chunks they reduce over the chunk.
    assert bk.Sequential()(task)(TURNS).tolist() == found.tolist()
    in_chunks = bk.Chunked(4)(task)(TURNS).reshape(2, 4)
    longest = TURNS.reshape(2, 4).max(1)
    assert in_chunks.T.tolist() == [[n * (n - 1) // 2 for n in longest.tolist()]] * 4


def test_expensive_function_reduces_over_the_lanes_that_call_it() -> None:
    @bk.expensive
    def total(x: Any) -> Any:
        goes_on = lambda c: eqxi.unvmap_any(c[0] < x)
        turn = lambda c: (c[0] + 1, jnp.where(c[0] < x, c[1] + c[0], c[1]))
        return jax.lax.while_loop(goes_on, turn, (jnp.int32(0), jnp.int32(0)))[1]

    def task(n: Any) -> Any:
        goes_on = lambda c: c[0] < n
        turn = lambda c: (c[0] + 1, c[1] + total(c[0] % 7))
        return jax.lax.while_loop(goes_on, turn, (jnp.int32(0), jnp.int32(0)))[1]

    stats = assert_as_vmap(task, TURNS)
    assert int(stats.needed) == TURNS.sum()


def test_lane_that_never_called_is_no_part_of_a_reduction() -> None:
    are_positive = bk.expensive(lambda n: eqxi.unvmap_all(n > 0))

    def task(n: Any) -> Any:
        turn = lambda c: (c[0] + 1, c[1] + jnp.where(are_positive(n), 1, 100))
        start = (jnp.int32(0), jnp.int32(0))
        return jax.lax.while_loop(lambda c: c[0] < n, turn, start)[1]

    # The second lane has one task, which makes no call.
    assert bk.Continuous(2)(task)(np.array([5, 0], np.int32)).tolist() == [5, 0]


RATES = np.array([1.0, 28.0, 3.0, 0.5, 90.0, 2.0, 4.0, 11.0], np.float32)


def linear(t: Any, y: Any, rate: Any) -> Any:
    """The field of exponential decay."""
    del t
    return -rate * y


def decay(rate: Any, field: Callable[..., Any] = linear, **options: Any) -> Any:
    """Solve dy/dt = -a y with a step size that adapts; return it and the steps made."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        options.pop("solver", diffrax.Heun()),
        t0=0.0,
        t1=1.0,
        dt0=0.05,
        y0=jnp.ones(2),
        args=rate,
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-5),
        **options,
    )
    return solution.ys, solution.stats["num_steps"]


SOLVES: dict[str, dict[str, Any]] = {
    "Kvaerno3": {"solver": diffrax.Kvaerno3()},
    "SaveAt(ts)": {"saveat": diffrax.SaveAt(ts=jnp.linspace(0, 1, 5))},
    "throw=False": {"throw": False, "max_steps": 16},
    "event": {"event": diffrax.Event(lambda t, y, args, **_: y[0] < 0.3)},
    "no max_steps": {"max_steps": None, "adjoint": diffrax.ForwardMode()},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", SOLVES.values(), ids=SOLVES)
def test_adaptive_solve(options: dict[str, Any]) -> None:
    assert_as_vmap(lambda rate: decay(rate, **options), RATES, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint", [diffrax.RecursiveCheckpointAdjoint(), diffrax.DirectAdjoint()], ids=str
)
def test_gradient_of_an_adaptive_solve(adjoint: Any) -> None:
    options = {"adjoint": adjoint, "max_steps": 128}
    slope = jax.grad(lambda rate: decay(rate, **options)[0].sum())
    assert_as_vmap(slope, RATES, rtol=2e-4)


def test_solve_evaluates_the_field_as_often_as_tasks_one_by_one() -> None:
    field = bk.expensive(linear)
    stats = assert_as_vmap(lambda rate: decay(rate, field), RATES, rtol=1e-3)
    calls: list[int] = []

    def counting(t: Any, y: Any, a: Any) -> Any:
        def count(y: Any) -> Any:
            calls.append(1)
            return y

        like = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return -a * jax.pure_callback(count, like, y, vmap_method="sequential")

    one = jax.jit(lambda rate: decay(rate, counting))
    for rate in RATES:
        jax.block_until_ready(one(rate))
    assert int(stats.needed) == len(calls)


def test_stochastic_solve_draws_the_same_noise() -> None:
    def task(key: Any, t1: Any) -> Any:
        noise = diffrax.VirtualBrownianTree(0.0, 4.0, tol=1e-2, shape=(), key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, _: -y),
            diffrax.ControlTerm(lambda t, y, _: 0.5, noise),
        )
        return diffrax.diffeqsolve(
            terms, diffrax.EulerHeun(), 0.0, t1, dt0=0.1, y0=1.0
        ).ys

    keys = jax.random.split(jax.random.key(0), len(RATES))
    ends = np.linspace(0.4, 4, len(RATES), dtype=np.float32)
    assert_as_vmap(lambda args: task(*args), (keys, ends))


@pytest.mark.slow
def test_minimise_root_find_and_least_squares() -> None:
    def rosenbrock(x: Any, _: Any) -> Any:
        return jnp.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    def task(x: Any) -> Any:
        options = {"max_steps": 200, "throw": False}
        fit = optimistix.least_squares(
            rosenbrock, optimistix.LevenbergMarquardt(1e-4, 1e-4), x, **options
        )
        low = optimistix.minimise(
            lambda x, _: jnp.sum(rosenbrock(x, None) ** 2),
            optimistix.BFGS(1e-3, 1e-3),
            x,
            **options,
        )
        root = optimistix.root_find(
            lambda y, c: y**3 + y - c,
            optimistix.Newton(1e-4, 1e-4),
            jnp.array(2.0),
            args=x[0],
            **options,
        )
        return fit.value, low.value, root.value

    starts = jax.random.normal(jax.random.key(1), (6, 2))
    assert_as_vmap(task, starts, rtol=1e-2)


def test_iterative_linear_solver_does_not_wait_in_its_loop() -> None:
    matrices = np.stack(
        [
            np.diag(np.geomspace(1, condition, 12)).astype(np.float32)
            for condition in [1.5, 500, 2, 1.2, 300, 3, 1.1, 50]
        ]
    )

    def task(matrix: Any) -> Any:
        operator = lineax.MatrixLinearOperator(matrix, lineax.positive_semidefinite_tag)
        solver = lineax.CG(rtol=1e-3, atol=1e-3, max_steps=100)
        solution = lineax.linear_solve(operator, jnp.ones(12), solver, throw=False)
        return solution.value, solution.stats["num_steps"]

    stats = assert_as_vmap(task, matrices, rtol=1e-2)
    steps = jax.jit(jax.vmap(task))(matrices)[1]
    assert int(stats.needed) <= int(steps.sum()) + 2 * len(matrices)


def test_primitive_that_reduces_over_the_batch_is_refused_by_name() -> None:
    @custom_vmap
    def centred(x: Any) -> Any:
        return x

    @centred.def_vmap
    def _(axis_size: int, in_batched: Any, x: Any) -> tuple[Any, bool]:
        del axis_size, in_batched
        return jnp.mean(x, 0), False

    for batcher in (bk.Sequential(), bk.Chunked(2), bk.Continuous(2)):
        with pytest.raises(ValueError, match=r"custom_vmap_call.*reduces over all"):
            batcher(lambda x: centred(x) + 1)(NUMBERS)
    assert bk.Vmap()(centred)(NUMBERS).shape == NUMBERS.shape


@every_splitting_batcher
def test_primitive_that_is_mapped_task_by_task_is_accepted(
    batcher: bk.AbstractBatcher,
) -> None:
    @custom_vmap
    def doubled(x: Any) -> Any:
        return 2 * x

    @doubled.def_vmap
    def _(axis_size: int, in_batched: Any, x: Any) -> tuple[Any, bool]:
        del axis_size
        return 2 * x, in_batched[0]

    @custom_vmap
    def constant(x: Any) -> Any:
        return jnp.ones(2)

    @constant.def_vmap
    def _(axis_size: int, in_batched: Any, x: Any) -> tuple[Any, bool]:
        del axis_size, in_batched
        return jnp.ones(2), False

    found = batcher(lambda x: doubled(x) + constant(x)[0])(NUMBERS)
    np.testing.assert_array_equal(found, 2 * NUMBERS + 1)
