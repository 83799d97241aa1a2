"""Forms that are shared with the original, or cannot be followed, are refused by name.

No package that is tested has them, so they are not copied. A vmap behind one may be
left as it is by giving its site `Vmap()`.
"""

import functools
import re
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from .spellings import entries


ROWS = jnp.arange(8.0).reshape(4, 2)
TOTAL = "def inner(x): return jax.vmap(lambda r: r.sum())(x)\n"

# Sources with a function `run`, the holder that the message names, and the site if it
# is not in `inner`.
SHARED = entries("""
== jitted function == PjitFunction of inner
inner = jax.jit(inner)
def run(x): return inner(x)
== jitted and mapped function == of <lambda> == toy:<lambda>, line 3
deep = jax.jit(jax.vmap(lambda r: r.sum()))
def run(x): return deep(x)
== equinox's jit == of inner
import equinox as eqx
deep = eqx.filter_jit(inner)
def run(x): return deep(x)
== custom derivative == custom_jvp of inner
deep = jax.custom_jvp(inner)
deep.defjvps(lambda t, y, x: t.sum(1))
def run(x): return deep(x)
== container in a class == class toy.Thing
class Thing:
    _fields = {"total": inner}
def run(x): return Thing._fields["total"](x)
== attribute of a module == PjitFunction of go == toy.sub:go, line 3
import toy.sub
def run(x): return toy.sub.go(x)
== decorator in a module == result of jax.vmap of total == @jax.vmap in toy:total
@jax.vmap
def total(r): return r.sum()
def run(x): return total(x)
== mapped and built in == result of jax.vmap of <lambda> == toy:<lambda>, line 4
def make(f): return lambda x: f(x)
run = make(jax.vmap(lambda r: r.sum()))
== method == class toy.Thing
class Thing:
    def go(self, x): return inner(x)
def run(x): return Thing().go(x)
== bound method == class toy.Thing == toy:Thing.go, line 4
class Thing:
    def go(self, x): return jax.vmap(lambda r: r.sum())(x)
run = Thing().go
== instance with a function == class toy.Thing
class Thing:
    def __init__(self, f): self.f = f
    def __call__(self, x): return inner(x)
run = Thing(max)
== named tuple with a function == class toy.Thing
from typing import Any, NamedTuple
class Thing(NamedTuple):
    f: Any
    def __call__(self, x): return inner(x)
run = Thing(max)
== bound method of an instance with a function == class toy.Thing
class Thing:
    def __init__(self, f): self.f = f
    def go(self, x): return inner(x)
run = Thing(max).go
== inherited property == class toy.Thing
class Base:
    @property
    def go(self): return inner
class Thing(Base): pass
thing = Thing()
def run(x): return thing.go(x)
== default of a field == class toy.Pair
import typing
class Pair(typing.NamedTuple):
    f: typing.Any = inner
def run(x): return Pair().f(x)
== a foreign object == Namespace
import argparse
options = argparse.Namespace(f=inner)
def run(x): return options.f(x)
== instance with slots == The Api
class Api:
    __slots__ = ('f',)
    def __init__(self, f): self.f = f
api = Api(inner)
def run(x): return api.f(x)
== instance that makes itself == The Api
class Api:
    def __new__(cls, f): return super().__new__(cls)
    def __init__(self, f): self.f = f
api = Api(inner)
def run(x): return api.f(x)
== deque == deque
import collections
table = collections.deque([inner])
def run(x): return table[0](x)
== set == The set
table = {inner}
def run(x): return next(iter(table))(x)
== cache == _lru_cache_wrapper of make
@functools.cache
def make(): return lambda x: inner(x)
def run(x): return make()(x)
== dispatch on types == function of inner
inner = functools.singledispatch(inner)
def run(x): return inner(x)
""")
# What raises whatever the policy says: the code itself cannot be followed.
NOT_COPIED = entries(r"""
== dictionary that contains itself == A dict .* contains itself
table = {'f': inner}
table['self'] = table
def run(x): return table['self']['f'](x)
== instance with its own method == contains itself
class Api:
    def __init__(self, f): self.f, self.go = f, self._go
    def _go(self, x): return self.f(x)
api = Api(inner)
def run(x): return api.go(x)
== globals == calls `globals`
def run(x): return globals()['in' + 'ner'](x)
== evaluated text == calls `eval`
def run(x): return eval('inner')(x)
== nonlocal == toy\.make\.<locals>\.run assigns count .*`nonlocal`
def make():
    count = 0
    def run(x):
        nonlocal count
        count += 1
        return inner(x)
    return run
run = make()
== nonlocal in a function inside == assigns count
def make():
    count = 0
    def run(x):
        def add():
            nonlocal count
            count += 1
        add()
        return inner(x)
    return run
run = make()
""")


