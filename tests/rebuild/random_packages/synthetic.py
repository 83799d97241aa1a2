"""Random packages whose functions reach each other, and `jax.vmap`, in random ways.

A program is a chain of functions `f0`, `f1`, ... over up to three modules of a package
`toy`. Each maps some rows, calls some of the functions after it and perhaps one before
it. How it gets hold of what it calls is drawn: a way turns one expression into another
that is called like it, and ways follow each other, so a function may stand in a
dictionary in the closure of a wrapper.

The oracle computes the result of a program, and the order of its vmaps, without running
or rebuilding it. Each site maps a different number of rows, so the sizes that a batcher
gets identify the sites.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any, final

from hypothesis import strategies as st

from . import ways
from .sources import HEADER, MODULES, Sources
from .ways import Spelling, Way


@final
@dataclass(frozen=True)
class Site:
    """A vmap over `size` rows, those from `x` on, that adds `weight` to each."""

    size: int
    weight: int
    inner: tuple[int, ...]


@final
@dataclass(frozen=True)
class Link:
    """A call of another function; those that lead back use up fuel."""

    number: int
    target: int
    weight: int
    back: bool
    ways: tuple[Way, ...]  # from the target to the caller


@final
@dataclass
class _Run:
    """The sizes of vmaps in one run, and the counters of its ways."""

    sizes: list[int] = field(default_factory=list)
    counts: dict[tuple[int, int], int] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Program:
    """A package, and the parts of the total that each function computes."""

    sources: Sources
    entry: str  # the module of `f0`
    parts: tuple[tuple[Site | Link, ...], ...]  # of each function, in order

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.pretty(self.sources)

    def expected(self, x: int, fuel: int) -> tuple[int, list[int]]:
        """Compute the result of a first call, `f0(x, fuel)`, and the sizes of vmaps."""
        run = _Run()
        return self._value(0, x, fuel, run), run.sizes

    def _value(self, index: int, x: int, fuel: int, run: _Run) -> int:
        total = x + index
        for part in self.parts[index]:
            if isinstance(part, Site):
                run.sizes += [part.size, *part.inner]
                total += sum(range(x, x + part.size)) + part.size * part.weight
            elif fuel > 0 or not part.back:
                depth = len(part.ways)
                value = self._called(part, depth, x + 1, fuel - part.back, run)
                total += part.weight * value
        return total

    def _called(self, link: Link, depth: int, x: int, fuel: int, run: _Run) -> int:
        """Compute the target's value, called through the first `depth` ways."""
        if depth == 0:
            return self._value(link.target, x, fuel, run)
        way, place = link.ways[depth - 1], (link.number, depth)
        if way.counts:
            run.counts[place] = run.counts.get(place, 0) + 1
        value = self._called(link, depth - 1, x, fuel, run)
        if way.counts:
            value += run.counts[place]
        return value


