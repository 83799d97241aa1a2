"""What `init` and `step` share stays shared, and each still gets its own batcher."""

from typing import Any

import jax.numpy as jnp
import pytest

import batchkit as bk

from ..helpers import explained


ROWS = jnp.arange(24.0).reshape(12, 2)
PAIR = """
    import functools
    import jax
    from typing import Any, NamedTuple
    class Pair(NamedTuple):
        init: Any
        step: Any
    def row(r): return r.sum()
"""
BY_PHASE = {"init": bk.Chunked(2), "step": bk.Sequential()}


def rebuild(api: Any, batcher: Any = BY_PHASE) -> Any:
    return bk.rebuild_sampler(api, batcher=batcher, packages=("toy",))


@pytest.fixture(autouse=True)
def _without_type_checks(no_type_checks: None) -> None:
    """`explain` is told of every call, and checking the types of each takes long."""


def batchers(pair: Any) -> tuple[str, str]:
    """The batchers of the first site of `init` and of `step`."""
    reached = [explained(fun, ROWS) for fun in pair]
    return reached[0][0].batcher, reached[1][0].batcher


SHARED_MAPPED = [
    "def build(): return Pair(jax.vmap(row), jax.vmap(row))",
    "def build():\n        m = jax.vmap(row)\n        return Pair(m, m)",
    "mapped = jax.vmap(row)\n    def build(): return Pair(mapped, mapped)",
]


@pytest.mark.parametrize("source", SHARED_MAPPED)
def test_what_is_returned_mapped(source, make_package):
    module = make_package(init=f"{PAIR}\n    {source}")
    pair = rebuild(module.build)()
    assert batchers(pair) == ("Chunked(2)", "Sequential()")
    assert batchers(rebuild(module.build())) == ("Chunked(2)", "Sequential()")
    # It can be rebuilt again, for somebody else.
    assert batchers(rebuild(pair, bk.Chunked(3))) == ("Chunked(3)", "Chunked(3)")


def test_what_they_remember_together(make_package):
    module = make_package(
        init=PAIR
        + """
    def build():
        seen = None
        def init(x):
            nonlocal seen
            seen = x.shape
            return jax.vmap(row)(x)
        def step(x):
            assert seen == x.shape
            return jax.vmap(row)(x)
        return Pair(init, step)
    pair = build()
    """
    )
    for pair in (rebuild(module.build)(), rebuild(module.pair)):
        with pytest.raises(AssertionError):
            pair.step(ROWS)
        pair.init(ROWS)
        pair.step(ROWS)
        assert batchers(pair) == ("Chunked(2)", "Sequential()")


def test_a_phase_leaves_what_the_other_never_reaches(make_package):
    module = make_package(
        init=PAIR
        + """
    @jax.jit
    def deep(x): return jax.vmap(row)(x)
    def init(x): return deep(x)
    def step(x): return jax.vmap(row)(x)
    pair = Pair(init, step)
    """
    )
    left = {"init": bk.Vmap(), "default": bk.Chunked(2)}
    assert batchers(rebuild(module.pair, left)) == ("", "Chunked(2)")
    with pytest.raises(bk.UnreachableSiteError, match="toy:deep"):
        rebuild(module.pair, {"step": bk.Vmap(), "default": bk.Chunked(2)})


def test_sites_of_the_whole_are_told_from_those_of_its_parts(make_package):
    module = make_package(
        init=PAIR
        + """
    class Api:
        def __init__(self, build, init): self.build, self.init = build, init
    def shared(x): return jax.vmap(row)(x)
    def init(x): return shared(x)
    def build():
        def start(x): return init(x)
        def step(x): return jax.vmap(lambda r: r)(shared(x))
        return Pair(start, step)
    api = Api(build, init)
    """
    )
    found = {(x.qualname, x.phase) for x in bk.sites(module.api, packages=("toy",))}
    step = "build.<locals>.step"
    assert found == {("shared", "init"), ("shared", None), (step, None)}