def source(text: str) -> dict[str, str]:
    sub = "import jax\n@jax.jit\n" + TOTAL.replace("inner", "go")
    return {"init": f"import jax, functools\n{TOTAL}{text}\n", "sub": sub}


def rebuild(api: Any, batcher: Any) -> Any:
    return bk.rebuild_sampler(api, batcher, packages=("toy",))


def scans(fun: Any) -> int:
    return str(jax.make_jaxpr(fun)(ROWS)).count("scan[")


def test_derivative_of_a_function_of_jax_is_read(make_package):
    text = """
deep = jax.custom_vjp(jax.lax.lgamma)
deep.defvjp(lambda x: (deep(x), x), lambda x, t: (inner(x)[:, None] * t,))
def run(x): return deep(x).sum(1)
"""
    with pytest.raises(bk.UnreachableSiteError, match="custom_vjp of lgamma"):
        rebuild(make_package(**source(text)).run, bk.Chunked(2))


@pytest.mark.parametrize("entry", SHARED, ids=lambda entry: entry[0])
def test_shared_vmap_is_refused_by_name(entry, make_package):
    _, holder, *places, text = entry
    (place,) = places or ["jax.vmap in toy:inner, line 2"]
    module = make_package(**source(text))
    expected = module.run(ROWS)
    for api in (module.run, {"f": [module.run]}, functools.partial(module.run)):
        with pytest.raises(bk.UnreachableSiteError) as caught:
            rebuild(api, bk.Chunked(2))
        message = str(caught.value)
        assert place in message
        assert holder in message.split("holds a vmap")[0]
    assert str(caught.value.site) in map(str, bk.sites(module.run, packages=("toy",)))
    # It is what a user hands in as well, unless it is the user who has mapped it.
    if "jax.vmap" not in holder:
        exec("def give(x, f): return f(x)", vars(module))
        give = rebuild(module.give, bk.Chunked(2))
        with pytest.raises(bk.UnreachableSiteError):
            give(ROWS, getattr(module, "deep", module.run))
    # What the message advises leaves it alone.
    advice = re.search(r'BySite\(\{"(.*)": Vmap\(\)\}', message)
    assert advice is not None
    left = bk.BySite({advice.group(1): bk.Vmap()}, default=bk.Chunked(2))
    for policy in (left, bk.Vmap(), bk.ByPhase()):
        copy = rebuild(module.run, policy)
        assert scans(copy) == 0
        np.testing.assert_array_equal(copy(ROWS), expected)


@pytest.mark.parametrize(("_", "match", "text"), NOT_COPIED)
def test_code_that_cannot_be_followed_is_refused(_, match, text, make_package):
    module = make_package(**source(text))
    expected = module.run(ROWS)
    for batcher in (bk.Chunked(2), bk.Vmap()):
        with pytest.raises(ValueError, match=match):
            rebuild(module.run, batcher)
    np.testing.assert_array_equal(module.run(ROWS), expected)


