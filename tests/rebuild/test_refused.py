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


ROWS = jnp.arange(8.0).reshape(4, 2)
TOTAL = "def inner(x): return jax.vmap(lambda r: r.sum())(x)\n"

# A source with a function `run`, the holder that the message names, and the site if it
# is not in `inner`.
SHARED: dict[str, tuple[str, ...]] = {
    "jitted function": (
        "inner = jax.jit(inner)\ndef run(x): return inner(x)",
        "PjitFunction of inner",
    ),
    "function called by a jitted function": (
        "deep = jax.jit(lambda x: inner(x))\ndef run(x): return deep(x)",
        "PjitFunction of <lambda>",
    ),
    "jitted and mapped function": (
        "deep = jax.jit(jax.vmap(lambda r: r.sum()))\ndef run(x): return deep(x)",
        "of <lambda>",
        "toy:<lambda>, line 3",
    ),
    "equinox's jit": (
        "import equinox as eqx\n"
        "deep = eqx.filter_jit(inner)\ndef run(x): return deep(x)",
        "of inner",
    ),
    "custom derivative": (
        "deep = jax.custom_jvp(inner)\ndeep.defjvps(lambda t, y, x: t.sum(1))\n"
        "def run(x): return deep(x)",
        "custom_jvp of inner",
    ),
    "attribute of a module": (
        "import toy.sub\ndef run(x): return toy.sub.go(x)",
        "PjitFunction of go",
        "toy.sub:go, line 3",
    ),
    "decorator of a module's function": (
        "@jax.vmap\ndef total(r): return r.sum()\ndef run(x): return total(x)",
        "result of jax.vmap of total",
        "@jax.vmap in toy:total, line 3",
    ),
    "mapped and handed to something built": (
        "def make(f): return lambda x: f(x)\nrun = make(jax.vmap(lambda r: r.sum()))",
        "result of jax.vmap of <lambda>",
        "@jax.vmap in toy:<lambda>, line 4",
    ),
    "method": (
        "class Thing:\n    def go(self, x): return inner(x)\n"
        "def run(x): return Thing().go(x)",
        "class toy.Thing",
    ),
    "bound method": (
        "class Thing:\n    def go(self, x): return jax.vmap(lambda r: r.sum())(x)\n"
        "run = Thing().go",
        "class toy.Thing",
        "toy:Thing.go, line 4",
    ),
    "inherited property": (
        "class Base:\n    @property\n    def go(self): return inner\n"
        "class Thing(Base): pass\nthing = Thing()\ndef run(x): return thing.go(x)",
        "class toy.Thing",
    ),
    "default of a field": (
        "import typing\nclass Pair(typing.NamedTuple):\n    f: typing.Any = inner\n"
        "def run(x): return Pair().f(x)",
        "class toy.Pair",
    ),
    "member of an enumeration": (
        "import enum\nclass Kind(enum.Enum): A = (inner,)\n"
        "def run(x): return Kind.A.value[0](x)",
        "class toy.Kind",
    ),
    "a foreign object": (
        "import argparse\noptions = argparse.Namespace(f=inner)\n"
        "def run(x): return options.f(x)",
        "Namespace",
    ),
    "instance with slots": (
        "class Api:\n    __slots__ = ('f',)\n    def __init__(self, f): self.f = f\n"
        "api = Api(inner)\ndef run(x): return api.f(x)",
        "The Api",
    ),
    "instance that makes itself": (
        "class Api:\n    def __new__(cls, f): return super().__new__(cls)\n"
        "    def __init__(self, f): self.f = f\n"
        "api = Api(inner)\ndef run(x): return api.f(x)",
        "The Api",
    ),
    "read-only dictionary": (
        "import types\ntable = types.MappingProxyType({'f': inner})\n"
        "def run(x): return table['f'](x)",
        "mappingproxy",
    ),
    "deque": (
        "import collections\ntable = collections.deque([inner])\n"
        "def run(x): return table[0](x)",
        "deque",
    ),
    "set": (
        "table = {inner}\ndef run(x): return next(iter(table))(x)",
        "The set",
    ),
    "cache": (
        "@functools.cache\ndef make(): return lambda x: inner(x)\n"
        "def run(x): return make()(x)",
        "_lru_cache_wrapper of make",
    ),
    "dispatch on types": (
        "inner = functools.singledispatch(inner)\ndef run(x): return inner(x)",
        "function of inner",
    ),
}
every_form = pytest.mark.parametrize("form", SHARED)

