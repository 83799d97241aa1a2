"""Equality with `jax.vmap` for random sizes, chunk sizes, axes and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

import batchkit as bk

from ..helpers import assert_same, mesh


few = settings(max_examples=10)

DTYPES = [
    jnp.float32,
    jnp.float16,
    jnp.bfloat16,
    jnp.int32,
    jnp.uint8,
    jnp.bool_,
    jnp.complex64,
]


@st.composite
def batchers(draw: st.DrawFn, depth: int = 1) -> bk.AbstractBatcher:
    """Any batcher, with another one inside where it takes one."""
    inner = draw(batchers(depth - 1)) if depth > 0 else bk.Vmap()
    size, devices = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    return draw(
        st.sampled_from(
            [
                bk.Vmap(),
                bk.Sequential(),
                bk.Chunked(size, inner, remat=draw(st.booleans())),
                bk.Sharded(mesh(devices), inner=inner),
            ]
        )
    )


def _rows(n: int, axis: int, dtype: Any) -> np.ndarray:
    """Small numbers that every dtype holds exactly, mapped along `axis`."""
    shape = [2, 3]
    shape.insert(axis % 3, n)
    return (np.arange(np.prod(shape)) % 5).reshape(shape).astype(dtype)


@few
@given(
    batcher=batchers(),
    n=st.integers(0, 9),
    in_axis=st.integers(-3, 2),
    out_axis=st.integers(-3, 2),
    dtype=st.sampled_from(DTYPES),
)
def test_equals_vmap(
    batcher: bk.AbstractBatcher, n: int, in_axis: int, out_axis: int, dtype: Any
) -> None:
    def f(x: Any, y: Any) -> Any:
        # Whole numbers: the results are exact in every dtype and in any order.
        return x * y, jnp.where(x == y, x, y).T, (x == y).sum()

    x, y = _rows(n, in_axis, dtype), _rows(1, 0, dtype)[0]
    run = lambda mapped: jax.jit(mapped(f, (in_axis, None), (out_axis, 0, 0)))(x, y)
    assert_same(run(batcher), run(jax.vmap), ulps=0)


@few
@given(
    batcher=batchers(),
    n=st.integers(1, 9),
    axis=st.integers(-3, 2),
    dtype=st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16, jnp.complex64]),
)
def test_gradients_equal_those_of_vmap(
    batcher: bk.AbstractBatcher, n: int, axis: int, dtype: Any
) -> None:
    x, w = _rows(n, axis, dtype), np.asarray(2, dtype)

    def run(mapped: Any) -> Any:
        def loss(x: Any, w: Any) -> Any:
            y = mapped(lambda x: x * x * w, axis, axis)(x)
            return jnp.real(y).astype(jnp.float32).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, w)

    # The gradient of `x` is a whole number. That of `w` is the sum of up to 54 squares
    # of up to 16, taken in some order, in up to 8 bits.
    dx, dw = run(batcher)
    np.testing.assert_array_equal(dx, 4 * x)
    total = np.sum(x.astype(np.complex64) ** 2).real
    error = abs(np.complex64(dw).real - total)
    assert error <= 54 * float(jnp.finfo(dtype).eps) * max(total, 1)


@few
@given(batcher=batchers(depth=2), n=st.integers(0, 9), seed=st.integers(0, 5))
def test_random_draws_equal_those_of_vmap(
    batcher: bk.AbstractBatcher, n: int, seed: int
) -> None:
    keys = jax.random.split(jax.random.key(seed), n)
    run = lambda mapped: jax.jit(mapped(jax.random.bits))(keys)
    assert_same(run(batcher), run(jax.vmap), ulps=0)


@few
@given(
    size=st.integers(1, 40),
    n=st.integers(1, 40),
)
def test_chunks_are_balanced(size: int, n: int) -> None:
    """Never more lanes than asked for, and fewer padded rows than there are chunks."""
    jaxpr = jax.make_jaxpr(bk.Chunked(size)(jnp.sin))(np.ones(n, np.float32)).jaxpr
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    if n <= size:
        assert scans == []
        return
    (scan,) = scans
    chunks = scan.params["length"]
    (lanes,) = scan.outvars[0].aval.shape[1:]
    assert lanes <= size
    assert chunks == -(-n // size)
    assert 0 <= chunks * lanes - n < chunks
