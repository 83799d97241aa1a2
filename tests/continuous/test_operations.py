"""Operations counted in a jaxpr, beside those of XLA, and where tasks part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from batchkit.continuous._operations import TURNS, count_operations
from batchkit.continuous._pause_points import Divergence


X = jnp.linspace(0.1, 1.0, 60)
MATRIX = X.reshape(10, 6)


def count(fun: Callable[..., Any], *args: Any) -> float:
    return count_operations(jax.make_jaxpr(fun)(*args).jaxpr)


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (lambda x: jnp.sum(jnp.sin(2.0 * x)), (X,)),
        (lambda x, y: x @ y, (MATRIX, MATRIX.T)),
        (lambda x: jnp.einsum("ab,cb->ac", x, x), (MATRIX,)),
        (
            lambda x, y: jax.lax.conv(x, y, (1, 1), "VALID"),
            (X.reshape(1, 1, 6, 10), X[:8].reshape(2, 1, 2, 2)),
        ),
    ],
)
def test_operations_are_those_of_xla(fun: Callable[..., Any], args: Any) -> None:
    analysis: Any = jax.jit(fun).lower(*args).cost_analysis()
    expected = analysis["flops"] + analysis.get("transcendentals", 0.0)
    assert count(fun, *args) == pytest.approx(expected, rel=0.02)


def test_loops_count_by_their_length() -> None:
    def turn(x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        return jnp.sin(x), None

    assert count(lambda x: jax.lax.scan(turn, x, length=7)[0], X) == 7 * X.size
    goes_on = lambda x: x[0] > 0.0
    loop = lambda x: jax.lax.while_loop(goes_on, lambda x: turn(x)[0], x)
    assert count(loop, X) == TURNS * (X.size + 1)


def test_costliest_side_of_a_branch_counts() -> None:
    def task(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0] > 0, lambda: jnp.sin(jnp.cos(x)), lambda: jnp.sin(x))

    assert 2 * X.size <= count(task, X) < 2 * X.size + 5


def parting(task: Callable[..., Any], *args: Any) -> list[str]:
    divergence = Divergence().of_task(jax.make_jaxpr(task)(*args))
    return [eqn.primitive.name for eqn in divergence.parting]


def test_tasks_part_where_jax_vmap_selects() -> None:
    fixed = jnp.arange(2)

    def task(x: jax.Array, flag: Any) -> jax.Array:
        return jax.lax.cond(flag, lambda: jnp.sin(x), lambda: x)

    def at_turns(x: jax.Array, test: Callable[[Any], Any]) -> Any:
        def turn(carry: Any) -> Any:
            i, x = carry
            return i + 1, jax.lax.cond(i > 2, lambda: x / 2, lambda: x / 3)

        return jax.lax.while_loop(test, turn, (0, x))

    for fun, expected in [
        (lambda x: task(x, x > 0), ["cond"]),
        (lambda x: task(x, fixed[0] > 0), []),
        (lambda x: at_turns(x, lambda carry: carry[0] < 5), []),
        (lambda x: at_turns(x, lambda carry: carry[1] > 0.1), ["cond", "while"]),
    ]:
        assert sorted(parting(fun, 1.0)) == expected
        # Under `jax.vmap` a branch at which tasks part is a select.
        mapped = str(jax.make_jaxpr(jax.vmap(fun))(X))
        assert ("cond[" in mapped) != ("cond" in expected)
