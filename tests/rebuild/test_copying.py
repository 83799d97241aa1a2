"""Copies share nothing with their originals but classes, data and users' functions.

`Chunked(2)` over four rows shows up in the jaxpr as a scan of length 2, which the
original does not have.
"""

import functools
import gc
import weakref
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk


ROWS = jnp.arange(8.0).reshape(4, 2)

SOURCE = """
    import functools, jax
    LIMITS = {"low": [0.0]}
    def limits(): return LIMITS
    def inner(x): return jax.vmap(lambda r: r.sum())(x)
    def square(x): return jax.vmap(lambda r: (r**2).sum())(x).sum()
    def gradient(): return jax.grad(lambda x: square(x))
    def first(r): return r.sum()
    def second(r): return -r.sum()
    def apply(x, f): return f(x)
    def each(x, functions): return jax.vmap(functions["f"])(x)
    def make(f): return lambda x: f(x)
    def make_mapped(f): return lambda x: jax.vmap(f)(x)
    def make_apply(): return lambda x, f: f(x)

    def summed(x: float, *, scale: int = 2) -> float:
        "Sums."
        return scale * inner(x)
    summed.colour = "red"
    def around(f):
        @functools.wraps(f)
        def other(x): return f(x)
        return other
    wrapped = around(summed)
    made = make(summed)
    """


@pytest.fixture
def toy(make_package: Any) -> ModuleType:
    return make_package(init=SOURCE)


def rebuild(api: Any) -> Any:
    return bk.rebuild_sampler(api, batcher=bk.Chunked(2), packages=("toy",))


def is_chunked(fun: Any, *args: Any) -> bool:
    text = str(jax.make_jaxpr(fun)(*args))
    return "scan[" in text and "length=2\n" in text


def test_copies_look_like_their_originals(toy):
    copy = rebuild(toy.summed)
    assert copy.__doc__ == "Sums."
    assert copy.__annotations__ == toy.summed.__annotations__
    assert (copy.__module__, copy.__qualname__) == ("toy", "summed")
    assert copy.colour == "red"
    assert copy.__wrapped__.__kwdefaults__ == {"scale": 2}
    assert rebuild(toy.made).__qualname__ == "make.<locals>.<lambda>"
    assert rebuild(toy.wrapped).__qualname__ == "summed"


def test_containers_without_package_code_stay_the_same_object(toy):
    assert rebuild(toy.limits)() is toy.LIMITS


def test_arguments_that_hold_package_functions_are_rebuilt(toy):
    apply = rebuild(toy.apply)
    for f in (toy.inner, functools.partial(toy.inner), rebuild(toy.inner)):
        assert is_chunked(lambda x, f=f: apply(x, f), ROWS)
    assert is_chunked(rebuild(toy.make)(toy.inner), ROWS)
    # Also what a rebuilt function returns takes them.
    assert is_chunked(lambda x: rebuild(toy.make_apply)()(x, toy.inner), ROWS)
    # A user's function stays, whatever it calls; and so does a user's own vmap.
    for f in (lambda x: toy.inner(x), jax.vmap(lambda r: r.sum())):
        assert not is_chunked(lambda x, f=f: apply(x, f), ROWS)


def test_wrapper_around_a_rebuilt_function_still_wraps(toy):
    # functools.wraps and JAX's transformations copy the attributes of what they wrap.
    apply, square = rebuild(toy.apply), rebuild(toy.square)
    np.testing.assert_array_equal(apply(ROWS, jax.grad(square)), 2 * ROWS)
    gradient = rebuild(rebuild(toy.gradient)())
    np.testing.assert_array_equal(gradient(ROWS), 2 * ROWS)

    @functools.wraps(square)
    def doubled(x: Any) -> Any:
        return 2 * square(x)

    assert apply(ROWS, doubled) == 2 * toy.square(ROWS)


def test_wrapper_that_calls_itself_is_copied_once(toy):
    @functools.wraps(toy.inner)
    def users(x: Any, n: int = 3, *, step: int = 1) -> Any:
        return toy.inner(x) if n == 0 else users(x, n - step)

    copied = rebuild(toy.apply)(ROWS, users)
    np.testing.assert_array_equal(copied, toy.inner(ROWS))


def test_arguments_are_neither_kept_nor_stale(toy):
    each = rebuild(toy.each)
    functions = {"f": toy.first}
    assert each(ROWS, functions)[1] == 5.0
    functions["f"] = toy.second
    assert each(ROWS, functions)[1] == -5.0

    data = lambda r: r.sum()
    alive = weakref.ref(data)
    functions = {"f": functools.partial(lambda d, r: toy.first(r), data)}
    each(ROWS, {**functions, "other": toy.first})
    # Functions made at run time are forgotten with their user's as well.
    apply = rebuild(toy.apply)
    apply(ROWS, toy.make_mapped(data))
    jax.clear_caches()
    del data, functions
    gc.collect()
    assert alive() is None


def test_modules_that_import_each_other_are_rebuilt(make_package):
    module = make_package(
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
    assert not is_chunked(module.first.run, ROWS)
    for copy in (rebuild(module.first.run), rebuild(module).first.run):
        assert is_chunked(copy, ROWS)
        np.testing.assert_array_equal(copy(ROWS), module.first.run(ROWS))


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


def test_name_that_is_defined_after_rebuilding_is_found(toy):
    exec("def run(x): return later(x)", vars(toy))
    run = rebuild(toy.run)
    with pytest.raises(NameError, match="later"):
        run(ROWS)
    toy.later = jax.jit(toy.inner)  # pyright: ignore
    for _ in range(2):
        with pytest.raises(bk.UnreachableSiteError, match="toy:inner"):
            run(ROWS)
    toy.later = toy.inner  # pyright: ignore
    assert is_chunked(run, ROWS)


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
    new = bk.rebuild_sampler(module, batcher=bk.Sequential(), packages=("toy",))
    with pytest.raises(ValueError, match="axis_name='i'"):
        new.named(ROWS)
    assert new.sized().shape == (4,)
    with pytest.raises(ValueError, match="spmd_axis_name='i'"):
        new.spread(ROWS)
    np.testing.assert_array_equal(new.plain(ROWS), ROWS.T)
    assert new.summed(ROWS) == module.summed(ROWS) == ROWS.sum()
    assert is_chunked(rebuild(module.summed), ROWS)
