"""`explain` traces cached functions again, and has no lasting effect itself."""

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import batchkit as bk
from batchkit.explain import ReachedSite

from ..helpers import counted, explained, mesh


# The profiler is called for every function; checking types in each call takes longer
# than all else.
pytestmark = pytest.mark.usefixtures("no_type_checks")

X = jnp.ones((10, 3))


def norm(r: jax.Array) -> jax.Array:
    return jnp.sum(r**2)


def batchers(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The batchers of the outermost sites, in order."""
    return [x.batcher for x in explained(fun, *args, **kwargs)]


def loop(jitted: Any, x: jax.Array) -> jax.Array:
    def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return carry + jitted(x).sum(), None

    return jax.lax.scan(body, jnp.zeros(()), None, length=2)[0]


def until(jitted: Any, x: jax.Array) -> jax.Array:
    return jax.lax.while_loop(lambda c: c < 3, lambda c: c + jitted(x)[0], 0.0)


def branch(jitted: Any, x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0, 0] > 0, jitted, lambda x: x[:, 0], x)


def spread(jitted: Any, x: jax.Array) -> jax.Array:
    spec = jax.sharding.PartitionSpec("tasks")
    mapped = jax.shard_map(
        jitted, mesh=mesh(2), in_specs=spec, out_specs=spec, check_vma=False
    )
    return mapped(x)


def derived(jitted: Any, x: jax.Array) -> jax.Array:
    rule = jax.custom_vjp(jitted)
    rule.defvjp(lambda x: (jitted(x), x), lambda x, g: (x * g[:, None],))
    return jax.grad(lambda x: rule(x).sum())(x)


AROUND: dict[str, Callable[..., Any]] = {
    "itself": lambda jitted, x: jitted(x),
    "jit": lambda jitted, x: jax.jit(jitted)(x),
    "another jit": lambda jitted, x: jax.jit(lambda x: jitted(2 * x))(x),
    "equinox's jit": lambda jitted, x: eqx.filter_jit(jitted)(x),
    "scan": loop,
    "while": until,
    "cond": branch,
    "shard_map": spread,
    "grad": lambda jitted, x: jax.grad(lambda x: jitted(x).sum())(x),
    "custom_vjp": derived,
    "checkpoint": lambda jitted, x: jax.checkpoint(jitted)(x),
    "vmap": lambda jitted, x: jax.vmap(lambda s: jitted(s * x))(x[:, 0]),
}


@pytest.mark.parametrize("around", AROUND)
def test_sites_in_cached_jitted_functions_are_found(around):
    inner = jax.jit(bk.Chunked(4)(norm))
    outer = jax.jit(functools.partial(AROUND[around], inner))
    outer.trace(X)
    inner.trace(X)
    for fun in (outer, functools.partial(AROUND[around], inner)):
        first = explained(fun, X)
        (reached,) = first[0].inside if around == "vmap" else first
        assert reached.batcher == "Chunked(4)"
        assert explained(fun, X) == first


def test_cache_of_a_jitted_function_is_kept():
    single, traces = counted(norm)
    fun: Any = jax.jit(bk.Chunked(4)(single))
    expected = fun(X)
    assert len(traces) == 1
    bk.explain(fun, X)
    assert len(traces) == 2  # to explain it
    assert fun._cache_size() == 1
    assert (fun(X) == expected).all()
    fun.trace(X)
    jax.eval_shape(fun, X)
    assert len(traces) == 2
    bk.explain(fun, X)
    assert len(traces) == 3
    fun(X)
    assert len(traces) == 3


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_function_is_traced_once(wrap):
    single, traces = counted(norm)
    fun, calls = counted(bk.Chunked(4)(single))
    bk.explain(wrap(fun), X)
    assert (len(calls), len(traces)) == (1, 1)


def test_explain_before_the_first_call_has_no_effect_on_it():
    single, traces = counted(norm)
    fun = jax.jit(bk.Sharded(mesh(2), inner=bk.Chunked(2))(single))
    bk.explain(fun, X)
    assert jnp.allclose(fun(X), jnp.full(10, 3.0))
    traced = len(traces)
    fun(X)
    assert len(traces) == traced


def test_memory_equals_that_of_memory():
    fun = jax.jit(bk.Chunked(2)(lambda r: jnp.sort(jnp.outer(r, r).ravel())))
    assert bk.explain(fun, X).memory == bk.memory(fun, X)
    donated = jax.jit(lambda x: 2 * x, donate_argnums=0)
    assert bk.explain(donated, X).memory.alias == X.nbytes
    assert not X.is_deleted()


def profiler(*_: Any) -> None:
    pass


@pytest.mark.parametrize("previous", [None, profiler])
def test_profiler_is_restored(previous):
    def fails(x: jax.Array) -> jax.Array:
        jax.vmap(norm)(x)
        raise KeyError("mine")

    before = sys.getprofile()
    sys.setprofile(previous)
    try:
        bk.explain(bk.Chunked(4)(norm), X)
        assert sys.getprofile() is previous
        for fun in (fails, bk.Chunked(4)(fails), jax.jit(fails)):
            with pytest.raises((KeyError, IndexError, ValueError)):
                bk.explain(fun, X)
            assert sys.getprofile() is previous
    finally:
        sys.setprofile(before)


def test_log_ends_after_an_error():
    def fails(r: jax.Array) -> jax.Array:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bk.explain(lambda x: bk.Chunked(4)(lambda r: jax.vmap(fails)(r))(x), X)
    (reached,) = bk.explain(bk.Sequential()(norm), X).reached
    assert (reached.batcher, reached.inside) == ("Sequential()", ())


def test_previous_profiler_is_called_again():
    heard: list[str] = []

    def hook(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            heard.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(hook)
    try:
        bk.explain(bk.Vmap()(norm), X)
        profiler()
    finally:
        sys.setprofile(before)
    assert "profiler" in heard


def test_static_arguments_of_jitted_functions():
    fun = jax.jit(lambda x, size: bk.Chunked(size)(norm)(x), static_argnums=1)
    fun(X, 5)
    assert batchers(fun, X, 5) == ["Chunked(5)"]
    assert batchers(fun, X, 3) == ["Chunked(3)"]


def test_methods_and_callable_objects():
    class Model(eqx.Module):
        scale: jax.Array

        def __call__(self, x: jax.Array) -> jax.Array:
            return bk.Chunked(4)(lambda r: self.scale * norm(r))(x)

        @eqx.filter_jit
        def jitted(self, x: jax.Array) -> jax.Array:
            return self(x)

    model = Model(jnp.ones(()))
    model.jitted(X)
    for fun in (model, model.__call__, model.jitted, functools.partial(model, X)):
        args = () if isinstance(fun, functools.partial) else (X,)
        assert batchers(fun, *args) == ["Chunked(4)"]


def test_threads_have_separate_logs():
    in_trace = threading.Barrier(2, timeout=60)
    found: dict[int, Any] = {}
    failures: list[BaseException] = []

    def explain(size: int) -> None:
        def single(r: jax.Array) -> jax.Array:
            in_trace.wait()  # both threads are inside their traces now
            return jax.vmap(jnp.sin)(r).sum()

        try:
            found[size] = bk.explain(bk.Chunked(size)(single), X[:, :size]).reached
            assert sys.getprofile() is None
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=explain, args=(size,)) for size in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for size, (reached,) in found.items():
        assert reached.batcher == f"Chunked({size})"
        assert [x.tasks for x in reached.inside] == [size]


def logprior(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def loglikelihood(x: jax.Array) -> jax.Array:
    return -jnp.sum(jax.vmap(lambda y: (y - 1.0) ** 2)(x))


SETTINGS: dict[str, Any] = {
    "logprior_fn": logprior,
    "loglikelihood_fn": loglikelihood,
    "num_inner_steps": 2,
    "num_delete": 6,
}
KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
POSITIONS = jax.ShapeDtypeStruct((24, 2), jnp.float32)


@functools.cache
def rebuilt() -> Any:
    policy = bk.ByPhase(init=bk.Chunked(8), step=bk.Chunked(4))
    return bk.rebuild_sampler(blackjax.nss, batcher=policy)(**SETTINGS)


@functools.cache
def sites_of_init() -> tuple[ReachedSite, ...]:
    return explained(rebuilt().init, POSITIONS)


@functools.cache
def sites_of_step() -> tuple[ReachedSite, ...]:
    state = jax.eval_shape(rebuilt().init, POSITIONS)
    step = jax.jit(rebuilt().step)
    jax.eval_shape(step, KEY, state)
    return explained(step, KEY, state)


def test_sites_of_a_rebuilt_nss():
    init, step = sites_of_init(), sites_of_step()
    first = init[0]
    assert first.site.name == "blackjax.ns.nss:as_top_level_api.<locals>.init_fn"
    assert (first.site.phase, first.batcher) == ("init", "Chunked(8)")
    assert (first.tasks, first.layout, first.at_once) == (24, "3 chunks of 8", 8)
    assert first.bytes_in == 8
    assert {x.split(" ")[0] for x in first.functions} == {"logprior", "loglikelihood"}
    assert all(f"({__name__.split('.')[-1]}.py:" in x for x in first.functions)
    (users,) = first.inside
    assert users.site.module == __name__
    assert (users.batcher, users.at_once) == ("", 16)
    update = step[0]
    assert update.site.name.startswith("blackjax.ns.from_mcmc:update_with_mcmc")
    assert (update.site.phase, update.batcher) == ("step", "Chunked(4)")
    assert (update.tasks, update.at_once) == (6, 3)
    assert any(x.startswith("loglikelihood ") for x in update.functions)
    assert [x.batcher for x in update.inside] == [""]
    for sites, phase in ((init, "init"), (step, "step")):
        rows = sites[-1]
        assert rows.site.qualname == "particles_as_rows"
        assert (rows.site.phase, rows.functions) == (phase, ())


def test_sites_of_upstream_nss():
    rebuilt = sites_of_init()
    upstream = explained(blackjax.nss(**SETTINGS).init, POSITIONS)
    assert [x.tasks for x in upstream] == [x.tasks for x in rebuilt]
    assert {x.batcher for x in upstream} == {""}
    assert {x.note for x in upstream} == {"not rebuilt, stays as it is"}
    assert {x.layout for x in upstream} == {"all at once"}
    assert {x.site.module.split(".")[0] for x in upstream} == {"blackjax"}
    # Where a vmap is called as soon as it is made, the place is the site's.
    assert str(upstream[-1].site) == str(rebuilt[-1].site)


def test_explanation_prints_as_a_table():
    def fun(x: jax.Array) -> jax.Array:
        return bk.Chunked(4)(lambda r: jax.vmap(jnp.sin)(r))(x)

    explanation = bk.explain(fun, X)
    lines = repr(explanation).splitlines()
    assert lines[0].split()[:4] == ["site", "spelling", "phase", "tasks"]
    outer, inner = explanation.reached[0], explanation.reached[0].inside[0]
    assert lines[1].startswith(f"{outer.site} ")
    assert lines[2].startswith(f"  {inner.site} ")
    assert "3 chunks of 4 (2 repeated)" in lines[1]
    assert "not rebuilt, stays as it is" in lines[2]
    assert lines[3] == ""
    assert "\n".join(lines[4:]) == repr(explanation.memory)
    text = explanation._repr_html_()
    assert text.count("<tr>") == 3 + 6
    assert text.endswith(explanation.memory._repr_html_())
    assert "<td>&nbsp;&nbsp;" in text
    assert "&lt;locals&gt;" in text
