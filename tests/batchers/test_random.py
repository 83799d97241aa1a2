"""Random draws of each task are those of `jax.vmap`, or the layout is refused."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import batchkit as bk

from ..helpers import (
    BATCHERS,
    TASKS,
    assert_all_same,
    assert_same,
    every_batcher,
    every_splitting_batcher,
)


N = TASKS
SAME = ["Vmap()", "Chunked(100)", "Sharded(1)"]


def _keys(impl: str, n: int = N) -> jax.Array:
    return jax.random.split(jax.random.key(3, impl=impl), n)


def _draws(key: Any) -> Any:
    a, b = jax.random.split(key)
    return (
        jax.random.bits(a, (3,)),
        jax.random.normal(b, (2,)),
        jax.random.key_data(jax.random.fold_in(a, 7)),
    )


def _drawn(mapped: Any, impl: str) -> Any:
    return jax.jit(mapped(_draws))(_keys(impl))


@functools.cache
def _drawn_by_vmap(impl: str) -> Any:
    return _drawn(jax.vmap, impl)


@every_batcher
def test_threefry_draws_equal_those_of_vmap(batcher: bk.AbstractBatcher) -> None:
    expected = _drawn_by_vmap("threefry2x32")
    assert_same(_drawn(batcher, "threefry2x32"), expected, ulps=0)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("name", SAME)
def test_rbg_draws_in_the_layout_of_vmap(name: str, impl: str) -> None:
    assert_same(_drawn(BATCHERS[name], impl), _drawn_by_vmap(impl), ulps=0)


def _in_scan(key: Any) -> Any:
    draw = lambda key, _: (key, jax.random.bits(key))
    return jax.lax.scan(draw, key, length=2)[1]


def _in_while(key: Any) -> Any:
    def body(carry: Any) -> Any:
        i, key = carry
        return i + jax.random.uniform(key), key

    return jax.lax.while_loop(lambda c: c[0] < 1, body, (0.0, key))[0]


VARYING: dict[str, Callable[[Any], Any]] = {
    "bits": jax.random.bits,
    "normal": jax.random.normal,
    "split, then bits": lambda key: jax.random.bits(jax.random.split(key)[1]),
    "fold_in, then bits": lambda key: jax.random.bits(jax.random.fold_in(key, 1)),
    "jit": lambda key: jax.jit(lambda key: jax.random.bits(key))(key),
    "cond": lambda key: jax.lax.cond(
        True, jax.random.bits, lambda key: jnp.uint32(0), key
    ),
    "scan": _in_scan,
    "while_loop": _in_while,
    "raw keys": lambda key: jax.random.bits(
        jax.random.wrap_key_data(
            jax.random.key_data(key), impl=str(jax.random.key_impl(key))
        )
    ),
    "varying fold_in of a key that is the same": lambda key: jax.random.bits(
        jax.random.fold_in(
            jax.random.key(0, impl=str(jax.random.key_impl(key))),
            jax.random.key_data(key)[0],
        )
    ),
}


@every_splitting_batcher
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_rbg_draws_in_another_layout_are_refused(
    batcher: bk.AbstractBatcher, impl: str
) -> None:
    with pytest.raises(ValueError, match=str(_keys(impl).dtype)) as info:
        jax.eval_shape(batcher(jax.random.bits), _keys(impl))
    message = str(info.value)
    assert type(batcher).__name__ in message
    assert "threefry2x32" in message
    assert "`Vmap()`" in message


@pytest.mark.parametrize("name", ["Sequential()", "Sharded(4)"])
def test_rbg_draws_of_two_tasks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"first\s+key"):
        jax.eval_shape(BATCHERS[name](jax.random.bits), _keys("rbg", 2))


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_nested_rbg_draws_are_refused(name: str, impl: str) -> None:
    for fun in VARYING.values():
        with pytest.raises(ValueError, match=r"first\s+key"):
            jax.eval_shape(BATCHERS[name](fun), _keys(impl))


@functools.cache
def _derived_keys(mapped: Any) -> Any:
    f = lambda key: (jax.random.split(key, 2), jax.random.fold_in(key, 5))
    return jax.jit(mapped(f))(_keys("rbg"))


@every_splitting_batcher
def test_derived_rbg_keys_equal_those_of_vmap(batcher: bk.AbstractBatcher) -> None:
    """`split` and `fold_in` of rbg keys are threefry's, whatever the layout."""
    assert_same(_derived_keys(batcher), _derived_keys(jax.vmap), ulps=0)


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)"])
def test_deriving_unsafe_rbg_keys_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="key<urbg>"):
        jax.eval_shape(BATCHERS[name](jax.random.split), _keys("unsafe_rbg"))
    fold = lambda key: jax.random.fold_in(key, 1)
    with pytest.raises(ValueError, match="key<urbg>"):
        jax.eval_shape(BATCHERS[name](fold), _keys("unsafe_rbg"))


SHARED: dict[str, Callable[[Any, Any], Any]] = {
    "draw": lambda x, key: x * jax.random.normal(key),
    # No other size in the program is larger: it must not pass for the batch.
    "draw of an array": lambda x, key: x * jax.random.normal(key, (3,)),
    "draw in jit": jax.jit(lambda x, key: x * jax.random.normal(key)),
    "varying bounds": lambda x, key: jax.random.uniform(key, minval=x, maxval=10.0),
    "draw in cond": lambda x, key: jax.lax.cond(
        True, lambda x: x + jax.random.normal(key), lambda x: x, x
    ),
    "draw in scan": lambda x, key: jax.lax.scan(
        lambda c, _: (c + jax.random.normal(key), None), x, length=2
    )[0],
}


@functools.cache
def _shared_draws(mapped: Any, impl: str) -> dict[str, Any]:
    key, x = jax.random.key(3, impl=impl), jnp.arange(1.0, N + 1)

    def both(fun: Any, x: Any, key: Any) -> Any:
        return mapped(lambda x: fun(x, key))(x), mapped(fun, (0, None))(x, key)

    run = lambda *args: {name: both(fun, *args) for name, fun in SHARED.items()}
    return jax.jit(run)(x, key)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("name", ["Chunked(3)", "Sharded(4)"])
def test_draws_from_an_unmapped_rbg_key_equal_vmap(name: str, impl: str) -> None:
    """All tasks draw the same bits from it, under `jax.vmap` and under any layout."""
    expected = _shared_draws(jax.vmap, impl)
    assert_all_same(_shared_draws(BATCHERS[name], impl), expected)


@pytest.mark.parametrize("name", ["Sequential()", "Sharded(4)"])
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_rbg_draws_of_a_single_task_equal_vmap(name: str, impl: str) -> None:
    """One task alone draws what it draws as the first of a batch of one."""
    run = lambda mapped: jax.jit(mapped(jax.random.normal))(_keys(impl, 1))
    assert_same(run(BATCHERS[name]), run(jax.vmap), ulps=0)