@final
class _Function:
    """The text of one function, and of definitions around it in its module."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._top = self._inside = self._below = self._end = ""
        self._parameters = self._keywords = ""

    def site(self, site: Site, spelling: Spelling) -> str:
        """The expression for the mapped rows."""
        names = {"e": f"_{site.size}", "w": site.weight}
        names["rows"] = f"np.arange(x, x + {site.size})"
        self._add(spelling, names)
        return _fill(spelling.value, names)

    def function(
        self,
        place: tuple[str, str],
        number: int,
        naming: str,
        chain: Sequence[Way],
        back: bool = False,
    ) -> str:
        """The expression for a function of some module, reached by a chain."""
        module, name = place
        names = {"module": module, "name": name, "e": number, "t": name}
        names["relative"] = module.removeprefix("toy") or "."
        if module != self._module:
            statement, names["t"] = (_fill(x, names) for x in ways.NAMES[naming])
            if back:  # that module may need this one to be complete
                self._end += statement + "\n"
            else:
                self._top += statement + "\n"
        return self.through(chain, names)

    def through(self, chain: Sequence[Way], names: Mapping[str, Any]) -> str:
        """The expression for `$t` at the end of a chain."""
        expression = names["t"]
        for depth, way in enumerate(chain):
            step = {**names, "e": f"{names['e']}_{depth}", "t": expression}
            self._add(way, step)
            expression = _fill(way.call, step)
        return expression

    def _add(self, what: Way | Spelling, names: Mapping[str, Any]) -> None:
        self._top += _fill(what.top, names)
        self._inside += _fill(what.inside, names)
        if what.keyword:
            self._keywords += ", " + _fill(what.keyword, names)
        if isinstance(what, Way):
            self._below += _fill(what.below, names)
            if what.parameter:
                self._parameters += ", " + _fill(what.parameter, names)

    def move_inside(self) -> None:
        """Puts what stands above the function into it, where its parameters are."""
        self._inside, self._top = self._top + self._inside, ""

    def above(self, text: str) -> str:
        """A text that uses the expressions at the top level of the module."""
        return self._top + text

    def text(self, name: str, parameters: str, body: str) -> tuple[str, str]:
        """What stands in the module, and what stands at its end."""
        keywords = self._keywords and ", *" + self._keywords
        text = f"def {name}({parameters}{self._parameters}{keywords}):\n"
        text += textwrap.indent(self._inside + body, "    ")
        if name == "f0":
            text += "theirs.defined(f0)\n"
        return self._top + text + self._below, self._end


def _fill(text: str, names: Mapping[str, Any]) -> str:
    return Template(text).substitute(names)


def _sources(functions: Iterable[tuple[str, tuple[str, str]]]) -> Sources:
    """The modules in which these functions, each with its module, stand."""
    texts = {module: HEADER for module in MODULES}
    ends = {module: "" for module in MODULES}
    # Each module is complete before the one above it goes on.
    texts["toy"] += "import toy.near\n"
    texts["toy.near"] += "import toy.far\n"
    for module, (text, end) in functions:
        texts[module] += text
        ends[module] += end
    return Sources({module: texts[module] + ends[module] for module in MODULES})


def _one_of(*tables: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([value for table in tables for value in table.values()])


@st.composite
def programs(draw: st.DrawFn, late: bool = False) -> Program:
    """Any program; in a `late` one, `f0` uses a name that is defined below it."""
    count = draw(st.integers(1 + late, 4))
    homes = sorted(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    modules = [MODULES[home] for home in homes]
    texts: list[tuple[str, tuple[str, str]]] = []
    parts: list[tuple[Site | Link, ...]] = []
    for index in reversed(range(count)):
        function, body = _Function(modules[index]), f"total = x + {index}\n"
        done: list[Site | Link] = []
        for i in range(draw(st.integers(int(index == count - 1), 2))):
            spelling = draw(_one_of(ways.SPELLINGS))
            site = Site(2 + 2 * index + i, draw(st.integers(0, 3)), spelling.inner)
            rows = function.site(site, spelling)
            body += f"total += int(np.asarray({rows}).sum())\n"
            done.append(site)
        forward = draw(st.integers(1, 2)) if index < count - 1 else 0
        for i, back in enumerate([False] * forward + [True] * draw(st.integers(0, 1))):
            first, last = (0, index) if back else (index + 1, count - 1)
            target = draw(st.integers(first, last))
            chain = draw(_chains(back, late and index == i == 0))
            link = Link(10 * index + i, target, draw(st.integers(1, 5)), back, chain)
            naming = draw(st.sampled_from(ways.CYCLIC if back else [*ways.NAMES]))
            place = (modules[target], f"f{target}")
            call = function.function(place, link.number, naming, chain, back)
            fuel, condition = ("n - 1", "if n > 0: ") if back else ("n", "")
            body += f"{condition}total += {link.weight} * {call}(x + 1, {fuel})\n"
            done.append(link)
        body += "return total\n"
        texts.append((modules[index], function.text(f"f{index}", "x, n", body)))
        parts.insert(0, tuple(done))
    return Program(_sources(texts), modules[0], tuple(parts))


@st.composite
def _chains(draw: st.DrawFn, back: bool, late: bool) -> tuple[Way, ...]:
    """How one function reaches another, which stands above it or, `back`, below."""
    if back:
        return (draw(_one_of(ways.LATE, ways.IMPORTS)),)
    first = draw(st.lists(_one_of(ways.EARLY), max_size=2))
    if late:
        return (*first, draw(_one_of(ways.BELOW)))
    imports = () if first else (ways.IMPORTS,)
    return (*first, draw(_one_of(ways.LATE, ways.LAST, *imports)))


@st.composite
def refusals(draw: st.DrawFn) -> Sources:
    """A function `f0` of `toy` that calls one in a way that cannot be rebuilt."""
    module = draw(st.sampled_from(MODULES))
    target, caller = _Function(module), _Function("toy")
    mapped_before = draw(st.booleans())
    spellings = ways.MAPPED_BEFORE if mapped_before else ways.NAMED
    rows = target.site(Site(2, 0, ()), draw(_one_of(spellings)))
    text = target.text("f1", "x, n", f"return {rows}\n")
    chain = draw(st.lists(_one_of(ways.CONTAINERS), max_size=2))
    if not mapped_before:
        chain.append(draw(_one_of(ways.REFUSED)))
    chain.append(draw(_one_of(ways.LATE_SAME)))
    naming = draw(st.sampled_from([*ways.NAMES]))
    call = caller.function((module, "f1"), 1, naming, chain)
    entry = caller.text("f0", "x, n", f"return {call}(x, n)\n")
    return _sources([(module, text), ("toy", entry)])


@st.composite
def routes(draw: st.DrawFn) -> Sources:
    """A function `f0` that reaches `toy.far.goal` by many routes.

    It returns what it is given and then what it has found.
    """
    goal = _Function("toy.far")
    made = draw(st.lists(st.sampled_from(ways.MAKE_FUNCTIONS), max_size=2))
    rows = "int(np.asarray(jax.vmap(lambda r: r + n)(np.arange(x))).sum())"
    text, _ = _Function("toy.far").text("base", "x, n", f"return {rows}\n")
    expression = goal.through(made, {"t": "base", "e": "_goal"})
    text += goal.above(f"goal = {expression}\n")
    module = draw(st.sampled_from(MODULES))
    function, found = _Function(module), ["g"]
    for number in range(draw(st.integers(1, 4))):
        first = draw(st.lists(_one_of(ways.SAME), max_size=2))
        last = (ways.LATE_SAME, ways.LAST, *([] if first else [ways.IMPORTS]))
        chain = (*first, draw(_one_of(*last)))
        naming = draw(st.sampled_from([*ways.NAMES]))
        found.append(function.function(("toy.far", "goal"), number, naming, chain))
    entry = function.text("f0", "g", f"return [{', '.join(found)}]\n")
    shown = "" if module == "toy" else f"from {module} import f0\n"
    return _sources([("toy.far", (text, "")), (module, entry), ("toy", (shown, ""))])


@st.composite
def carriers(draw: st.DrawFn) -> Sources:
    """A function `f0` that carries its argument through modules and then calls it.

    `f0(u, x)` is `(u, u(x), x + 2)`; the last comes from a vmap of the package.
    """
    texts = []
    for index, module in enumerate(MODULES):
        function = _Function(module)
        first = draw(st.lists(_one_of(ways.SAME), max_size=2))
        chain = (*first, draw(_one_of(ways.LATE_SAME)))
        u = function.through(chain, {"t": "u", "e": index})
        function.move_inside()
        if index + 1 < len(MODULES):
            body = f"return {MODULES[index + 1]}.f{index + 1}({u}, x)\n"
        else:
            body = f"return {u}, {u}(x), jax.vmap(lambda r: r + 2)(x)\n"
        texts.append((module, function.text(f"f{index}", "u, x", body)))
    built = "def build(u): return lambda x: f0(u, x)\n"
    return _sources([*texts, ("toy", (built, ""))])
