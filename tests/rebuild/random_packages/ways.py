"""Ways to reach a function, and spellings of `jax.vmap`, as source text.

In a text `$t` is the expression for the function to reach, `$module` and `$name` are
where it is defined, and `$e` is a number that is unique in the program. In a spelling
`$w` is added to each of the rows `$rows`.
"""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Way:
    """How the expression `$t` becomes `call`, an expression that is called like it."""

    call: str
    top: str = ""  # at the top level of the module, above the caller
    below: str = ""  # at the top level, below the caller
    inside: str = ""  # where the caller starts
    parameter: str = ""  # of the caller
    keyword: str = ""  # of the caller, by name only
    counts: bool = False  # the number of calls so far is added to the result


_HOLDER = """\
@dataclasses.dataclass(frozen=True)
class Holder$e:
    f: typing.Any
    def __call__(self, x, n): return self.f(x, n)
    def go(self, x, n): return self.f(x, n)
holder$e = Holder$e($t)
"""
_AROUND = """\
def around$e(f):
    def inner(*args): return f(*args)
    return inner
"""
_AROUND_WITH_WRAPS = _AROUND.replace("    def", "    @functools.wraps(f)\n    def")

# Through something at the top level of a module that holds it. There `$t` already has
# to exist; what comes out is the very object.
CONTAINERS = {
    "dictionary": Way('table$e["f"]', 'table$e = {"f": $t}\n'),
    "key of a dictionary": Way("next(iter(table$e))", "table$e = {$t: 0}\n"),
    "ordered dictionary": Way(
        'table$e["f"]', "table$e = collections.OrderedDict(f=$t)\n"
    ),
    "list": Way("table$e[0]", "table$e = [$t]\n"),
    "tuple": Way("table$e[0]", "table$e = ($t,)\n"),
    "set": Way("next(iter(table$e))", "table$e = {$t}\n"),
    "frozen set": Way("next(iter(table$e))", "table$e = frozenset([$t])\n"),
    "nested containers": Way('table$e["f"][0][0]', 'table$e = {"f": [($t,)]}\n'),
    "container of itself": Way(
        'table$e["self"]["f"]', 'table$e = {"f": $t}\ntable$e["self"] = table$e\n'
    ),
    "named tuple": Way(
        "pair$e.f",
        "class Pair$e(typing.NamedTuple):\n"
        "    f: typing.Any\n"
        "    g: typing.Any = None\n"
        "pair$e = Pair$e($t)\n",
    ),
    "registry": Way(
        'table$e["f"]',
        "table$e = {}\n"
        "def register$e(name):\n"
        "    def add(f): return table$e.setdefault(name, f)\n"
        "    return add\n"
        'register$e("f")($t)\n',
    ),
    "table that fills": Way(
        'table$e.setdefault("g", table$e["f"])', 'table$e = {"f": $t}\n'
    ),
    "instance": Way("holder$e.f", _HOLDER),
}

# In other ways, but what comes out is still the very object.
SAME = {
    **CONTAINERS,
    "attribute of a function": Way("via$e.f", "def via$e(): pass\nvia$e.f = $t\n"),
    "what a function returns": Way("get$e()", "get$e = (lambda f: lambda: f)($t)\n"),
    "argument of a partial": Way(
        "via$e()", "via$e = functools.partial(theirs.give, $t)\n"
    ),
    "default of a getter": Way("get$e()", "def get$e(f=$t): return f\n"),
    "keyword default of a getter": Way("get$e()", "def get$e(*, f=$t): return f\n"),
}

