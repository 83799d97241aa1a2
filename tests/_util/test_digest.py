"""Digests are equal for equal programs, in every process, and differ otherwise."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchkit._util._jaxprs import digest


def of(fun: Callable[..., Any], *args: Any, values: bool = True) -> str:
    return digest(jax.make_jaxpr(fun)(*args), values=values)


def loops(x: Any) -> Any:
    x = jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: 2 * x, x)
    x = jax.lax.cond(x[0] > 3, jnp.sin, jnp.cos, x)
    return jax.lax.scan(lambda c, y: (c + y, c * y), x.sum(), x)


X = np.arange(1.0, 4.0, dtype=np.float32)
SCALE = jnp.asarray(3.0)


def test_equal_programs_have_equal_digests():
    make = lambda: lambda x: jax.jit(lambda y: jnp.linalg.cholesky(y))(jnp.outer(x, x))
    assert of(make(), X) == of(make(), X)
    assert of(loops, X) == of(lambda x: loops(x), X)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x + 1, lambda x: x - 1),
        (lambda x: x[0] - x[1], lambda x: x[1] - x[0]),
        (lambda x: x.sum(), lambda x: x.sum(keepdims=True)),
        (lambda x: (x, x * 2), lambda x: (x * 2, x)),
        (loops, lambda x: loops(x * 1)),
        (lambda x: jax.nn.relu(x), lambda x: jax.nn.relu6(x)),
        (
            lambda x: jax.pure_callback(np.sin, x, x),
            lambda x: jax.pure_callback(np.cos, x, x),
        ),
    ],
)
def test_different_programs_have_different_digests(one, other):
    assert of(one, X) != of(other, X)


def test_digest_depends_on_shape_and_dtype():
    digests = {of(jnp.sin, x) for x in (X, X[:2], X.astype(np.float16), X[None])}
    assert len(digests) == 4


@pytest.mark.parametrize("data", [X, jax.random.key(3), np.arange(3)])
def test_digest_depends_on_values_only_on_request(data):
    fun = lambda data: lambda x: (x, data)
    key = jnp.issubdtype(data.dtype, jax.dtypes.prng_key)
    other = jax.random.key(4) if key else data + 1
    assert of(fun(data), X) == of(fun(data.copy()), X)
    assert of(fun(data), X) != of(fun(other), X)
    assert of(fun(data), X, values=False) == of(fun(other), X, values=False)


def test_constants_may_be_tracers_without_values():
    found: list[str] = []

    @jax.jit
    def outer(scale):
        found.append(of(lambda x: scale * x, X, values=False))
        return scale

    outer(2.0)
    assert found == [of(lambda x: SCALE * x, X, values=False)]


def test_digest_is_equal_in_another_process():
    program = (
        "import sys; import numpy as np, jax;"
        "from tests._util.test_digest import of, loops, X, custom;"
        "print(of(loops, X), of(custom, X))"
    )
    run = lambda: subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert run() == [of(loops, X), of(custom, X)]


@jax.custom_vjp
def squared(x):
    return x**2


squared.defvjp(lambda x: (x**2, x), lambda x, t: (2 * x * t,))


def custom(x):
    return squared(x) + jax.nn.relu(x) + jnp.linalg.slogdet(jnp.outer(x, x))[1]
