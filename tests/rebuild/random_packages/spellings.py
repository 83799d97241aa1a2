"""The ways in which code spells a `jax.vmap`, as source text.

In a text `$w` is what is added to each of the rows `$rows`, and `$e` a number that
nothing else in the program has.
"""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Spelling:
    """How `r -> r + $w` is mapped over the rows `$rows`."""

    value: str
    top: str = ""  # as those of a way
    inside: str = ""
    keyword: str = ""
    inner: tuple[int, ...] = ()  # the sizes of vmaps inside the mapped function


_ADD = "def site$e(r): return r + $w\n"
_ADD_TWO = "def site$e(r, s): return r + s\n"

# Those that name it where they map something.
NAMED = {
    "jax.vmap": Spelling("jax.vmap(lambda r: r + $w)($rows)"),
    "renamed jax": Spelling("j.vmap(lambda r: r + $w)($rows)"),
    "renamed vmap": Spelling("batch(fun=lambda r: r + $w)($rows)"),
    "map": Spelling("next(map(jax.vmap, [lambda r: r + $w]))($rows)"),
    "of a module's function": Spelling("jax.vmap(site$e)($rows)", _ADD),
    "decorator": Spelling("site$e($rows)", "@jax.vmap\n" + _ADD),
    "decorator with arguments": Spelling(
        "site$e($rows, $w)",
        "@functools.partial(jax.vmap, in_axes=(0, None))\n" + _ADD_TWO,
    ),
    "nested decorator": Spelling("site$e($rows)", inside="@jax.vmap\n" + _ADD),
    "nested decorator with arguments": Spelling(
        "site$e($w, $rows)",
        inside="@functools.partial(batch, in_axes=(None, 0))\n" + _ADD_TWO,
    ),
    "mapped before": Spelling("site$e($rows)", "site$e = jax.vmap(lambda r: r + $w)\n"),
    "mapped over axis 1": Spelling(
        "site$e($rows[None])[0]", "site$e = batch(lambda r: r + $w, 1, 1)\n"
    ),
    "mapped in a table": Spelling(
        "table$e[0]($rows)", "table$e = [jax.vmap(lambda r: r + $w)]\n"
    ),
    "mapped in a default": Spelling(
        "site$e($rows)", "def site$e(x, go=jax.vmap(lambda r: r + $w)): return go(x)\n"
    ),
    "partial of a mapped function": Spelling(
        "site$e($rows)", "site$e = functools.partial(batch(lambda r: r + $w))\n"
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
    "vmap in a decorated function": Spelling(
        "site$e($rows[:, None])",
        "def inner$e(r): return jax.vmap(lambda s: s + $w)(r)\n"
        "@jax.vmap\ndef site$e(r): return inner$e(r)\n",
        inner=(1,),
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
    "namespace of vmaps": Spelling(
        "table$e.f(lambda r: r + $w)($rows)",
        "table$e = types.SimpleNamespace(f=jax.vmap)\n",
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
