"""`explain` for many kinds of functions and arguments."""

import cProfile
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import pytest

import batchkit as bk
from batchkit.explain import Explanation


pytestmark = pytest.mark.usefixtures("no_type_checks")

X = jnp.ones((4, 3))


def norm(r: jax.Array) -> jax.Array:
    return jnp.sum(r**2)


jitted = jax.jit(jax.vmap(norm))
MAPPED = {
    "itself": jax.vmap(norm),
    "jitted": jitted,
    "jitted inside": lambda x: jitted(x),
    "in JAX's own loop": lambda x: jax.lax.map(norm, x, batch_size=4),
}


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_and_jitted_functions(name):
    (reached,) = bk.explain(MAPPED[name], X).reached
    assert reached.site.spelling == "jax.vmap of norm"
    assert (reached.tasks, reached.bytes_in) == (4, 12)


def test_vmap_of_a_vmap_is_nested():
    (outer,) = bk.explain(jax.vmap(jax.vmap(lambda v: v + 1)), X).reached
    (inner,) = outer.inside
    assert (outer.tasks, inner.tasks, inner.at_once) == (4, 3, 12)


def test_vmap_of_a_batcher_is_nested():
    (outer,) = bk.explain(jax.vmap(bk.Chunked(1)(jnp.sin)), X).reached
    (inner,) = outer.inside
    assert (inner.batcher, inner.at_once) == ("Chunked(1)", 4)


def test_explain_inside_explain_has_its_own_log():
    seen: list[Explanation] = []

    def fun(x: jax.Array) -> jax.Array:
        seen.append(bk.explain(bk.Chunked(2)(norm), X))
        return x

    assert bk.explain(fun, X).reached == ()
    assert seen[0].reached[0].batcher == "Chunked(2)"


def test_non_array_arguments_are_constants():
    explanation = bk.explain(lambda x, dtype: x.astype(dtype), X, jnp.float16)
    assert explanation.memory.output == X.size * 2


def test_table_has_one_line_per_site():
    batcher = bk.Chunked(4, remat=True)
    (reached,) = bk.explain(batcher(norm), jnp.ones((9, 3))).reached
    assert reached.batcher == "Chunked(4, remat=True)"
    mesh = jax.make_mesh((2,), ("tasks",), devices=jax.devices()[:2])
    text = repr(bk.explain(bk.Sharded(mesh)(norm), X))
    table, _ = text.split("\n\n")
    assert len(table.splitlines()) == 2


def test_functions_of_a_built_algorithm_are_listed():
    def loglikelihood(x: jax.Array) -> jax.Array:
        return -norm(x)

    algorithm = blackjax.nss(
        logprior_fn=norm, loglikelihood_fn=loglikelihood, num_inner_steps=2
    )
    rebuilt = bk.rebuild_sampler(algorithm, batcher=bk.Chunked(2))
    likelihood = bk.explain(rebuilt.init, X).reached[0]
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


def test_python_numbers_are_constants():
    def repeated(x: jax.Array, n: int) -> jax.Array:
        return jnp.stack([x] * n)

    assert bk.memory(repeated, X, 3).output == 3 * X.size * 4
    assert bk.memory(repeated, X, n=3).output == 3 * X.size * 4


def test_functions_passed_during_the_trace_are_listed():
    def late(x: jax.Array) -> jax.Array:
        return -norm(x)

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(2))

    def likelihood(x: jax.Array) -> jax.Array:
        inner: Any = nss(logprior_fn=norm, loglikelihood_fn=late, num_inner_steps=2)
        return inner.init(jnp.stack([x, x])).particles.loglikelihood.sum()

    outer = nss(logprior_fn=norm, loglikelihood_fn=likelihood, num_inner_steps=2)
    inner = bk.explain(outer.init, X).reached[0].inside[0]
    assert any("late" in name for name in inner.functions)