# What comes out may be another function around it.
EARLY = {
    **SAME,
    "closure": Way(
        "via$e",
        "def make$e(g):\n"
        "    def inner(x, n): return g(x, n)\n"
        "    return inner\n"
        "via$e = make$e($t)\n",
    ),
    "container in a closure": Way(
        "via$e", 'via$e = (lambda g: lambda x, n: g["f"][0](x, n))({"f": [$t]})\n'
    ),
    "partial": Way("via$e", "via$e = functools.partial($t)\n"),
    "partial with an argument": Way(
        "via$e",
        "def apply$e(g, x, n): return g(x, n)\n"
        "via$e = functools.partial(apply$e, $t)\n",
    ),
    "partial with a keyword": Way(
        "via$e",
        "def apply$e(x, n, g): return g(x, n)\n"
        "via$e = functools.partial(apply$e, g=$t)\n",
    ),
    "partial with a container": Way(
        "via$e",
        "def apply$e(x, n, *, g): return g[0](x, n)\n"
        "via$e = functools.partial(apply$e, g=($t,))\n",
    ),
    "wrapper": Way("via$e", _AROUND + "via$e = around$e($t)\n"),
    "wrapper with wraps": Way("via$e", _AROUND_WITH_WRAPS + "via$e = around$e($t)\n"),
    "their wrapper": Way("via$e", "via$e = theirs.wrapped($t)\n"),
    "default": Way("via$e", "def via$e(x, n, g=$t): return g(x, n)\n"),
    "keyword default": Way("via$e", "def via$e(x, n, *, g=$t): return g(x, n)\n"),
    "callable instance": Way("holder$e", _HOLDER),
    "method of an instance": Way("holder$e.go", _HOLDER),
    "bound method": Way("via$e", _HOLDER + "via$e = holder$e.go\n"),
    "counter in an instance": Way(
        "via$e.go",
        "class Counter$e:\n"
        "    def __init__(self, f): self.f, self.count = f, 0\n"
        "    def go(self, x, n):\n"
        "        self.count += 1\n"
        "        return self.f(x, n) + self.count\n"
        "via$e = Counter$e($t)\n",
        counts=True,
    ),
    "counter in a default": Way(
        "via$e",
        'def via$e(x, n, table={"f": $t, "count": 0}):\n'
        '    table["count"] += 1\n'
        '    return table["f"](x, n) + table["count"]\n',
        counts=True,
    ),
    "counter in an attribute": Way(
        "via$e",
        "def via$e(x, n, g=$t):\n"
        "    via$e.count += 1\n"
        "    return g(x, n) + via$e.count\n"
        "via$e.count = 0\n",
        counts=True,
    ),
    "counter in a table of two names": Way(
        "via$e",
        'table$e = alias$e = {"f": $t, "count": 0}\n'
        "def via$e(x, n):\n"
        '    table$e["count"] += 1\n'
        '    here = __import__(__name__, fromlist=["x"])\n'
        '    return here.alias$e["f"](x, n) + here.alias$e["count"]\n',
        counts=True,
    ),
    "counter in a module": Way(
        "via$e",
        "count$e = 0\n"
        "def via$e(x, n, g=$t):\n"
        "    global count$e\n"
        "    count$e += 1\n"
        "    return g(x, n) + count$e\n",
        counts=True,
    ),
}

# Through something that is shared with the original and therefore refused.
REFUSED = {
    "class": Way("Thing$e.f", "class Thing$e:\n    f = staticmethod($t)\n"),
    "method": Way(
        "Thing$e().go", "class Thing$e:\n    def go(self, x, n): return $t(x, n)\n"
    ),
    "property": Way(
        "Thing$e().go",
        "class Thing$e:\n"
        "    @property\n"
        "    def go(self): return lambda x, n: $t(x, n)\n",
    ),
    "inherited method": Way(
        "Thing$e().go",
        "class Base$e:\n"
        "    def go(self, x, n): return $t(x, n)\n"
        "class Thing$e(Base$e): pass\n",
    ),
    "default of a method": Way(
        "thing$e.go",
        "class Thing$e:\n"
        "    def go(self, x, n, f=$t): return f(x, n)\n"
        "thing$e = Thing$e()\n",
    ),
    "bound method": Way(
        "via$e",
        "class Thing$e:\n"
        "    def go(self, x, n): return $t(x, n)\n"
        "via$e = Thing$e().go\n",
    ),
    "default of a field": Way(
        "Pair$e().f", "class Pair$e(typing.NamedTuple):\n    f: typing.Any = $t\n"
    ),
    "deque": Way("table$e[0]", "table$e = collections.deque([$t])\n"),
    "read-only dictionary": Way(
        'table$e["f"]', 'table$e = types.MappingProxyType({"f": $t})\n'
    ),
    "simple namespace": Way("table$e.f", "table$e = types.SimpleNamespace(f=$t)\n"),
    "instance with slots": Way(
        "holder$e.f",
        "class Holder$e:\n"
        '    __slots__ = ("f",)\n'
        "    def __init__(self, f): self.f = f\n"
        "holder$e = Holder$e($t)\n",
    ),
    "cache": Way("via$e", "@functools.cache\ndef via$e(x, n, g=$t): return g(x, n)\n"),
    "cached function": Way(
        "via$e", "@functools.lru_cache\ndef via$e(x, n): return $t(x, n)\n"
    ),
    "cached builder": Way("build$e()", "@functools.cache\ndef build$e(): return $t\n"),
    "dispatch": Way("via$e", "via$e = functools.singledispatch($t)\n"),
    "dispatch on a type": Way(
        "via$e",
        "@functools.singledispatch\n"
        "def via$e(x, n): raise NotImplementedError\n"
        "via$e.register(int, $t)\n",
    ),
    "jitted function": Way("via$e", "via$e = jax.jit($t)\n"),
    "jitted call": Way("via$e", "via$e = jax.jit(lambda x, n: $t(x, n))\n"),
    "custom derivative": Way("via$e", "via$e = jax.custom_jvp($t)\n"),
    "static method": Way("via$e", "via$e = staticmethod($t)\n"),
    "their instance": Way("via$e.f", "via$e = theirs.Holder($t)\n"),
}

