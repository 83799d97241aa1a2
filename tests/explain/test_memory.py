"""`memory` reports the bytes that XLA allocates, and runs nothing."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.explain import MemoryUse


X = jnp.ones((64, 32))


def outer(x: jax.Array) -> jax.Array:
    """Needs temporary memory: its argument is no longer than its sum of products."""
    return jnp.sin(x @ x.T) @ jnp.cos(x @ x.T)


def by_xla(jitted: Any, *args: Any, **kwargs: Any) -> Any:
    return jitted.lower(*args, **kwargs).compile().memory_analysis()


def assert_is(use: MemoryUse, stats: Any) -> None:
    assert use.argument == stats.argument_size_in_bytes
    assert use.output == stats.output_size_in_bytes
    assert use.temporary == stats.temp_size_in_bytes
    assert use.alias == stats.alias_size_in_bytes
    assert use.total == use.argument + use.output + use.temporary - use.alias


def test_figures_are_those_of_xla():
    use = bk.memory(outer, X)
    assert_is(use, by_xla(jax.jit(outer), X))
    assert use.argument == X.nbytes
    assert use.output == 64 * 64 * 4
    assert use.temporary > 0
    assert use.alias == 0
    assert bk.memory(jax.jit(outer), X) == use


@pytest.mark.parametrize(
    "x",
    [np.ones((64, 32), np.float32), jax.ShapeDtypeStruct((64, 32), jnp.float32)],
    ids=["numpy", "shape"],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, eqx.filter_jit])
def test_shapes_and_numpy_arrays_give_equal_figures(x, wrap):
    assert bk.memory(wrap(outer), x) == bk.memory(outer, X)


def test_donated_arguments_are_counted_once():
    double = lambda x: 2 * x
    plain = bk.memory(jax.jit(double), X)
    donated = jax.jit(double, donate_argnums=0)
    use = bk.memory(donated, X)
    assert_is(use, by_xla(donated, X))
    assert (plain.alias, use.alias) == (0, X.nbytes)
    assert (plain.total, use.total) == (2 * X.nbytes, X.nbytes)
    assert not X.is_deleted()


def test_pytrees_keys_and_non_arrays_as_arguments():
    def fun(tree: Any, n: int, *, how: str, by: Callable[..., Any], key: Any) -> Any:
        assert how == "twice"
        assert n == 3  # no array, so it is a constant of the program
        noise = jax.random.normal(key)
        return by(tree["x"]) * n * 2 + noise + (0 if tree["none"] is None else 1)

    given = {"how": "twice", "by": outer, "key": jax.random.key(0)}
    use = bk.memory(fun, {"x": X, "none": None}, 3, **given)

    def bound(x: Any, key: Any) -> Any:
        return fun({"x": x, "none": None}, 3, **{**given, "key": key})

    stats = by_xla(jax.jit(bound), X, jax.random.key(0))
    assert_is(use, stats)
    shape = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    assert bk.memory(fun, {"x": X, "none": None}, 3, **{**given, "key": shape}) == use


def test_static_arguments_of_jitted_functions():
    fun = jax.jit(lambda x, n: jnp.tile(x, n), static_argnums=1)
    assert bk.memory(fun, X, 3).output == 3 * X.nbytes
    named = jax.jit(lambda x, *, n: jnp.tile(x, n), static_argnames="n")
    assert bk.memory(named, X, n=5).output == 5 * X.nbytes


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_nothing_runs(wrap):
    fired: list[int] = []

    def fun(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: fired.append(0), ordered=True)
        return jax.pure_callback(lambda y: fired.append(1), X, x)

    bk.memory(wrap(fun), X)
    bk.explain(wrap(fun), X)
    jax.effects_barrier()
    assert fired == []


def test_chunks_need_less_temporary_memory():
    def loglikelihood(x: jax.Array) -> jax.Array:
        # Sorting needs all of its argument, so XLA cannot fuse it away.
        return -jnp.sort(jnp.sin(jnp.outer(x, jnp.arange(1000.0))).ravel())[7]

    positions = jax.ShapeDtypeStruct((64, 2), jnp.float32)
    uses = []
    for batcher in (bk.Vmap(), bk.Chunked(4)):
        nss = bk.rebuild_sampler(blackjax.nss, batcher=batcher)
        algorithm = nss(lambda x: -x @ x, loglikelihood, num_inner_steps=2)
        uses.append(bk.memory(algorithm.init, positions))
    assert uses[0].output == uses[1].output
    assert uses[1].temporary < 0.2 * uses[0].temporary


def test_errors_of_tracing_are_raised():
    with pytest.raises(ValueError, match="Incompatible shapes"):
        bk.memory(lambda x: x + jnp.ones(5), X)
    with pytest.raises(ZeroDivisionError):
        bk.memory(lambda x: 1 // 0, X)


def test_platform_without_figures_is_named(monkeypatch):
    monkeypatch.setattr(
        jax.stages.Compiled, "memory_analysis", lambda self: None, raising=True
    )
    with pytest.raises(NotImplementedError, match=r"does not report .* on 'cpu'"):
        bk.memory(outer, X)


def test_memory_use_is_immutable_and_hashable():
    use = MemoryUse(argument=1, output=20, temporary=300, alias=5)
    assert use == MemoryUse(1, 20, 300, 5)
    assert hash(use) == hash(MemoryUse(1, 20, 300, 5))
    assert use != MemoryUse(1, 20, 300, 6)
    assert use.total == 316
    for field in dataclasses.fields(use):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(use, field.name, 0)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (27_600_000_000, "27.6 GB"),
        (184_000_000, "184 MB"),
        (5_000_000_000_000_000, "5e+03 TB"),
    ],
)
def test_memory_use_prints_as_a_table(size, words):
    use = MemoryUse(argument=size, output=0, temporary=0, alias=0)
    rows = [re.split(r"  +", line) for line in repr(use).splitlines()]
    assert rows[0] == ["memory", "size", "bytes"]
    assert rows[1] == ["argument", words, f"{size:,}"]
    assert [row[0] for row in rows[1:]] == [
        "argument",
        "output",
        "temporary",
        "alias",
        "total",
    ]
    assert rows[5] == ["total", words, f"{size:,}"]
    cells = re.findall(r"<td>(.*?)</td>", use._repr_html_())
    assert cells == functools.reduce(list.__add__, rows[1:])
