"""A bounded number of tasks at once, in balanced chunks, with one compiled body."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import BATCHERS, assert_same, primitives, temp_bytes


@pytest.mark.parametrize("n", [6, 7, 8])
def test_one_compiled_body(n: int) -> None:
    """`jax.lax.map` compiles its function twice when there is a remainder."""
    x = np.ones((n, 2))
    assert primitives(bk.Chunked(3)(jnp.sin), x).count("sin") == 1
    reference = lambda x: jax.lax.map(jnp.sin, x, batch_size=3)
    assert primitives(reference, x).count("sin") == 1 + (n % 3 > 0)


@pytest.mark.parametrize("inner", [bk.Vmap(), bk.Sequential(), bk.Chunked(2)])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_size_of_at_least_all_tasks_is_the_inner_batcher(
    inner: bk.AbstractBatcher, n: int
) -> None:
    f = lambda x: jnp.sin(x) @ jnp.ones(2)
    x = np.ones((n, 2), np.float32)
    jaxprs = {
        str(jax.make_jaxpr(batcher(f))(x))
        for batcher in (inner, bk.Chunked(7, inner), bk.Chunked(100, inner, remat=True))
    }
    assert len(jaxprs) == 1


def test_temporary_memory_is_that_of_the_lanes() -> None:
    """The temporary memory is that of the lanes, not of the tasks."""
    f = lambda x: jnp.sort(jnp.outer(x, x).reshape(-1))[::64]
    x = np.ones((64, 64), np.float32)
    one_task = 64 * 64 * 4
    assert temp_bytes(jax.vmap(f), x) >= 64 * one_task
    assert 4 * one_task <= temp_bytes(bk.Chunked(4)(f), x) < 5 * one_task
    assert one_task <= temp_bytes(bk.Sequential()(f), x) < 2 * one_task


def test_remat_stores_no_intermediate_values() -> None:
    """With `remat` the backward pass does not keep what every chunk computed."""
    a = np.ones((32, 32), np.float32) / 32
    x = np.linspace(0.1, 1.0, 32 * 32, dtype=np.float32).reshape(32, 32)

    def f(x: Any) -> Any:
        y = a * x
        for _ in range(4):
            y = jnp.tanh(y @ a)
        return y.sum()

    def grad(batcher: Any) -> Any:
        return jax.grad(lambda x: batcher(f)(x).sum())

    kept, remade = grad(bk.Chunked(4)), grad(bk.Chunked(4, remat=True))
    assert temp_bytes(remade, x) < temp_bytes(kept, x) / 2


@pytest.mark.parametrize("name", ["Chunked(4, remat)", "Sharded(4)", "Chunked(3)"])
@pytest.mark.parametrize("n", [5, 7])
def test_padding_repeats_real_rows(name: str, n: int) -> None:
    """Zeros would end in a NaN or, below, in a loop that never ends."""
    seen: list[float] = []

    def f(x: Any) -> Any:
        jax.debug.callback(lambda x: seen.append(float(x)), x)
        # Doubles from at least 1 up to 100.
        return jax.lax.while_loop(lambda y: y < 100, lambda y: 2 * y, x)

    x = np.arange(1, n + 1, dtype=np.float32)
    y = jax.jit(BATCHERS[name](f))(x)
    jax.effects_barrier()
    assert set(seen) == set(x.tolist())
    # The rows that are repeated are the first ones, each no more than once.
    assert sorted(seen) == sorted([*x.tolist(), *x[: len(seen) - n].tolist()])
    np.testing.assert_array_equal(y, x * 2 ** np.ceil(np.log2(100 / x)))


@pytest.mark.parametrize("name", ["Chunked(4, remat)", "Chunked(3)"])
def test_padding_passes_nan_checks(name: str) -> None:
    """Without `jit` JAX checks what a chunk returns, before padded rows are cut off."""
    x = np.arange(1, 8, dtype=np.float32)
    with jax.debug_nans(True):
        y = BATCHERS[name](lambda x: jnp.log(x) / x + 1 / x)(x)
    np.testing.assert_allclose(y, np.log(x) / x + 1 / x, rtol=1e-6)


@pytest.mark.parametrize(
    "batcher",
    [
        bk.Chunked(5, bk.Chunked(2)),
        bk.Chunked(3, bk.Chunked(5)),
        bk.Chunked(3, bk.Sequential(), remat=True),
    ],
)
def test_nested_chunks_equal_vmap(batcher: bk.AbstractBatcher) -> None:
    x = np.arange(26, dtype=np.float32).reshape(13, 2)
    f = lambda x: (jnp.sqrt(x), x.sum())
    assert_same(jax.jit(batcher(f))(x), jax.jit(jax.vmap(f))(x))
    assert primitives(batcher(f), x).count("sqrt") == 1