# Those that make another plain function.
MAKE_FUNCTIONS = [
    EARLY[name] for name in ("closure", "wrapper", "wrapper with wraps", "default")
]

# Through what stands below the caller.
BELOW = {
    "name below": Way("name$e", below="name$e = $t\n"),
    "table below": Way('table$e["f"]', below='table$e = {"f": $t}\n'),
}

# Through the caller's own defaults, or what stands below it: the last one on the way.
LAST = {
    "default of the caller": Way("g$e", parameter="g$e=$t"),
    "keyword default of the caller": Way("g$e", keyword="g$e=$t"),
    "container in a default": Way("g$e[0]", parameter="g$e=[$t]"),
    "container in a keyword default": Way('g$e["f"]', keyword='g$e={"f": $t}'),
    **BELOW,
}

# Ways that name the function by its module, when they run.
IMPORTS = {
    "import": Way(
        "get$e()", "def get$e():\n    import $module\n    return $module.$name\n"
    ),
    "renamed import": Way(
        "get$e()", "def get$e():\n    import $module as m\n    return m.$name\n"
    ),
    "from import": Way(
        "get$e()", "def get$e():\n    from $module import $name\n    return $name\n"
    ),
    "renamed from import": Way(
        "get$e()", "def get$e():\n    from $module import $name as g\n    return g\n"
    ),
    "relative import": Way(
        "get$e()", "def get$e():\n    from $relative import $name as g\n    return g\n"
    ),
    "import by name": Way("__import__('$module', fromlist=['x']).$name"),
}

# Ways that need `$t` only when the caller runs; what comes out is the very object.
LATE_SAME = {
    "as it is": Way("$t"),
    "comprehension": Way("[g for g in [$t]][0]"),
    "generator expression": Way("next(g for g in ($t,))"),
    "argument": Way("give$e($t)", "def give$e(g): return g\n"),
    "argument of theirs": Way("theirs.give($t)"),
    "nested default": Way("g$e()", inside="def g$e(h=$t): return h\n"),
    "nested class": Way(
        "Local$e.g", inside="class Local$e:\n    g = staticmethod($t)\n"
    ),
    "generator": Way(
        "next(parts$e())", "def parts$e(): yield from (g for g in [$t])\n"
    ),
}
LATE = {
    **LATE_SAME,
    "nested function": Way("g$e", inside="def g$e(x, n): return $t(x, n)\n"),
    "nested lambda": Way("g$e", inside="g$e = lambda x, n: (lambda: $t(x, n))()\n"),
    "definition below": Way("via$e", below="def via$e(x, n): return $t(x, n)\n"),
    "coroutine": Way(
        "via$e",
        "async def wait$e(x, n): return $t(x, n)\n"
        "def via$e(x, n):\n"
        "    try: wait$e(x, n).send(None)\n"
        "    except StopIteration as stop: return stop.value\n",
    ),
    "decorated function": Way(
        "via$e",
        _AROUND_WITH_WRAPS + "@around$e\ndef via$e(x, n): return $t(x, n)\n",
    ),
    "function in their decorator": Way(
        "via$e", "@theirs.wrapped\ndef via$e(x, n): return $t(x, n)\n"
    ),
    "function in their plain decorator": Way(
        "via$e", "@theirs.bare\ndef via$e(x, n): return $t(x, n)\n"
    ),
    "context manager": Way(
        "via$e",
        "@contextlib.contextmanager\n"
        "def scope$e(): yield $t\n"
        "def via$e(x, n):\n"
        "    with scope$e() as g: return g(x, n)\n",
    ),
    "instance made at run time": Way(
        "Made$e($t).go",
        "class Made$e:\n"
        "    def __init__(self, f): self.f = f\n"
        "    def go(self, x, n): return self.f(x, n)\n",
    ),
}

# How one module names a function of another at its top level: a statement and the name.
NAMES = {
    "from import": ("from $module import $name", "$name"),
    "relative import": ("from $relative import $name", "$name"),
    "renamed from import": ("from $module import $name as g$e", "g$e"),
    "import": ("import $module", "$module.$name"),
    "renamed import": ("import $module as m$e", "m$e.$name"),
}
CYCLIC = ("import", "renamed import")  # these work while the other is half imported


# Spellings of a vmap


@final
@dataclass(frozen=True)
class Spelling:
    """How `r -> r + $w` is mapped over the rows `$rows`."""

    value: str
    top: str = ""  # as in `Way`
    inside: str = ""
    keyword: str = ""
    inner: tuple[int, ...] = ()  # the sizes of vmaps inside the mapped function


