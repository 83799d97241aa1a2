"""Copies share nothing with their originals but classes, data and users' functions.

`Chunked(2)` over four rows shows up in the jaxpr as a scan of length 2, which the
original does not have.
"""

import functools
import gc
import weakref
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


def test_modules_that_import_each_other_are_rebuilt(make_package):
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


def test_containers_without_package_code_stay_the_same_object(make_package):
    module = make_package(
        init="""
        import jax
        LIMITS = {"low": [0.0]}
        def limits(): return LIMITS
        """
    )
    assert rebuild(module.limits)() is module.LIMITS


def test_functions_of_other_packages_are_not_rebuilt(make_package):
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


def test_wrapper_around_a_rebuilt_function_still_wraps(make_package):
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
    functions = {"f": functools.partial(lambda d, r: module.first(r), data)}
    run(ROWS, {**functions, "other": module.first})
    del data, functions
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


def test_wrapper_that_calls_itself_is_copied_once(make_package):
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


def test_batcher_gets_every_argument_of_vmap(make_package):
    module = make_package(
        init="""
        import jax
        def named(x):
            return jax.vmap(lambda r: jax.lax.psum(r, "i"), axis_name="i")(x)
        def sized(): return jax.vmap(lambda: 1.0, axis_size=4)()
        def spread(x): return jax.vmap(lambda r: r, spmd_axis_name="i")(x)
        def plain(x): return jax.vmap(lambda r: r, 0, 1)(x)
        def summed(x):
            return jax.vmap(lambda r: r.sum(), 0, None, None, 4, None, True)(x)
        """
    )
    sequential = functools.partial(bk.rebuild_sampler, batcher=bk.Sequential())
    with pytest.raises(ValueError, match="axis_name='i'"):
        sequential(module.named, packages=("toy",))(ROWS)
    assert sequential(module.sized, packages=("toy",))().shape == (4,)
    with pytest.raises(ValueError, match="spmd_axis_name='i'"):
        sequential(module.spread, packages=("toy",))(ROWS)
    plain = sequential(module.plain, packages=("toy",))
    np.testing.assert_array_equal(plain(ROWS), ROWS.T)
    summed = sequential(module.summed, packages=("toy",))
    assert summed(ROWS) == module.summed(ROWS) == ROWS.sum()
    assert is_chunked(rebuild(module.summed), ROWS)


def test_name_that_is_defined_after_rebuilding_is_found(make_package):
    module = make_package(
        init="""
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return later(x)
        """
    )
    run = rebuild(module.run)
    with pytest.raises(NameError, match="later"):
        run(ROWS)
    module.later = jax.jit(module.inner)
    for _ in range(2):
        with pytest.raises(bk.UnreachableSiteError, match="toy:inner"):
            run(ROWS)
    module.later = module.inner
    assert is_chunked(run, ROWS)


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