# What raises whatever the policy says: the code itself cannot be followed.
NOT_COPIED: dict[str, tuple[str, str]] = {
    "dictionary that contains itself": (
        "table = {'f': inner}\ntable['self'] = table\n"
        "def run(x): return table['self']['f'](x)",
        "A dict .* contains itself",
    ),
    "instance with its own method": (
        "class Api:\n    def __init__(self, f): self.f, self.go = f, self._go\n"
        "    def _go(self, x): return self.f(x)\n"
        "api = Api(inner)\ndef run(x): return api.go(x)",
        "contains itself",
    ),
    "globals": ("def run(x): return globals()['in' + 'ner'](x)", "calls `globals`"),
    "evaluated text": ("def run(x): return eval('inner')(x)", "calls `eval`"),
    "nonlocal": (
        "def make():\n    count = 0\n    def run(x):\n        nonlocal count\n"
        "        count += 1\n        return inner(x)\n    return run\nrun = make()",
        r"toy\.make\.<locals>\.run assigns count .*`nonlocal`",
    ),
    "nonlocal in a function inside": (
        "def make():\n    count = 0\n    def run(x):\n        def add():\n"
        "            nonlocal count\n            count += 1\n        add()\n"
        "        return inner(x)\n    return run\nrun = make()",
        "assigns count",
    ),
}


def source(text: str) -> dict[str, str]:
    sub = "import jax\n@jax.jit\n" + TOTAL.replace("inner", "go")
    return {"init": f"import jax, functools\n{TOTAL}{text}\n", "sub": sub}


def rebuild(api: Any, batcher: Any) -> Any:
    return bk.rebuild_sampler(api, batcher, packages=("toy",))


def scans(fun: Any) -> int:
    return str(jax.make_jaxpr(fun)(ROWS)).count("scan[")


@every_form
def test_shared_vmap_is_refused_by_name(form, make_package):
    text, holder, *places = SHARED[form]
    place = places[0] if places else "jax.vmap in toy:inner, line 2"
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
        give = make_package_of_one(module)
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


def make_package_of_one(module: Any) -> Any:
    """A rebuilt function of `module` that calls its argument."""
    exec("def give(x, f): return f(x)", vars(module))
    return rebuild(module.give, bk.Chunked(2))


@pytest.mark.parametrize("form", NOT_COPIED)
def test_code_that_cannot_be_followed_is_refused(form, make_package):
    text, match = NOT_COPIED[form]
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
    class Thing:
        def method(self, x): return jax.vmap(lambda r: r.sum())(x)
    def total(x): return jax.vmap(lambda r: r.prod())(x)
    def by_function(x): return jitted(x) + total(x)
    def by_class(x): return Thing().method(x) + total(x)
    def both(x): return by_function(x) + by_class(x)
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
    bk.BySite({"toy:jitted": bk.Sequential()}),
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
    module = make_package(init=HIDDEN)
    for policy in WANTED:
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
            rebuild(module.by_function, policy)
    for policy in LEFT:
        assert scans(rebuild(module.by_function, policy)) == 1
    assert rebuild(module.jitted, bk.Vmap()) is module.jitted


def test_advice_names_each_shared_vmap_in_turn(make_package):
    module = make_package(init=HIDDEN)
    left: dict[str, bk.AbstractBatcher] = {}
    for _ in range(2):
        with pytest.raises(bk.UnreachableSiteError) as caught:
            rebuild(module.both, bk.BySite(left, default=bk.Chunked(2)))
        left[caught.value.site.name] = bk.Vmap()
    assert left.keys() == {"toy:jitted", "toy:Thing.method"}
    assert scans(rebuild(module.both, bk.BySite(left, default=bk.Chunked(2)))) == 2


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


def test_refused_argument_leaves_nothing_behind(make_package):
    module = make_package(init=f"{HIDDEN}def run(x, f): return f(x)\n")
    run = rebuild(module.run, bk.Chunked(2))
    for _ in range(2):
        with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
            run(ROWS, module.by_function)
    assert scans(lambda x: run(x, module.total)) == 1
    left = rebuild(module.run, LeaveHidden())
    assert scans(lambda x: left(x, module.by_function)) == 1


def test_rebuilt_module_refuses_the_names_that_are_read(make_package):
    module = make_package(init=HIDDEN)
    whole = rebuild(module, bk.Chunked(2))
    with pytest.raises(bk.UnreachableSiteError, match="toy:jitted"):
        _ = whole.jitted
    with pytest.raises(bk.UnreachableSiteError, match="toy:jitted"):
        _ = whole.by_function
    assert scans(whole.total) == 1


def test_import_inside_a_function_is_refused_while_tracing(make_package):
    module = make_package(
        init="def run(x):\n    from toy.sub import go\n    return go(x)\n",
        sub=source("")["sub"],
    )
    copy = rebuild(module.run, bk.Chunked(2))
    with pytest.raises(bk.UnreachableSiteError, match=r"toy\.sub:go"):
        jax.make_jaxpr(copy)(ROWS)
