"""Formats of values and types in error messages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit._util._formats import format_type, format_value

from ..helpers import assert_refuses


class Pair(NamedTuple):
    x: Any
    y: Any


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.ones((60, 2)), "float32[60,2]"),
        ({"a": np.ones(3), "b": [1, None]}, "{'a': float64[3], 'b': [1, None]}"),
        (Pair(jnp.ones((), int), "here"), "Pair(x=int32[], y='here')"),
        (jax.random.key(0), "key<fry>[]"),
        (np.float64(2.5), repr(np.float64(2.5))),
        (jnp.ones, repr(jnp.ones)),
        (bk.Chunked, "Chunked"),
        (Rude(), "<Rude>"),
        ({1: 0, "a": 0}, "<dict>"),  # keys that JAX cannot sort
        ("x" * 500, "'" + "x" * 199 + "..."),
    ],
    # The repr of a function has its address, and processes compare the names.
    ids=range(10),
)
def test_arrays_are_elided(value: Any, text: str) -> None:
    assert format_value(value) == text


def test_traced_arrays_are_elided() -> None:
    seen: list[str] = []
    jax.jit(lambda x: seen.append(format_value({"x": x})))(jnp.ones((2, 3)))
    assert seen == ["{'x': float32[2,3]}"]


@pytest.mark.parametrize(
    ("cls", "remedy"),
    [
        (bk.Vmap, "; make one: `Vmap()`"),
        (bk.Chunked, "; make one: `Chunked(16)`"),
        (bk.Continuous, "; make one: `Continuous(16)`"),
        (bk.Sharded, "; make one: `Sharded()`"),
        (bk.Auto, "; make one: `Auto()`"),
        (bk.BySite, "; make one: `BySite(...)`"),
        (bk.AbstractBatcher, ""),
        (int, ""),
    ],
)
def test_class_is_named_with_a_remedy(cls: type, remedy: str) -> None:
    assert format_type(cls) == f"the class {cls.__name__}{remedy}"


@pytest.mark.parametrize(
    ("make", "owner"),
    [
        (lambda x: bk.sites(x), "sites(api=float32[60,2])"),
        (
            lambda x: bk.rebuild_sampler(x, batcher=bk.Vmap()),
            "rebuild_sampler(api=float32[60,2])",
        ),
    ],
)
def test_message_elides_an_array_passed_as_api(make: Any, owner: str) -> None:
    assert_refuses(lambda: make(jnp.ones((60, 2))), ValueError, (owner,))


@pytest.mark.parametrize(
    ("make", "owner"),
    [
        (lambda x: bk.Chunked(2, x), "Chunked(inner=Continuous)"),
        (lambda x: bk.Sharded(inner=x), "Sharded(inner=Continuous)"),
        (lambda x: bk.filter_batch(x), "filter_batch(batcher=Continuous)"),
        (lambda x: bk.ByPhase(step=x), "ByPhase(step=Continuous)"),
        (lambda x: bk.BySite({"a": x}), "BySite(batchers['a']=Continuous)"),
        (
            lambda x: bk.rebuild_sampler(jnp.ones, batcher=x),
            "rebuild_sampler(batcher=Continuous)",
        ),
    ],
)
def test_class_passed_as_batcher_is_refused_with_a_remedy(
    make: Any, owner: str
) -> None:
    words = (owner, "got the class Continuous; make one: `Continuous(16)`.")
    assert_refuses(lambda: make(bk.Continuous), TypeError, words)