def test_shared_objects_without_a_vmap_are_accepted(make_package):
    module = make_package(
        init="""
        import collections, functools, jax
        @jax.jit
        def inner(x): return x.sum()
        @functools.cache
        def cached(): return inner
        TABLE = collections.deque([inner])
        def run(x): return jax.vmap(lambda r: cached()(r) + TABLE[0](r))(x)
        """
    )
    copy = rebuild(module.run, bk.Chunked(2))
    assert scans(copy) == 1
    np.testing.assert_array_equal(copy(ROWS), module.run(ROWS))


HIDDEN = """
    import jax, typing
    @jax.jit
    def jitted(x): return jax.vmap(lambda r: r.sum())(x)
    def total(x): return jax.vmap(lambda r: r.prod())(x)
    def by_function(x): return jitted(x) + total(x)
    class Pair(typing.NamedTuple):
        init: typing.Any
        step: typing.Any
    pair = Pair(by_function, total)
    """


@final
class LeaveHidden(bk.AbstractPolicy):
    """A policy of a user's own."""

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        return bk.Chunked(2) if site.qualname == "total" else bk.Vmap()


WANTED: list[Any] = [
    bk.Chunked(100),
    bk.ByPhase(default=bk.Chunked(2)),
    {"default": bk.Chunked(2), "toy:total": bk.Vmap()},
    bk.BySite({"toy:jitted:4": bk.Sequential()}),
]
LEFT: list[Any] = [
    bk.BySite({"toy:jitted:4": bk.Vmap()}, default=bk.Chunked(2)),
    bk.BySite({"toy:jit*": bk.Vmap()}, default=bk.Chunked(2)),
    LeaveHidden(),
    {"default": bk.Chunked(2), "toy:jitted": bk.Vmap()},
    bk.BySite({"toy:total": bk.Chunked(2)}),
]


def test_policy_decides_whether_a_shared_vmap_is_an_error(make_package):
    module = make_package(init=f"{HIDDEN}def apply(x, f): return f(x)\n")
    for policy in WANTED:
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
            rebuild(module.by_function, policy)
    for policy in LEFT:
        assert scans(rebuild(module.by_function, policy)) == 1
    assert rebuild(module.jitted, bk.Vmap()) is module.jitted
    # Also where it is handed in later: a refused argument leaves nothing behind.
    apply = rebuild(module.apply, bk.Chunked(2))
    for _ in range(2):
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
            apply(ROWS, module.by_function)
    assert scans(lambda x: apply(x, module.total)) == 1
    left = rebuild(module.apply, LeaveHidden())
    assert scans(lambda x: left(x, module.by_function)) == 1


def test_phase_may_leave_what_the_other_never_reaches(make_package):
    pair = make_package(init=HIDDEN).pair
    for left in (
        bk.ByPhase(init=bk.Vmap(), step=bk.Chunked(2)),
        {"init": bk.Vmap(), "default": bk.Chunked(2)},
    ):
        copy = rebuild(pair, left)
        assert (scans(copy.init), scans(copy.step)) == (0, 1)
    for wanted in (
        bk.ByPhase(init=bk.Chunked(2), step=bk.Vmap()),
        {"step": bk.Vmap(), "default": bk.Chunked(2)},
    ):
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
            rebuild(pair, wanted)


def test_rebuilt_module_refuses_the_names_that_are_read(make_package):
    module = make_package(init=HIDDEN)
    whole = rebuild(module, bk.Chunked(2))
    for name in ("jitted", "by_function"):
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted"):
            getattr(whole, name)
    assert scans(whole.total) == 1


def test_import_inside_a_function_is_refused_while_tracing(make_package):
    module = make_package(
        init="def run(x):\n    from toy.sub import go\n    return go(x)\n",
        sub=source("")["sub"],
    )
    copy = rebuild(module.run, bk.Chunked(2))
    with pytest.raises(bk.UnreachableSiteError, match=r"toy\.sub:go"):
        jax.make_jaxpr(copy)(ROWS)
