"""A vmap is rebuilt in whatever ways it is reached, one after the other.

A way turns an expression for a function into another that is called like it. Every way
follows every other one, so a function may stand in a dictionary in the closure of a
wrapper. The batcher of these tests records the number of rows of each call.
"""

import functools
import sys
import types
from string import Template
from typing import Any, NamedTuple, final

import equinox as eqx
import numpy as np
import pytest

import batchkit as bk

from ..vmaps import snapshot


ROWS = np.arange(3)

# Another package, which is not rebuilt.
THEIRS = """
import functools
import jax

def give(f): return f
def wrapped(f):
    @functools.wraps(f)
    def inner(*args): return f(*args)
    return inner
def bare(f):
    def inner(*args): return f(*args)
    return inner
def add(x): return jax.vmap(lambda r: r + 1)(x)
def add_by(batch, x): return batch(lambda r: r + 1)(x)
def add_by_default(x, batch=jax.vmap): return add_by(batch, x)
def add_by_keyword_default(x, *, batch=jax.vmap): return add_by(batch, x)
class Adder:
    def __call__(self, x): return add(x)
    def go(self, x): return add(x)
"""

HEADER = """
import contextlib, dataclasses, functools, typing
import jax, theirs, toy.far
from toy.far import goal
def give(f): return f
"""


class Way(NamedTuple):
    """How the expression `$t` becomes `call`, with definitions above or below it."""

    call: str
    above: str = ""
    below: str = ""


# What comes out of these is the very object.
SAME = {
    "dictionary": Way('table$e["f"]', 'table$e = {"f": $t}'),
    "key of a dictionary": Way("next(iter(table$e))", "table$e = {$t: 0}"),
    "nested containers": Way('table$e["f"][0][0]', 'table$e = {"f": [($t,)]}'),
    "named tuple": Way(
        "pair$e.f",
        "class Pair$e(typing.NamedTuple):\n    f: typing.Any\npair$e = Pair$e($t)",
    ),
    "instance": Way(
        "holder$e.f",
        "@dataclasses.dataclass(frozen=True)\nclass Holder$e:\n    f: typing.Any\n"
        "holder$e = Holder$e($t)",
    ),
    "attribute of a function": Way("via$e.f", "def via$e(): pass\nvia$e.f = $t"),
    "result": Way("get$e()", "get$e = (lambda f: lambda: f)($t)"),
    "argument of a partial": Way("via$e()", "via$e = functools.partial(give, $t)"),
    "default": Way("get$e()", "def get$e(f=$t): return f"),
    "keyword default": Way("get$e()", "def get$e(*, f=[$t]): return f[0]"),
    "argument": Way("give($t)"),
    "nested class": Way(
        "get$e().g",
        "def get$e():\n    class Local: g = staticmethod($t)\n    return Local",
    ),
    "generator": Way("next(get$e())", "def get$e(): yield from (g for g in [$t])"),
    "table below": Way('table$e["f"]', below='table$e = {"f": $t}'),
}
WAYS = {
    **SAME,
    "closure": Way("via$e", "via$e = (lambda g: lambda x: g(x))($t)"),
    "partial": Way("via$e", "via$e = functools.partial($t)"),
    "partial with a keyword": Way(
        "via$e", "via$e = functools.partial(lambda x, g: g[0](x), g=($t,))"
    ),
    "their wrapper": Way("via$e", "via$e = theirs.wrapped($t)"),
    "nested function": Way(
        "via$e", "def via$e(x):\n    def g(): return $t(x)\n    return (lambda: g())()"
    ),
    "function below": Way("via$e", below="def via$e(x): return $t(x)"),
    "method": Way(
        "Made$e($t).go",
        "class Made$e:\n    def __init__(self, f): self.f = f\n"
        "    def go(self, x): return self.f(x)",
    ),
    "callable instance": Way(
        "call$e",
        "class Call$e:\n    def __init__(self, f): self.f = f\n"
        "    def __call__(self, x): return self.f(x)\ncall$e = Call$e($t)",
    ),
    "context manager": Way(
        "via$e",
        "@contextlib.contextmanager\ndef scope$e(): yield $t\n"
        "def via$e(x):\n    with scope$e() as g: return g(x)",
    ),
    "counter in a module": Way(
        "via$e",
        "count$e = 0\ndef via$e(x, g=$t):\n    global count$e\n    count$e += 1\n"
        "    return g(x) + count$e - 1",
    ),
    "counter in a default": Way(
        "via$e",
        'def via$e(x, table={"f": $t, "count": 0}):\n    table["count"] += 1\n'
        '    return table["f"](x) + table["count"] - 1',
    ),
}
# In a closure, a foreign function without `functools.wraps` is the user's.
LAST = {
    "function in their wrapper": Way(
        "via$e", "@theirs.bare\ndef via$e(x): return $t(x)"
    ),
}
# How the first function of a chain is named.
NAMES = {
    "name": "goal",
    "name in a module": "toy.far.goal",
    "import": "get()\ndef get():\n    import toy.far as m\n    return m.goal",
    "relative import": "get()\ndef get():\n    from .far import goal\n    return goal",
}


@final
class Recorder(bk.AbstractBatcher):
    """A batcher that records the number of rows of each call."""

    sizes: list[int] = eqx.field(static=True)

    def batch(self, call: Any) -> Any:
        self.sizes.append(len(call.args[0]))
        return call.fun(*call.args)  # what is mapped works on NumPy's rows as well


def rebuild(api: Any, sizes: list[int]) -> Any:
    return bk.rebuild_sampler(api, batcher=Recorder(sizes), packages=("toy",))


