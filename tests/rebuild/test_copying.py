"""Every way to reach a vmap, in synthetic packages; and that nothing else changes.

`Chunked(2)` over four rows shows up in the jaxpr as a scan of length 2, which the
original does not have.
"""

import functools
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk


ROWS = jnp.arange(8.0).reshape(4, 2)


def rebuild(api: Any, packages: tuple[str, ...] = ("toy",)) -> Any:
    return bk.rebuild_sampler(api, batcher=bk.Chunked(2), packages=packages)


def is_chunked(fun: Any, *args: Any) -> bool:
    text = str(jax.make_jaxpr(fun)(*args))
    return "scan[" in text and "length=2\n" in text


def assert_reached(module: Any, name: str = "run", *args: Any) -> None:
    original = getattr(module, name)
    args = args or (ROWS,)
    copy = rebuild(original)
    assert not is_chunked(original, *args)
    assert is_chunked(copy, *args)
    np.testing.assert_allclose(copy(*args), original(*args), rtol=1e-6)


SPELLINGS = {
    "attribute": """
        import jax
        def run(x): return jax.vmap(lambda r: r.sum())(x)
        """,
    "renamed module": """
        import jax as j
        def run(x): return j.vmap(lambda r: r.sum())(x)
        """,
    "from import": """
        from jax import vmap
        def run(x): return vmap(lambda r: r.sum())(x)
        """,
    "renamed": """
        from jax import vmap as batch
        def run(x): return batch(lambda r: r.sum())(x)
        """,
    "import in the function": """
        def run(x):
            import jax
            return jax.vmap(lambda r: r.sum())(x)
        """,
    "from import in the function": """
        def run(x):
            from jax import vmap
            return vmap(lambda r: r.sum())(x)
        """,
    "decorator inside": """
        import jax
        def run(x):
            @jax.vmap
            def total(r): return r.sum()
            return total(x)
        """,
    "decorator with arguments": """
        import functools, jax
        def run(x):
            @functools.partial(jax.vmap, in_axes=(0, None))
            def total(r, y): return (r * y).sum()
            return total(x, 2.0)
        """,
    "decorator of a module's function": """
        import jax
        @jax.vmap
        def total(r): return r.sum()
        def run(x): return total(x)
        """,
    "already mapped": """
        import jax, jax.numpy as jnp
        total = jax.vmap(jnp.sum)
        def run(x): return total(x)
        """,
    "already mapped over axis 1": """
        import jax, jax.numpy as jnp
        total = jax.vmap(jnp.sum, in_axes=1)
        def run(x): return total(x.T)
        """,
    "default": """
        import jax
        def run(x, batch=jax.vmap): return batch(lambda r: r.sum())(x)
        """,
    "keyword default": """
        import jax
        def run(x, *, batch=jax.vmap): return batch(lambda r: r.sum())(x)
        """,
    "default function": """
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x, inner=inner): return inner(x)
        """,
    "partial": """
        import functools, jax
        def inner(scale, x): return jax.vmap(lambda r: scale * r.sum())(x)
        run = functools.partial(inner, 2.0)
        """,
    "partial of vmap": """
        import functools, jax
        batch = functools.partial(jax.vmap, in_axes=0)
        def run(x): return batch(lambda r: r.sum())(x)
        """,
    "closure": """
        import jax
        def make():
            def inner(x): return jax.vmap(lambda r: r.sum())(x)
            def run(x): return inner(x)
            return run
        run = make()
        """,
    "closure over vmap": """
        import jax
        def make(batch):
            return lambda x: batch(lambda r: r.sum())(x)
        run = make(jax.vmap)
        """,
    "registry": """
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        REGISTRY = {"inner": [inner]}
        def run(x): return REGISTRY["inner"][0](x)
        """,
    "registry filled by a decorator": """
        import jax
        REGISTRY = {}
        def register(f):
            REGISTRY[f.__name__] = f
            return f
        @register
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return REGISTRY["inner"](x)
        """,
    "registry of vmaps": """
        import jax
        BATCH = {"vmap": jax.vmap}
        def run(x): return BATCH["vmap"](lambda r: r.sum())(x)
        """,
    "named tuple": """
        import typing, jax
        class Pair(typing.NamedTuple):
            init: typing.Any
            step: typing.Any
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        PAIR = Pair(inner, None)
        def run(x): return PAIR.init(x)
        """,
    "dataclass instance": """
        import dataclasses, typing, jax
        @dataclasses.dataclass(frozen=True)
        class Api:
            init: typing.Any
            def __call__(self, x): return self.init(x)
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        API = Api(inner)
        def run(x): return API(x)
        """,
    "instance with slots": """
        import jax
        class Api:
            __slots__ = ("init",)
            def __init__(self, init): self.init = init
        API = Api(lambda x: jax.vmap(lambda r: r.sum())(x))
        def run(x): return API.init(x)
        """,
    "wraps": """
        import functools, jax
        def logged(f):
            @functools.wraps(f)
            def inner(*args, scale=2): return scale * f(*args)
            return inner
        @logged
        def run(x): return jax.vmap(lambda r: r.sum())(x)
        """,
    "somebody else's decorator": """
        import jax
        @jax.checkpoint
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return inner(x).sum()
        """,
    "somebody else's nested decorators": """
        import jax
        @jax.named_call
        @jax.checkpoint
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return inner(x)
        """,
    "gradient": """
        import jax
        gradient = jax.grad(lambda x: jax.vmap(lambda r: r.sum())(x).sum())
        def run(x): return gradient(x)
        """,
    "somebody else's decorator without wraps": """
        import contextlib, jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        inner = jax.tree_util.Partial(inner)
        def run(x): return inner(x)
        """,
    "read-only registry": """
        import types, jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        REGISTRY = types.MappingProxyType({"inner": inner})
        def run(x): return REGISTRY["inner"](x)
        """,
    "simple namespace": """
        import types, jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        NAMES = types.SimpleNamespace(inner=inner)
        def run(x): return NAMES.inner(x)
        """,
    "queue": """
        import collections, jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        QUEUE = collections.deque([inner])
        def run(x): return QUEUE[0](x)
        """,
    "set": """
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        ALL = {inner}
        def run(x): return next(iter(ALL))(x)
        """,
    "cache of a partial": """
        import functools, jax
        def build(scale): return lambda x: jax.vmap(lambda r: scale * r.sum())(x)
        make = functools.lru_cache(functools.partial(build, 2.0))
        def run(x): return make()(x)
        """,
    "cache": """
        import functools, jax
        @functools.lru_cache
        def make(): return lambda x: jax.vmap(lambda r: r.sum())(x)
        def run(x): return make()(x)
        """,
    "generator": """
        import jax
        def parts(x): yield jax.vmap(lambda r: r.sum())(x)
        def run(x): return next(parts(x))
        """,
    "context manager": """
        import contextlib, jax
        @contextlib.contextmanager
        def batching(): yield lambda x: jax.vmap(lambda r: r.sum())(x)
        def run(x):
            with batching() as batch: return batch(x)
        """,
    "nested vmaps": """
        import jax
        def run(x): return jax.vmap(jax.vmap(lambda r: 2 * r))(x).sum()
        """,
    "recursion": """
        import jax
        def even(x, n): return odd(x, n - 1)
        def odd(x, n): return inner(x) if n < 2 else even(x, n - 1)
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return even(x, 6)
        """,
    "defined later": """
        import jax
        def run(x): return later(x)
        def later(x): return jax.vmap(lambda r: r.sum())(x)
        """,
    "names looked up at run time": """
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return globals()["in" + "ner"](x)
        """,
    "method of an instance's class": """
        import jax
        class Thing:
            def __init__(self, f): self.f = f
            def go(self, x): return self.f(x)
        thing = Thing(lambda x: jax.vmap(lambda r: r.sum())(x))
        def run(x): return thing.go(x)
        """,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_reached(spelling, make_package):
    assert_reached(make_package(init=SPELLINGS[spelling]))


def test_modules_that_import_each_other(make_package):
    module = make_package(
        init="",
        first="""
        import jax
        import toy.second as second
        def run(x): return second.inner(x)
        def total(x): return jax.vmap(lambda r: r.sum())(x)
        """,
        second="""
        import toy.first
        from . import first
        def inner(x): return toy.first.total(x) + first.total(x)
        """,
    )
    assert_reached(module.first)
    whole = rebuild(module)
    assert is_chunked(whole.first.run, ROWS)


def test_a_module_rebuilt_while_it_is_half_filled(make_package):
    module = make_package(
        init="""
        import batchkit as bk, jax
        def original(x): return later(x)
        run = bk.rebuild_sampler(original, batcher=bk.Chunked(2), packages=("toy",))
        def later(x): return jax.vmap(lambda r: r.sum())(x)
        """
    )
    assert is_chunked(module.run, ROWS)


def test_relative_imports_inside_functions(make_package):
    module = make_package(
        init="""
        def run(x):
            from .inner import total
            from . import inner
            return total(x) + inner.total(x)
        """,
        inner="""
        import jax
        def total(x): return jax.vmap(lambda r: r.sum())(x)
        """,
    )
    assert_reached(module)


def test_closures_share_their_cells(make_package):
    module = make_package(
        init="""
        import jax
        def make():
            count = 0
            def step(x):
                nonlocal count
                count += 1
                return jax.vmap(lambda r: r.sum())(x)
            def read(): return count
            return step, read
        pair = make()
        """
    )
    step, read = rebuild(module.pair)
    step(ROWS)
    assert read() == 1
    assert module.pair[1]() == 0  # the original's state is its own


def test_module_state_of_the_copy_is_its_own(make_package):
    module = make_package(
        init="""
        import jax
        calls = 0
        def run(x):
            global calls
            calls += 1
            return jax.vmap(lambda r: r.sum())(x)
        """
    )
    copy = rebuild(module.run)
    copy(ROWS)
    assert module.calls == 0
    assert copy.__wrapped__.__globals__["calls"] == 1


def test_copies_look_like_their_originals(make_package):
    module = make_package(
        init="""
        import functools, jax
        def run(x: float, *, scale: int = 2) -> float:
            "Sums."
            return scale * jax.vmap(lambda r: r.sum())(x)
        run.colour = "red"
        def make():
            def inner(x): return x
            return inner
        inner = make()
        def around(f):
            @functools.wraps(f)
            def other(x): return f(x)
            return other
        wrapped = around(run)
        """
    )
    assert rebuild(module.inner).__qualname__ == "make.<locals>.inner"
    assert rebuild(module.wrapped).__qualname__ == "run"
    copy = rebuild(module.run)
    assert copy.__doc__ == "Sums."
    assert copy.__annotations__ == module.run.__annotations__
    assert (copy.__module__, copy.__qualname__) == ("toy", "run")
    assert copy.colour == "red"
    assert copy.__wrapped__.__kwdefaults__ == {"scale": 2}


def test_classes_are_shared(make_package):
    module = make_package(
        init="""
        import typing, jax
        class State(typing.NamedTuple):
            total: typing.Any
        def run(x): return State(jax.vmap(lambda r: r.sum())(x))
        """
    )
    assert type(rebuild(module.run)(ROWS)) is module.State


def test_containers_without_package_code_stay_the_same_object(make_package):
    module = make_package(
        init="""
        import jax
        LIMITS = {"low": [0.0]}
        def limits(): return LIMITS
        """
    )
    assert rebuild(module.limits)() is module.LIMITS


def test_a_container_that_holds_itself(make_package):
    module = make_package(
        init="""
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        REGISTRY = {"inner": inner}
        REGISTRY["self"] = REGISTRY
        def run(x): return REGISTRY["self"]["self"]["inner"](x)
        """
    )
    assert_reached(module)


def test_packages_that_are_not_named_stay(make_package):
    module = make_package(
        init="""
        import jax
        def run(x): return jax.vmap(lambda r: r.sum())(x)
        """
    )

    def users(x: Any) -> Any:
        return module.run(x)

    with pytest.raises(ValueError, match="nothing to rebuild"):
        rebuild(users)
    with pytest.raises(ValueError, match="nothing to rebuild"):
        rebuild(module.run, packages=("blackjax", "to"))


def test_arguments_that_hold_package_functions_are_rebuilt(make_package):
    module = make_package(
        init="""
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x, inner): return inner(x)
        def make(inner): return lambda x: inner(x)
        def late(): return lambda x, inner: inner(x)
        """
    )
    run = rebuild(module.run)
    assert is_chunked(lambda x: run(x, module.inner), ROWS)
    assert is_chunked(lambda x: run(x, functools.partial(module.inner)), ROWS)
    assert is_chunked(lambda x: run(x, rebuild(module.inner)), ROWS)
    assert is_chunked(rebuild(module.make)(module.inner), ROWS)
    # Also what a rebuilt function returns takes them.
    late = rebuild(module.late)()
    assert is_chunked(lambda x: late(x, module.inner), ROWS)
    # A user's function stays, whatever it calls; and so does a user's own vmap.
    assert not is_chunked(lambda x: run(x, lambda y: module.inner(y)), ROWS)
    mapped = jax.vmap(lambda r: r.sum())
    assert not is_chunked(lambda x: run(x, mapped), ROWS)


def test_the_users_vmap_stays_in_whatever_they_hand_in(make_package):
    module = make_package(
        init="""
        import jax
        def inner(r): return r.sum()
        def run(x, f): return jax.vmap(lambda r: r.sum())(x) + f(x)
        def only(x, f): return f(x)
        def make(f): return lambda x: f(x)
        """
    )

    def total(x: Any, batch: Any) -> Any:
        return batch(lambda r: r.sum())(x)

    only = rebuild(module.only)
    users = functools.partial(total, batch=jax.vmap)
    assert not is_chunked(lambda x: only(x, users), ROWS)
    assert not is_chunked(rebuild(module.make(users)), ROWS)
    assert not is_chunked(rebuild(functools.partial(module.only, f=users)), ROWS)
    mapped = jax.vmap(module.inner)
    assert not is_chunked(lambda x: only(x, functools.partial(mapped)), ROWS)
    assert is_chunked(lambda x: rebuild(module.run)(x, users), ROWS)
    # In the closure of something built, a mapped function is the user's unless the
    # package wrote it.
    assert not is_chunked(rebuild(module.make(jax.vmap(lambda r: r.sum()))), ROWS)
    assert is_chunked(rebuild(module.make(jax.vmap(module.inner))), ROWS)


def test_a_wrapper_around_something_rebuilt_is_itself(make_package):
    # functools.wraps and JAX's transformations copy the attributes of what they wrap.
    module = make_package(
        init="""
        import jax
        def total(x): return jax.vmap(lambda r: (r**2).sum())(x).sum()
        def apply(f, x): return f(x)
        def build(): return jax.grad(lambda x: total(x))
        """
    )
    apply, total = rebuild(module.apply), rebuild(module.total)
    np.testing.assert_array_equal(apply(jax.grad(total), ROWS), 2 * ROWS)

    @functools.wraps(total)
    def doubled(x: Any) -> Any:
        return 2 * total(x)

    assert apply(doubled, ROWS) == 2 * module.total(ROWS)
    np.testing.assert_array_equal(rebuild(rebuild(module.build)())(ROWS), 2 * ROWS)


def test_arguments_are_neither_kept_nor_stale(make_package):
    module = make_package(
        init="""
        import jax
        def first(r): return r.sum()
        def second(r): return -r.sum()
        def run(x, functions): return jax.vmap(functions["f"])(x)
        """
    )
    run = rebuild(module.run)
    functions = {"f": module.first}
    assert run(ROWS, functions)[1] == 5.0
    functions["f"] = module.second
    assert run(ROWS, functions)[1] == -5.0

    class Data:
        pass

    data = Data()
    alive = weakref.ref(data)
    given = {"f": functools.partial(lambda d, r: module.first(r), data)}
    run(ROWS, {**given, "other": module.first})
    del data, given
    gc.collect()
    assert alive() is None


def test_functions_made_at_run_time_are_forgotten_with_their_user(make_package):
    module = make_package(
        init="""
        import jax
        def make(f): return lambda x: jax.vmap(f)(x)
        def run(x, f): return f(x)
        """
    )
    run = rebuild(module.run)
    users = lambda r: r.sum()
    alive = weakref.ref(users)
    run(ROWS, module.make(users))
    jax.clear_caches()
    del users
    gc.collect()
    assert alive() is None


def test_what_failed_to_be_copied_leaves_nothing_behind(make_package):
    module = make_package(
        init="""
        import jax
        @jax.jit
        def jitted(x): return jax.vmap(lambda r: r.sum())(x)
        def bad(x): return jitted(x)
        def good(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x, f): return f(x)
        """
    )
    run = rebuild(module.run)
    for _ in range(2):
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
            run(ROWS, module.bad)
    assert is_chunked(lambda x: run(x, module.good), ROWS)


def test_single_dispatch_has_a_cache_of_its_own(make_package):
    module = make_package(
        init="""
        import functools, jax
        @functools.singledispatch
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        @inner.register
        def _(x: list): return jax.vmap(lambda r: 2 * r.sum())(x[0])
        def run(x): return inner(x)
        """
    )
    copy = rebuild(module.run)
    assert is_chunked(copy, ROWS)
    assert not is_chunked(module.run, ROWS)
    assert is_chunked(lambda x: copy([x]), ROWS)
    assert not is_chunked(lambda x: module.run([x]), ROWS)


def test_recursive_wrappers_end(make_package):
    module = make_package(
        init="""
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x, f): return f(x, 3)
        """
    )

    @functools.wraps(module.inner)
    def users(x: Any, n: int, *, step: int = 1) -> Any:
        return module.inner(x) if n == 0 else users(x, n - step)

    np.testing.assert_array_equal(rebuild(module.run)(ROWS, users), module.inner(ROWS))


def test_assignment_to_a_module_is_seen_by_its_functions(make_package):
    module = make_package(
        init="""
        import jax
        import toy.state as state
        def run(x):
            state.value = 5
            return jax.vmap(lambda r: r.sum())(x) + state.read()
        """,
        state="""
        value = 0
        def read(): return value
        """,
    )
    assert rebuild(module.run)(ROWS)[0] == 6.0
    assert module.state.value == 0


def test_rebuilt_modules_and_apis_have_one_function_for_a_name(make_package):
    module = make_package(
        init="""
        import jax
        def run(x): return jax.vmap(lambda r: r.sum())(x)
        """
    )
    whole = rebuild(module)
    assert whole.run is whole.run


def test_every_argument_of_vmap_gets_to_the_batcher(make_package):
    module = make_package(
        init="""
        import jax
        def named(x):
            return jax.vmap(lambda r: jax.lax.psum(r, "i"), axis_name="i")(x)
        def sized(): return jax.vmap(lambda: 1.0, axis_size=4)()
        def spread(x): return jax.vmap(lambda r: r, spmd_axis_name="i")(x)
        named_before = jax.vmap(lambda r: jax.lax.psum(r, "i"), axis_name="i")
        plain_before = jax.vmap(lambda r: r, 0, 1)
        """
    )
    sequential = functools.partial(bk.rebuild_sampler, batcher=bk.Sequential())
    for name in ("named", "named_before"):
        with pytest.raises(ValueError, match="axis_name='i'"):
            sequential(getattr(module, name), packages=("toy",))(ROWS)
    assert sequential(module.sized, packages=("toy",))().shape == (4,)
    with pytest.raises(ValueError, match="spmd_axis_name='i'"):
        sequential(module.spread, packages=("toy",))(ROWS)
    plain = sequential(module.plain_before, packages=("toy",))
    np.testing.assert_array_equal(plain(ROWS), ROWS.T)


def test_threads_share_a_rebuilt_function(make_package):
    module = make_package(
        init="""
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x):
            from toy import inner
            return inner(x)
        """
    )
    copy = rebuild(module.run)
    with ThreadPoolExecutor(4) as pool:
        traced = list(pool.map(lambda _: is_chunked(copy, ROWS), range(16)))
    assert all(traced)


UNREACHABLE = {
    "jitted and mapped function": (
        """
        import jax
        inner = jax.jit(jax.vmap(lambda r: r.sum()))
        def run(x): return inner(x)
        """,
        "toy:<lambda>, line 3",
    ),
    "jitted partial": (
        """
        import functools, jax
        def deep(x, scale): return jax.vmap(lambda r: scale * r.sum())(x)
        inner = jax.jit(functools.partial(deep, scale=2.0))
        def run(x): return inner(x)
        """,
        "toy:deep, line 3",
    ),
    "jitted gradient": (
        """
        import jax
        def deep(x): return jax.vmap(lambda r: r.sum())(x).sum()
        inner = jax.jit(jax.grad(deep))
        def run(x): return inner(x)
        """,
        "toy:deep, line 3",
    ),
    "equinox's jit": (
        """
        import equinox as eqx, jax
        def deep(x): return jax.vmap(lambda r: r.sum())(x)
        inner = eqx.filter_jit(deep)
        def run(x): return inner(x)
        """,
        "toy:deep, line 3",
    ),
    "somebody else's object": (
        """
        import argparse, jax
        def deep(x): return jax.vmap(lambda r: r.sum())(x)
        options = argparse.Namespace(f=deep)
        def run(x): return options.f(x)
        """,
        "toy:deep, line 3",
    ),
    "attribute of a module": (
        """
        import jax
        import toy.sub
        def run(x): return toy.sub.go(x)
        """,
        "toy.sub:go, line 4",
    ),
    "jitted function": (
        """
        import jax
        @jax.jit
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return inner(x)
        """,
        "toy:inner, line 4",
    ),
    "function called by a jitted function": (
        """
        import jax
        def deep(x): return jax.vmap(lambda r: r.sum())(x)
        inner = jax.jit(lambda x: deep(x))
        def run(x): return inner(x)
        """,
        "toy:deep, line 3",
    ),
    "method of a class": (
        """
        import jax
        class Thing:
            def go(self, x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return Thing().go(x)
        """,
        "toy:Thing.go, line 4",
    ),
    "bound method": (
        """
        import jax
        class Thing:
            def go(self, x): return jax.vmap(lambda r: r.sum())(x)
        run = Thing().go
        """,
        "toy:Thing.go, line 4",
    ),
    "method of an inherited class": (
        """
        import jax
        class Base:
            @property
            def go(self): return lambda x: jax.vmap(lambda r: r.sum())(x)
        class Thing(Base): pass
        thing = Thing()
        def run(x): return thing.go(x)
        """,
        "toy:Base.go.<locals>.<lambda>, line 5",
    ),
    "setter of a property": (
        """
        import jax
        class Thing:
            @property
            def go(self): return None
            @go.setter
            def go(self, x): self.total = jax.vmap(lambda r: r.sum())(x)
        def run(x):
            thing = Thing()
            thing.go = x
            return thing.total
        """,
        "toy:Thing.go, line 7",
    ),
    "custom derivative": (
        """
        import jax
        @jax.custom_jvp
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return inner(x)
        """,
        "toy:inner, line 4",
    ),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_what_cannot_be_reached_is_named(case, make_package):
    source, place = UNREACHABLE[case]
    sub = """
        import jax
        @jax.jit
        def go(x): return jax.vmap(lambda r: r.sum())(x)
        """
    module = make_package(init=source, sub=sub)
    with pytest.raises(bk.UnreachableSiteError) as caught:
        rebuild(module.run)
    assert place in str(caught.value)


def test_what_cannot_be_reached_is_named_when_handed_in(make_package):
    module = make_package(
        init="""
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x, inner): return inner(x)
        """
    )
    with pytest.raises(bk.UnreachableSiteError, match="toy:inner"):
        rebuild(module.run)(ROWS, jax.jit(module.inner))


def test_jitted_functions_without_a_vmap_are_fine(make_package):
    module = make_package(
        init="""
        import jax
        @jax.jit
        def inner(x): return x.sum()
        def run(x): return jax.vmap(inner)(x)
        """
    )
    assert_reached(module)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"batcher": jax.vmap}, TypeError, "must be a batcher"),
        ({"batcher": 16}, TypeError, "must be a batcher"),
        ({"packages": "blackjax"}, TypeError, "tuple of names"),
        ({"packages": (1,)}, TypeError, "tuple of names"),
        ({"packages": ()}, ValueError, "nothing to rebuild"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_wrong_arguments_are_named(arguments, error, match):
    import blackjax

    arguments = {"batcher": bk.Vmap(), **arguments}
    with pytest.raises(error, match=match):
        bk.rebuild_sampler(blackjax.nss, **arguments)


@pytest.mark.parametrize("api", [None, 3, "nss", jnp.sum, lambda x: x, int])
def test_nothing_to_rebuild_is_an_error(api):
    with pytest.raises(ValueError, match="nothing to rebuild"):
        bk.rebuild_sampler(api, batcher=bk.Vmap())