_ADD = "def site$e(r): return r + $w\n"
_ADD_TWO = "def site$e(r, s): return r + s\n"

# Spellings with the name of the vmap where something is mapped.
NAMED = {
    "jax.vmap": Spelling("jax.vmap(lambda r: r + $w)($rows)"),
    "renamed jax": Spelling("j.vmap(lambda r: r + $w)($rows)"),
    "renamed vmap": Spelling("batch(fun=lambda r: r + $w)($rows)"),
    "map": Spelling("next(map(jax.vmap, [lambda r: r + $w]))($rows)"),
    "of a module's function": Spelling("jax.vmap(site$e)($rows)", _ADD),
    "nested decorator": Spelling("site$e($rows)", inside="@jax.vmap\n" + _ADD),
    "nested decorator with arguments": Spelling(
        "site$e($w, $rows)",
        inside="@functools.partial(batch, in_axes=(None, 0))\n" + _ADD_TWO,
    ),
    "argument": Spelling(
        "site$e(jax.vmap, $rows)",
        "def site$e(batch, x): return batch(lambda r: r + $w)(x)\n",
    ),
    "argument of theirs": Spelling("theirs.give(batch)(lambda r: r + $w)($rows)"),
    "another module's vmap": Spelling(
        "other$e.batch(lambda r: r + $w)($rows)", "import toy.far as other$e\n"
    ),
    "another module's jax": Spelling(
        "other$e.j.vmap(lambda r: r + $w)($rows)", "import toy.far as other$e\n"
    ),
    "vmap of a vmap": Spelling(
        "jax.vmap(batch(lambda r: r + $w))($rows[:, None])", inner=(1,)
    ),
    "vmap in a mapped function": Spelling(
        "jax.vmap(site$e)($rows[:, None])",
        "def site$e(r): return jax.vmap(lambda s: s + $w)(r)\n",
        inner=(1,),
    ),
}

SPELLINGS = {
    **NAMED,
    "vmap": Spelling("vmap(lambda r: r + $w)($rows)", "from jax import vmap\n"),
    "getattr": Spelling("getattr(jax, 'vmap')(lambda r: r + $w)($rows)"),
    "import inside": Spelling(
        "site$e()(lambda r: r + $w)($rows)",
        "def site$e():\n    import jax as k\n    return k.vmap\n",
    ),
    "from import inside": Spelling(
        "site$e()(lambda r: r + $w)($rows)",
        "def site$e():\n    from jax import vmap\n    return vmap\n",
    ),
    "partial of vmap": Spelling(
        "batch$e(lambda r, s: r + s)($rows, $w)",
        "batch$e = functools.partial(jax.vmap, in_axes=(0, None))\n",
    ),
    "partial with vmap": Spelling(
        "site$e($rows)",
        "def apply$e(x, batch): return batch(lambda r: r + $w)(x)\n"
        "site$e = functools.partial(apply$e, batch=jax.vmap)\n",
    ),
    "default": Spelling(
        "site$e($rows)",
        "def site$e(x, batch=jax.vmap): return batch(lambda r: r + $w)(x)\n",
    ),
    "keyword default": Spelling(
        "batch$e(lambda r: r + $w)($rows)", keyword="batch$e=batch"
    ),
    "table of vmaps": Spelling(
        "table$e['vmap'](lambda r: r + $w)($rows)", "table$e = {'vmap': batch}\n"
    ),
    "closure over vmap": Spelling(
        "site$e($rows)",
        "site$e = (lambda batch: lambda x: batch(lambda r: r + $w)(x))(jax.vmap)\n",
    ),
    "closure over jax": Spelling(
        "site$e($rows)",
        "site$e = (lambda m: lambda x: m.vmap(lambda r: r + $w)(x))(jax)\n",
    ),
}

# Spellings that are mapped when the module is imported, and therefore refused.
MAPPED_BEFORE = {
    "decorator": Spelling("site$e($rows)", "@jax.vmap\n" + _ADD),
    "decorator with arguments": Spelling(
        "site$e($rows, $w)",
        "@functools.partial(jax.vmap, in_axes=(0, None))\n" + _ADD_TWO,
    ),
    "name": Spelling("site$e($rows)", "site$e = jax.vmap(lambda r: r + $w)\n"),
    "table": Spelling("table$e[0]($rows)", "table$e = [jax.vmap(lambda r: r + $w)]\n"),
    "default": Spelling(
        "site$e($rows)", "def site$e(x, go=jax.vmap(lambda r: r + $w)): return go(x)\n"
    ),
    "partial": Spelling(
        "site$e($rows)", "site$e = functools.partial(batch(lambda r: r + $w))\n"
    ),
}