@pytest.fixture
def far(make_package: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the function that all chains lead to, and `theirs`."""
    theirs = types.ModuleType("theirs")
    exec(THEIRS, vars(theirs))
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    source = "import jax\ndef goal(x): return jax.vmap(lambda r: r + 1)(x)\n"
    return make_package(far=source).far


def chained(name: str, *ways: Way) -> types.ModuleType:
    """A module with `run`, which calls `goal` through some ways, and `show`."""
    target, _, above = name.partition("\n")
    texts, below = [HEADER, above], ""
    for number, way in enumerate(ways):
        call, before, after = (
            Template(text).substitute(t=target, e=number) for text in way
        )
        # What stands above needs the target to exist.
        texts.append(f"{below}\n{before}")
        target, below = call, after
    texts.append(f"def run(x): return {target}(x)\ndef show(): return {target}")
    module = types.ModuleType("toy")
    vars(module).update(__package__="toy")
    exec("\n".join([*texts, below]), vars(module))
    return module


# In which form a function is rebuilt.
FORMS = [
    lambda new, module: new(module.run),
    lambda new, module: new(module).run,
    lambda new, module: new(functools.partial(module.run)),
    lambda new, module: new({"f": [module.run]})["f"][0],
]


@pytest.mark.parametrize("first", WAYS)
def test_vmap_is_rebuilt_through_any_two_ways(first: str, far: Any) -> None:
    for number, (second, way) in enumerate({**WAYS, **LAST}.items()):
        module = chained("goal", WAYS[first], way)
        form = FORMS[number % len(FORMS)]
        found = bk.sites(module.run, packages=("toy",))
        assert {x.name for x in found} == {"toy.far:goal"}, second
        before = [*snapshot(module), *snapshot(far)]
        sizes: dict[str, list[int]] = {"copy": [], "again": []}
        copy = form(lambda api, sizes=sizes: rebuild(api, sizes["copy"]), module)
        again = rebuild(copy, sizes["again"])
        # A copy has its own counters; what is made of a copy counts from there.
        assert copy(ROWS).tolist() == [1, 2, 3], second
        assert sizes == {"copy": [3], "again": []}, second
        again(ROWS)
        assert sizes == {"copy": [3], "again": [3]}, second
        assert [*snapshot(module), *snapshot(far)] == before, second


@pytest.mark.parametrize("first", SAME)
def test_function_has_one_copy_however_it_is_reached(first: str, far: Any) -> None:
    for second, way in SAME.items():
        module = chained("goal", WAYS[first], way)
        assert module.show() is far.goal
        new = rebuild({"show": module.show, "goal": far.goal, "give": module.give}, [])
        assert new["show"]() is new["goal"] is not far.goal, second
        other = rebuild(far.goal, [])  # for another batcher
        for handed in (far.goal, new["goal"], other):
            assert new["give"](handed) is new["goal"]


@pytest.mark.parametrize("name", NAMES)
def test_function_is_rebuilt_under_any_name(name: str, far: Any) -> None:
    for second, way in WAYS.items():
        sizes: list[int] = []
        module = chained(NAMES[name], way)
        assert rebuild(module.run, sizes)(ROWS).tolist() == [1, 2, 3], second
        assert sizes == [3], second


# Functions of users, as expressions in their module; each adds one to every row.
USERS = {
    "function": "add",
    "default": "add_by_default",
    "keyword default": "add_by_keyword_default",
    "closure": "(lambda batch: lambda x: add_by(batch, x))(jax.vmap)",
    "wrapper": "wrapped(add)",
    "plain wrapper": "bare(add)",
    "partial": "functools.partial(add)",
    "partial with a keyword": "functools.partial(add_by_default, batch=jax.vmap)",
    "mapped": "jax.vmap(lambda r: r + 1)",
    "jitted": "jax.jit(add)",
    "instance": "Adder()",
    "bound method": "Adder().go",
}
# How it is handed over.
HANDED = {
    "by position": lambda toy, new, u: functools.partial(new(toy.run), u),
    "by name": lambda toy, new, u: functools.partial(new(toy.run), u=u),
    "in a partial": lambda toy, new, u: new(functools.partial(toy.run, u)),
    "by name in a partial": lambda toy, new, u: new(functools.partial(toy.run, u=u)),
    "to build": lambda toy, new, u: new(toy.build)(u),
    "to what is rebuilt later": lambda toy, new, u: new(toy.build(u)),
}


@pytest.mark.parametrize("user", USERS)
def test_users_functions_and_their_vmaps_stay(user: str, far: Any) -> None:
    function = eval(USERS[user], vars(sys.modules["theirs"]))
    for how, hand in HANDED.items():
        for carried in ("u", "give(u)", "theirs.give(u)", "[g for g in [u]][0]"):
            toy = chained("goal")
            source = f"""
def run(u, x): return {carried}, {carried}(x), jax.vmap(lambda r: r + 2)(x)
def build(u): return lambda x: run(u, x)
"""
            exec(source, vars(toy))
            sizes: list[int] = []
            run = hand(toy, lambda api, sizes=sizes: rebuild(api, sizes), function)
            arrived, added, mapped = run(x=ROWS)
            # A partial in a closure is made anew, with the same parts.
            is_same = arrived is function or how == "to what is rebuilt later"
            assert is_same, how
            assert np.asarray(added).tolist() == [1, 2, 3], how
            assert mapped.tolist() == [2, 3, 4], how
            assert sizes == [3], how
