"""All drop-in cases of batchers, with divergent loops around the task.

Without such a loop `Continuous` would run as `Chunked`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..batchers.test_drop_in import CASES, Case
from ..helpers import TASKS, assert_same, counted, explained, mesh


X = np.arange(1, 1 + TASKS, dtype=np.float32)


def _number(tree: Any) -> Any:
    """Return a small number that varies between tasks, if any argument does."""
    total = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array) or leaf.dtype == jax.dtypes.float0:
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total += jnp.sum(jnp.abs(leaf).astype(jnp.uint32)).astype(jnp.int32) % 5
    return total % 5


def _looped(fun: Callable[..., Any], marked: bool) -> Callable[..., Any]:
    """Put a function between two loops, across which its arguments and results live."""
    add = lambda x: x + jnp.int32(1)
    add = bk.expensive(add) if marked else add

    @functools.wraps(fun)
    def task(*args: Any, **kwargs: Any) -> Any:
        number = _number((args, kwargs))
        count = lambda start, end: jax.lax.while_loop(lambda c: c < end, add, start)
        before = count(jnp.int32(0), number)
        out = fun(*args, **kwargs)
        return out, before, count(jnp.int32(0), number * 2)

    return task


def _run(batcher: Any, case: Case, marked: bool) -> tuple[Any, int]:
    fun, traces = counted(_looped(case.fun, marked))
    axes = case.in_axes, (case.out_axes, 0, 0)
    batched = batcher(fun, *axes, axis_size=case.axis_size)
    arrays, static = _arrays((case.args, dict(case.kwargs)))

    @jax.jit
    def call(arrays: list[Any]) -> Any:
        args, kwargs = static(arrays)
        return batched(*args, **kwargs)

    return call(arrays), len(traces)


def _arrays(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    leaves, treedef = jax.tree.flatten(tree)
    is_array = [isinstance(x, np.ndarray | jax.Array) for x in leaves]

    def with_arrays(arrays: list[Any]) -> Any:
        given = iter(arrays)
        full = [
            next(given) if array else leaf
            for leaf, array in zip(leaves, is_array, strict=True)
        ]
        return jax.tree.unflatten(treedef, full)

    return [x for x, keep in zip(leaves, is_array, strict=True) if keep], with_arrays


@functools.cache
def _run_by_vmap(name: str) -> Any:
    return _run(jax.vmap, CASES[name](), marked=False)[0]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_equals_vmap(name: str, marked: bool) -> None:
    actual, traces = _run(bk.Continuous(3), CASES[name](), marked)
    assert_same(actual, _run_by_vmap(name))
    assert traces == 1


@bk.expensive
def _half(x: Any) -> Any:
    return x / 2


def _halvings(x: Any) -> Any:
    turn = lambda c: (_half(c[0]), c[1] + 1)
    return jax.lax.while_loop(lambda c: c[0] > 0.5, turn, (x, 0))


LAYOUTS: dict[str, bk.AbstractBatcher] = {
    "Continuous(3)": bk.Continuous(3),
    "Chunked(4, Continuous(2))": bk.Chunked(4, inner=bk.Continuous(2)),
    "Sharded(4, Continuous(1))": bk.Sharded(mesh(4), inner=bk.Continuous(1)),
    "Sharded(3, Continuous(2))": bk.Sharded(mesh(3), inner=bk.Continuous(2)),
    "Sharded(2, Chunked(3, Continuous(2)))": bk.Sharded(
        mesh(2), inner=bk.Chunked(3, inner=bk.Continuous(2))
    ),
}
every_layout = pytest.mark.parametrize("batcher", LAYOUTS.values(), ids=LAYOUTS)


_halvings_by_vmap = jax.jit(jax.vmap(_halvings))  # compiled once for each size


@every_layout
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_inside_of_other_batchers(batcher: bk.AbstractBatcher, n: int) -> None:
    x = np.arange(1, 1 + n, dtype=np.float32)
    assert_same(jax.jit(batcher(_halvings))(x), _halvings_by_vmap(x))


@pytest.mark.parametrize("name", list(LAYOUTS)[1:])
def test_inside_of_other_batchers_lanes_pause_at_marks(name: str) -> None:
    (reached,) = explained(LAYOUTS[name](_halvings), X)
    assert "lanes kept busy" in reached.layout
    assert reached.note.startswith("pauses at _half; ")


_halvings_by_vmap_of_vmap = jax.jit(jax.vmap(jax.vmap(_halvings)))


@every_layout
def test_under_an_outer_vmap(batcher: bk.AbstractBatcher) -> None:
    rows = np.stack([X, X[::-1] * 3])
    assert_same(
        jax.jit(jax.vmap(batcher(_halvings)))(rows),
        _halvings_by_vmap_of_vmap(rows),
    )


@pytest.mark.parametrize("lanes", [1, 3, 9])
def test_without_jit(lanes: int) -> None:
    assert_same(bk.Continuous(lanes)(_halvings)(X[:4]), _halvings_by_vmap(X[:4]))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("x64", [True, False])
def test_x64(x64: bool, marked: bool) -> None:
    """64-bit numbers, and a state with numbers of several widths."""

    def task(x: Any, i: Any) -> Any:
        root = lambda x: jnp.sqrt(x + 1)
        root = bk.expensive(root) if marked else root

        def turn(carry: Any) -> Any:
            turns, x, small, _ = carry
            return turns + 1, root(x), small + 1, jnp.asarray(i) * 2

        start = (0, x, jnp.zeros((), jnp.float16), i)
        out = jax.lax.while_loop(lambda c: (c[1] > 1.7) & (c[0] < i), turn, start)
        return out, jax.lax.scan(lambda c, k: (root(c) * k, c), x, jnp.arange(3.0))

    with jax.enable_x64(x64):
        x, i = np.arange(2.0, 9.0), np.arange(7)
        expected = jax.jit(jax.vmap(task))(x, i)
        assert expected[0][1].dtype == (jnp.float64 if x64 else jnp.float32)
        found, stats = jax.jit(bk.Continuous(3).with_stats(task))(x, i)
        assert_same(found, expected)
        assert int(stats.made) % 3 == 0


def _steps(x: Any, w: Any) -> Any:
    """Take gradients inside a task, in a divergent loop."""
    f = bk.expensive(lambda x: jnp.sin(x * w).sum())

    def turn(carry: Any) -> Any:
        turns, x = carry
        value, grad = jax.value_and_grad(f)(x)
        return turns + 1, x - 0.1 * grad * value

    return jax.lax.while_loop(lambda c: c[0] < 4 * c[1][0], turn, (0, x))[1]


JVPS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "of all": lambda f: lambda x, w: jax.jvp(f, (x, w), (x + 1, w + 2)),
    "of the unmapped": lambda f: (
        lambda x, w: jax.jvp(lambda w: f(x, w), (w,), (w + 1,))
    ),
    "jacfwd": lambda f: jax.jacfwd(f, argnums=1),
    "twice": lambda f: jax.jacfwd(jax.jacfwd(f, argnums=1), argnums=1),
}


@pytest.mark.parametrize("name", JVPS)
def test_forward_mode(name: str) -> None:
    x = (np.arange(10, dtype=np.float32).reshape(5, 2) + 1) / 16
    w = np.array([0.5, 1.5], np.float32)
    run = lambda mapped: jax.jit(JVPS[name](mapped(_steps, (0, None))))(x, w)
    assert_same(run(bk.Continuous(2)), run(jax.vmap), ulps=64)


def _bisection(a: Any) -> Any:
    def turn(carry: Any) -> Any:
        low, high = carry
        middle = (low + high) / 2
        below = middle * middle < a
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = jnp.zeros_like(a), a + 1
    return jax.lax.while_loop(lambda c: c[1] - c[0] > 1e-2, turn, start)[0]


def _root(marker: float) -> Callable[[Any], Any]:
    """Make a square root with a custom derivative, multiplied by a marker."""
    root = jax.custom_jvp(_bisection)

    @root.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        y = root(*primals)
        return y, marker * tangents[0] / (2 * y)

    return root


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_forward_mode_uses_custom_derivatives(where: str) -> None:
    root = _root(1.0)

    def task(x: Any) -> Any:
        half = bk.expensive(root if where == "inside" else lambda x: x / 2)
        y = jax.lax.while_loop(lambda y: y > 1.5, half, x)
        return y * (root(x) if where == "beside" else x)

    run = lambda mapped: jax.jit(lambda x: jax.jvp(mapped(task), (x,), (x * 2,)))(X)
    assert_same(run(bk.Continuous(3)), run(jax.vmap), ulps=16)


def test_functions_that_differ_only_in_their_derivatives() -> None:
    one, two = _root(1.0), _root(2.0)

    def run(mapped: Any) -> Any:
        def batched(w: Any) -> Any:
            return mapped(lambda x: _halvings(x)[0] + one(w) + 10 * two(w))(X)

        return jax.jit(lambda w: jax.jvp(batched, (w,), (w,)))(np.float32(2))

    assert_same(run(bk.Continuous(3)), run(jax.vmap), ulps=16)


def test_equations_that_differ_little_are_not_merged() -> None:
    """Two callbacks, and products with zero and minus zero, in the prologue."""
    like = jax.ShapeDtypeStruct((), np.float32)

    def run(mapped: Any) -> Any:
        def batched(w: Any) -> Any:
            one = lambda: jax.pure_callback(lambda x: x, like, w)
            two = lambda: jax.pure_callback(lambda x: 2 * x, like, w)
            inverse = lambda zero: 1 / jax.jit(lambda w: w * zero)(w)
            uniform = lambda: (one(), two(), inverse(0.0), inverse(-0.0))
            return mapped(lambda x: (_halvings(x)[0], uniform()))(X)

        return jax.jit(batched)(np.float32(2))

    assert_same(run(bk.Continuous(3)), run(jax.vmap), ulps=0)


@pytest.mark.parametrize("marked", [True, False])
def test_loops_under_vmap_inside_a_task(marked: bool) -> None:
    """`jax.vmap` gives such a loop a test for each row."""
    add = lambda x: x * 2 + 1
    add = bk.expensive(add) if marked else add

    def task(x: Any) -> Any:
        def row(y: Any) -> Any:
            turn = lambda c: (add(c[0]), c[1] + 1, jax.random.fold_in(c[2], c[1]))
            start = (0.0, 0, jax.random.key(0))
            return jax.lax.while_loop(lambda c: c[0] < y, turn, start)

        return jax.vmap(row)(jnp.stack([x, 3 * x, 0 * x]))

    run = lambda mapped: jax.jit(mapped(task))(X)
    assert_same(run(bk.Continuous(3)), run(jax.vmap), ulps=0)
