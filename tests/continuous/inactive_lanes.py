"""Tasks with loops that would never end in inactive lanes, compared with `lax.map`.

Run as a program, it prints the name of each task whose results are right.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk


X = np.arange(1, 8, dtype=np.float32)


def count_up(x: Any) -> Any:
    """Count the turns to ten, which are endless for zero and for negative numbers."""

    def turn(carry: Any) -> Any:
        total, turns, key = carry
        return total + x, turns + 1, jax.random.fold_in(key, turns)

    start = (jnp.zeros_like(x), 0, jax.random.key(0))
    return jax.lax.while_loop(lambda c: c[0] < 10, turn, start)[1]


def _in_the_function(x: Any) -> Any:
    slow = bk.expensive(count_up)
    turn = lambda c: (c[0] + 1, c[1] + slow(x))
    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0))


def _in_one_branch(x: Any) -> Any:
    """Some lanes never make the call, and others not in their first turns."""
    slow = bk.expensive(count_up)

    def turn(carry: Any) -> Any:
        i, total = carry
        more = jax.lax.cond((x > 5) & (i > 2), lambda: slow(x), lambda: 0)
        return i + 1, total + more

    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0))


def _two_kinds(x: Any) -> Any:
    """While lanes wait for a call of one kind, no lane has arguments for the other."""

    @bk.expensive
    def slow(x: Any) -> Any:
        return count_up(x) * x

    def turn(carry: Any) -> Any:
        i, total = carry
        more = jax.lax.cond(
            i % 2 == 0,
            lambda: slow(x),
            lambda: slow(jnp.stack([x, x + 1]).max(0, keepdims=True)[0:1].sum()),
        )
        pair = jax.lax.cond(
            i > 3, lambda: jax.vmap(slow)(jnp.stack([x, x + 1])).sum(), lambda: 0.0
        )
        return i + 1, total + more + pair

    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0.0))


def _beside_the_function(x: Any) -> Any:
    double = bk.expensive(lambda x: x * 2)

    def turn(carry: Any) -> Any:
        i, total = carry
        cheap = jax.lax.cond(x > 3, count_up, lambda x: 0, x)
        scanned = jax.lax.scan(lambda c, _: (c + count_up(x), None), 0, length=2)[0]
        return i + 1, total + double(x) + cheap + scanned

    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0.0))


def _hidden_beside_the_function(x: Any) -> Any:
    double = bk.expensive(lambda x: x * 2)
    own = jax.custom_jvp(lambda x: count_up(x) * 1.0)
    own.defjvp(lambda primals, tangents: (own(*primals), own(*primals) * tangents[0]))

    def turn(carry: Any) -> Any:
        i, total = carry
        hidden = jax.jit(jax.checkpoint(lambda x: own(x)))(x)
        return i + 1, total + double(x) + hidden

    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0.0))


def _without_marks(x: Any) -> Any:
    turn = lambda c: (c[0] + 1, c[1] + count_up(x))
    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0))


def _after_the_loop(x: Any) -> Any:
    """The loop reads results that other lanes do not have yet."""
    double = bk.expensive(lambda x: x * 2)
    y = jax.lax.while_loop(lambda c: c < x, lambda c: double(c) + 1, 0.0)
    return count_up(y), y


def _behind_a_branch(x: Any) -> Any:
    """An endless loop that no task reaches."""
    double = bk.expensive(lambda x: x * 2)

    def turn(carry: Any) -> Any:
        i, total = carry
        endless = lambda: double(x) + count_up(jnp.float32(0))
        return i + 1, total + jax.lax.cond(x < 0, endless, lambda: double(x + 1))

    return jax.lax.while_loop(lambda c: c[0] < x, turn, (0.0, 0.0))


def _not_a_number(x: Any) -> Any:
    """NaN ends the loop of its own task, and must not spread to other tasks."""
    root = bk.expensive(lambda x: jnp.sqrt(4.0 - x))
    turn = lambda c: (c[0] + 1, root(x + c[0]))
    return jax.lax.while_loop(lambda c: ~(c[1] < 0) & (c[0] < x), turn, (0.0, 0.0))


TASKS: dict[str, Callable[[Any], Any]] = {
    "in the function": _in_the_function,
    "in one branch": _in_one_branch,
    "two kinds": _two_kinds,
    "beside the function": _beside_the_function,
    "hidden beside the function": _hidden_beside_the_function,
    "without marks": _without_marks,
    "after the loop": _after_the_loop,
    "behind a branch": _behind_a_branch,
    "not a number": _not_a_number,
}


def compare(task: Callable[[Any], Any]) -> None:
    """Compare results with more tasks than lanes, under `jax.vmap`, and for `jvp`."""

    def same(actual: Any, expected: Any) -> None:
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), actual, expected
        )

    # Not jax.vmap, which computes both branches of a `cond` and may not end itself.
    one_by_one = lambda f: lambda x: jax.lax.map(f, x)
    rows = np.stack([X, X[::-1] + 3])
    batched = bk.Continuous(3)(task)
    expected = jax.jit(one_by_one(one_by_one(task)))(rows)
    same(jax.jit(jax.vmap(batched))(rows), expected)
    same(jax.jit(batched)(X), jax.tree.map(lambda x: x[0], expected))
    derivative = lambda f: (
        lambda x: jax.jvp(
            lambda x: [y for y in jax.tree.leaves(f(x)) if y.dtype == x.dtype],
            (x,),
            (x,),
        )
    )
    same(jax.jit(derivative(batched))(X), jax.jit(derivative(one_by_one(task)))(X))


if __name__ == "__main__":
    for name, task in TASKS.items():
        compare(task)
        print(name, flush=True)
