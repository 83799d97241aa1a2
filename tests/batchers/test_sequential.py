"""One task at a time: branches stay branches, callbacks need no batching rule."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import batchkit as bk

from ..helpers import assert_same, primitives


X = np.array([3.0, -1.0, 2.0, -5.0, 4.0], np.float32)
SHAPE = jax.ShapeDtypeStruct((), jnp.float32)


def test_cond_stays_a_branch() -> None:
    def f(x: Any) -> Any:
        return jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)

    names = primitives(bk.Sequential()(f), X)
    assert "cond" in names
    assert "select_n" not in names
    # Under `jax.vmap` both branches run.
    assert "select_n" in primitives(jax.vmap(f), X)


def test_untaken_branches_and_finished_loops_do_not_run() -> None:
    """Only the branch that is taken runs, and a loop ends with its own task."""
    seen: list[float] = []

    def record(x: Any) -> np.ndarray:
        seen.append(float(x))
        return np.asarray(x)

    def f(x: Any) -> Any:
        expensive = lambda: io_callback(record, SHAPE, x)
        y = jax.lax.cond(x > 0, expensive, lambda: x)
        double = lambda y: io_callback(record, SHAPE, 2 * y)
        return jax.lax.while_loop(lambda y: (y > 0) & (y < 8), double, y)

    y = jax.jit(bk.Sequential()(f))(X)
    np.testing.assert_array_equal(y, [12, -1, 8, -5, 8])
    assert sorted(seen) == sorted([3, 6, 12, 2, 4, 8, 4, 8])


@pytest.mark.parametrize(
    ("n", "out_axes"), [(5, 0), (1, 0), (0, 0), (5, (0, None)), (1, (0, None))]
)
def test_callbacks_need_no_batching_rule(n: int, out_axes: Any) -> None:
    def f(x: Any) -> Any:
        y = jax.pure_callback(lambda x: np.sin(x), SHAPE, x)
        return y, jnp.zeros(2)

    x = X[:n]
    if n > 0:
        with pytest.raises(NotImplementedError):
            jax.vmap(f)(x)
    y, zeros = jax.jit(bk.Sequential()(f, out_axes=out_axes))(x)
    np.testing.assert_array_equal(y, np.sin(x))
    assert zeros.shape == ((n, 2) if out_axes == 0 else (2,))


def test_ordered_callbacks_run_in_order() -> None:
    seen: list[float] = []

    def f(x: Any) -> Any:
        io_callback(lambda x: seen.append(float(x)), None, x, ordered=True)
        return x

    with pytest.raises(ValueError, match="ordered"):
        jax.vmap(f)(X)
    assert_same(jax.jit(bk.Sequential()(f))(X), jnp.asarray(X))
    jax.effects_barrier()
    assert seen == X.tolist()


def test_products_have_no_batch_dimension() -> None:
    """Each product is that of one task: there is no batched `dot_general`."""
    a = np.ones((3, 3), np.float32)
    jaxpr = str(jax.make_jaxpr(bk.Sequential()(lambda x: a @ x))(np.ones((5, 3))))
    assert "dimension_numbers=(([1], [0]), ([], []))" in jaxpr
    assert jaxpr.count("dot_general") == 1
