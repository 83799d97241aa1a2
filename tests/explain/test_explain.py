"""`explain` lists what one trace reaches, in order and nested, and changes nothing."""

import ast
import cProfile
import functools
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.explain import Explanation, ReachedSite

from ..helpers import explained, mesh


# The profiler is called for every function; checking types in each call takes longer
# than all else.
pytestmark = pytest.mark.usefixtures("no_type_checks")

X = jnp.ones((10, 3))


def norm(r: jax.Array) -> jax.Array:
    return jnp.sum(r**2)


def only(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> ReachedSite:
    (reached,) = explained(fun, *args, **kwargs)
    return reached


S2, S3 = bk.Sharded(mesh(2)), bk.Sharded(mesh(3))
LAYOUTS: list[tuple[bk.AbstractBatcher, str, int]] = [
    (bk.Vmap(), "all at once", 10),
    (bk.Sequential(), "10 one by one", 1),
    (bk.Chunked(5), "2 chunks of 5", 5),
    (bk.Chunked(4), "3 chunks of 4 (2 repeated)", 4),
    (bk.Chunked(4, remat=True), "3 chunks of 4 (2 repeated)", 4),
    (bk.Chunked(10), "all at once", 10),
    (bk.Chunked(9), "2 chunks of 5", 5),
    (bk.Chunked(1), "10 chunks of 1", 1),
    (
        bk.Chunked(4, inner=bk.Chunked(3)),
        "3 chunks of 4 (2 repeated), 2 chunks of 2",
        2,
    ),
    (bk.Chunked(5, inner=bk.Chunked(9)), "2 chunks of 5", 5),
    (bk.Chunked(50, inner=bk.Chunked(5)), "2 chunks of 5", 5),
    (bk.Chunked(5, inner=bk.Sequential()), "2 chunks of 5, 5 one by one", 1),
    (S2, "2 devices of 5", 5),
    (S3, "3 devices of 4 (2 repeated)", 4),
    (bk.Sharded(mesh(1)), "all at once", 10),
    (
        bk.Sharded(mesh(2), inner=bk.Chunked(2)),
        "2 devices of 5, 3 chunks of 2 (1 repeated)",
        2,
    ),
    (bk.Sharded(mesh(2), inner=bk.Sequential()), "2 devices of 5, 5 one by one", 1),
    (bk.Sharded(mesh(2), inner=S2), "2 devices of 5", 5),
    (
        bk.Chunked(5, inner=S2),
        "2 chunks of 5, 2 devices of 3 (1 repeated)",
        3,
    ),
]


def halvings(work: int, mark: Any) -> Any:
    """Halve a number until it is small; a turn has `work` sines."""

    def half(x):
        return x / 2 + 1e-30 * jnp.sum(jnp.sin(jnp.linspace(0.0, 1.0, work) * x))

    return lambda x: jax.lax.while_loop(lambda x: x > 0.1, mark(half), x)


@pytest.mark.parametrize(
    ("mark", "what"), [(bk.expensive, "a call"), (lambda x: x, "a turn")]
)
def test_lanes_that_cost_more_than_they_save_are_named(mark: Any, what: str) -> None:
    cheap = only(bk.Continuous(3)(halvings(10, mark)), jnp.arange(10.0))
    assert re.search(rf"{what} has \d+ operations, fewer than 2,000: `Vmap", cheap.note)
    costly = only(bk.Continuous(3)(halvings(3000, mark)), jnp.arange(10.0))
    assert "fewer than" not in costly.note


@pytest.mark.parametrize(("batcher", "layout", "at_once"), LAYOUTS, ids=range(19))
def test_record_of_a_batcher(batcher, layout, at_once):
    reached = only(batcher(norm), X)
    assert reached.tasks == 10
    assert reached.layout == layout
    assert reached.at_once == at_once
    assert (reached.bytes_in, reached.bytes_out) == (12, 4)
    assert reached.inside == ()
    assert reached.note == ""
    assert reached.site.phase is None
    assert reached.batcher.startswith(type(batcher).__name__)


@pytest.mark.parametrize(
    ("batcher", "name"),
    [
        (bk.Vmap(), "Vmap()"),
        (bk.Sequential(), "Sequential()"),
        (bk.Chunked(4), "Chunked(4)"),
        (bk.Chunked(4, remat=True), "Chunked(4, remat=True)"),
        (bk.Chunked(4, inner=bk.Sequential()), "Chunked(4, inner=Sequential())"),
        (bk.Chunked(4, bk.Chunked(2)), "Chunked(4, inner=Chunked(2))"),
        (bk.Sharded(), "Sharded()"),
        (bk.Sharded(inner=bk.Chunked(2)), "Sharded(inner=Chunked(2))"),
    ],
    ids=str,
)
def test_batcher_is_named_as_the_user_writes_it(batcher, name):
    assert only(batcher(norm), X).batcher == name
    assert eval(name, dict(vars(bk))) == batcher


def test_site_of_a_batcher_is_the_callers_line():
    # In an interpreter of its own: the tests' type checks put frames in between.
    script = """
        import jax, jax.numpy as jnp
        import batchkit as bk
        mapped = bk.Chunked(2)(jnp.sin)
        jitted = jax.jit(mapped)
        def outer(x):
            y = mapped(x)
            def inner(z):
                return jitted(z)
            return jax.jit(inner)(y) + bk.Sequential()(
                jnp.sin
            )(x)
        reached = bk.explain(outer, jnp.ones(4)).reached
        print([(str(x.site), x.site.spelling) for x in reached])
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    chunked, sequential = "Chunked", "Sequential"
    assert ast.literal_eval(run.stdout) == [
        ("__main__:outer:7", chunked),
        ("__main__:outer.<locals>.inner:9", chunked),
        ("__main__:outer:10", sequential),
    ]


def test_bytes_count_mapped_leaves_only():
    def fun(tree: dict[str, jax.Array], y: jax.Array, *, z: jax.Array) -> Any:
        return tree["a"].astype(jnp.int8), {"y": y, "z": z.sum()}, jnp.ones(7)

    mapped = bk.Chunked(2)(
        fun, in_axes=({"a": 1, "b": None}, None), out_axes=(0, -1, None)
    )
    tree = {"a": jnp.ones((3, 4), jnp.float16), "b": jnp.ones((4, 100))}
    reached = only(mapped, tree, jnp.ones(5), z=jnp.ones((4, 2), jnp.int32))
    assert reached.tasks == 4
    assert reached.bytes_in == 3 * 2 + 2 * 4
    assert reached.bytes_out == 3 * 1 + 5 * 4 + 4


def test_bytes_of_typed_keys():
    draw = bk.Chunked(2)(jax.random.normal)
    keys = jax.ShapeDtypeStruct((5,), jax.random.key(0).dtype)
    assert only(draw, keys).bytes_in == 8
    assert only(draw, jax.random.split(jax.random.key(0), 5)) == only(draw, keys)


class Model(eqx.Module):
    def __call__(self, r: jax.Array) -> jax.Array:
        return norm(r)

    def method(self, r: jax.Array) -> jax.Array:
        return norm(r)


def twice(r: jax.Array, *, scale: float) -> jax.Array:
    return scale * norm(r)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (norm, "norm"),
        (jax.jit(norm), "norm"),
        (jax.checkpoint(jax.jit(norm)), "norm"),
        (functools.partial(twice, scale=2.0), "twice"),
        (jax.tree_util.Partial(twice, scale=2.0), "twice"),
        (Model(), "Model.__call__"),
        (Model().method, "Model.method"),
        (eqx.filter_jit(norm), "norm"),
    ],
    ids=range(8),
)
def test_user_functions_are_listed_at_the_site_that_calls_them(
    given, name, make_package
):
    module = make_package(
        init="""
        import jax
        def total(f, x): return jax.vmap(lambda r: r.sum() * f(r))(x)
        def run(f, unused, x): return jax.vmap(lambda r: r + 1)(x).sum() + total(f, x)
        """
    )
    run = bk.rebuild_sampler(module.run, batcher=bk.Chunked(4), packages=("toy",))
    fun = jax.jit(lambda x: run(given, {"unused": [lambda r: r]}, x))
    fun(X)
    first, second = explained(fun, X)
    assert first.functions == ()
    (called,) = second.functions
    assert called.startswith(f"{name} (test_explain.py:")


def test_zero_tasks_have_zero_bytes():
    reached = only(bk.Chunked(2)(norm), jnp.ones((0, 3)))
    assert (reached.tasks, reached.bytes_in, reached.bytes_out) == (0, 0, 0)


def nested(outer: Any, inner: Any) -> Callable[[Any], Any]:
    return lambda x: outer(lambda r: inner(jnp.sin)(r))(x)


@pytest.mark.parametrize(
    ("outer", "inner", "at_once"),
    [
        (bk.Vmap(), bk.Vmap(), (10, 30)),
        (bk.Chunked(4), bk.Vmap(), (4, 12)),
        (bk.Chunked(4), bk.Chunked(2), (4, 8)),
        (bk.Sequential(), bk.Chunked(2), (1, 2)),
        (bk.Chunked(4), bk.Sequential(), (4, 4)),
        (bk.Chunked(4), jax.vmap, (4, 12)),
        (jax.vmap, bk.Chunked(2), (10, 20)),
        (jax.vmap, jax.vmap, (10, 30)),
        (bk.Chunked(4, inner=bk.Chunked(3)), bk.Chunked(2), (2, 4)),
        (S2, bk.Chunked(2), (5, 10)),
        (S2, S3, (5, 15)),
    ],
    ids=range(11),
)
def test_nested_lanes_multiply(outer, inner, at_once):
    reached = only(nested(outer, inner), X)
    (inside,) = reached.inside
    assert (reached.tasks, inside.tasks) == (10, 3)
    assert (reached.at_once, inside.at_once) == at_once
    assert inside.inside == ()


def test_lanes_multiply_three_deep():
    def fun(x: jax.Array) -> jax.Array:
        cube = bk.Chunked(2)(lambda r: bk.Chunked(2)(jax.vmap(jnp.sin))(r))
        return bk.Chunked(3)(lambda r: cube(r))(x)

    reached = only(fun, jnp.ones((6, 4, 4, 5)))
    (middle,) = reached.inside
    (inner,) = middle.inside
    assert [x.at_once for x in (reached, middle, inner)] == [3, 6, 12]


def test_sites_are_in_the_order_of_the_trace():
    def fun(x: jax.Array) -> jax.Array:
        y = bk.Sequential()(norm)(x)
        z = bk.Chunked(2)(lambda r: bk.Vmap()(jnp.sin)(r).sum() + jax.vmap(norm)(x))(x)
        return y.sum() + z.sum() + bk.Chunked(5)(norm)(x).sum()

    explanation = bk.explain(fun, X)
    assert [x.batcher for x in explanation.reached] == [
        "Sequential()",
        "Chunked(2)",
        "Chunked(5)",
    ]
    assert [x.batcher for x in explanation.reached[1].inside] == ["Vmap()", ""]


def test_equal_sites_are_listed_once():
    def fun(x: jax.Array, y: jax.Array) -> jax.Array:
        total = 0.0
        for each in (x, x, y, x):
            total += bk.Chunked(5)(norm)(each).sum()
        return jnp.asarray(total)

    reached = explained(fun, X, X[:7])
    assert [x.tasks for x in reached] == [10, 7]


def test_user_vmap_is_listed_and_unchanged():
    weights = jnp.ones(4)

    def fun(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda r, w: r.sum() * w, in_axes=(1, None))(x, weights)

    reached = only(fun, X)
    where = "test_user_vmap_is_listed_and_unchanged.<locals>.fun"
    assert reached.site.name == f"{__name__}:{where}"
    assert reached.site.line == inspect.getsourcelines(fun)[1] + 1
    assert reached.site.spelling.startswith("jax.vmap of ")
    assert reached.batcher == ""
    assert reached.note == "not rebuilt, stays as it is"
    assert (reached.tasks, reached.layout) == (3, "all at once")
    assert reached.bytes_in == 40


VMAPS: list[tuple[Callable[[Any], Any], int]] = [
    (lambda x: jax.vmap(norm)(x), 10),
    (lambda x: jax.vmap(norm, in_axes=-1)(x), 3),
    (lambda x: jax.vmap(lambda *, r: norm(r))(r=x), 10),
    (lambda x: jax.vmap(lambda: 1.0, axis_size=5)() + x[0, 0], 5),
    (lambda x: jax.vmap(lambda d: d["a"], in_axes=({"a": 1, "b": None},))(
        {"a": x, "b": None}
    ), 3),
    (lambda x: jax.vmap(lambda d: d[0], in_axes=[0])((x, x)), 10),
    (lambda x: jax.grad(lambda y: jax.vmap(norm)(y).sum())(x), 10),
]  # fmt: skip


@pytest.mark.parametrize(("fun", "tasks"), VMAPS, ids=range(len(VMAPS)))
def test_tasks_of_user_vmaps(fun, tasks):
    assert only(fun, X).tasks == tasks
    assert only(jax.jit(fun), np.ones((10, 3), np.float32)).tasks == tasks


def test_vmaps_inside_jax_are_not_listed():
    jacobian = lambda x: jax.jacfwd(jnp.sin)(x[0])
    assert explained(jacobian, X) == ()
    text = repr(bk.explain(jacobian, X))
    assert text.startswith("no site was reached\n\nmemory ")


def test_error_of_vmap_is_raised():
    previous = sys.getprofile()
    for fun in (
        lambda x: jax.vmap(norm, in_axes=(0, 0))(x),
        lambda x: jax.vmap(norm, in_axes=5)(x),
        lambda x: jax.vmap(jnp.add)(x, x[:4]),
        lambda x: bk.Chunked(2)(jnp.add)(x, x[:4]),
    ):
        with pytest.raises(ValueError, match="vmap"):
            bk.explain(fun, X)
    assert sys.getprofile() is previous


def test_caught_error_leaves_the_log_consistent():
    def fails(r: jax.Array) -> jax.Array:
        raise KeyError

    def fun(x: jax.Array) -> jax.Array:
        try:
            jax.vmap(fails)(x)
        except KeyError:
            return bk.Chunked(5)(norm)(x)
        raise AssertionError

    assert [x.inside for x in explained(fun, X)] == [(), ()]


jitted = jax.jit(jax.vmap(norm))
MAPPED = {
    "itself": jax.vmap(norm),
    "jitted": jitted,
    "jitted inside": lambda x: jitted(x),
    "in JAX's own loop": lambda x: jax.lax.map(norm, x, batch_size=4),
}


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_and_jitted_functions(name):
    (reached,) = explained(MAPPED[name], X[:4])
    assert reached.site.spelling == "jax.vmap of norm"
    assert (reached.tasks, reached.bytes_in) == (4, 12)


def test_vmap_of_a_vmap_is_nested():
    (outer,) = explained(jax.vmap(jax.vmap(lambda v: v + 1)), X)
    (inner,) = outer.inside
    assert (outer.tasks, inner.tasks, inner.at_once) == (10, 3, 30)


def test_explain_inside_explain_has_its_own_log():
    seen: list[Explanation] = []

    def fun(x: jax.Array) -> jax.Array:
        seen.append(bk.explain(bk.Chunked(2)(norm), X))
        return x

    assert bk.explain(fun, X).reached == ()
    assert seen[0].reached[0].batcher == "Chunked(2)"


def test_table_has_one_line_per_site():
    # The mesh, as a part of the batcher, would print in several lines.
    text = repr(bk.explain(S2(norm), X))
    table, _ = text.split("\n\n")
    assert len(table.splitlines()) == 2


def test_functions_of_a_built_algorithm_are_listed():
    def loglikelihood(x: jax.Array) -> jax.Array:
        return -norm(x)

    algorithm = blackjax.nss(
        logprior_fn=norm, loglikelihood_fn=loglikelihood, num_inner_steps=2
    )
    rebuilt = bk.rebuild_sampler(algorithm, batcher=bk.Chunked(2))
    likelihood = explained(rebuilt.init, X[:4])[0]
    names = {text.split(" ")[0].split(".")[-1] for text in likelihood.functions}
    assert names == {"norm", "loglikelihood"}


def test_cprofile_continues_afterwards():
    profile = cProfile.Profile()
    profile.enable()
    try:
        bk.explain(bk.Chunked(2)(norm), X)
        sorted([3, 1, 2])
    finally:
        profile.disable()
    names = {entry.code for entry in profile.getstats()}
    assert any("sorted" in str(name) for name in names)


def test_functions_passed_during_the_trace_are_listed():
    def late(x: jax.Array) -> jax.Array:
        return -norm(x)

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(2))

    def likelihood(x: jax.Array) -> jax.Array:
        inner: Any = nss(logprior_fn=norm, loglikelihood_fn=late, num_inner_steps=2)
        return inner.init(jnp.stack([x, x])).particles.loglikelihood.sum()

    outer = nss(logprior_fn=norm, loglikelihood_fn=likelihood, num_inner_steps=2)
    inner = explained(outer.init, X[:4])[0].inside[0]
    assert any("late" in name for name in inner.functions)
