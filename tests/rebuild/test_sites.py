"""`sites` finds every vmap that an API can reach, where it stands, and runs nothing.

How a vmap is spelled is tested beside; here is what leads to it.
"""

import dataclasses
import functools
import html
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import blackjax
import jax
import numpy as np
import pytest

import batchkit as bk
from batchkit.rebuild import Sites

from ..vmaps import Found, vmaps_in


VMAP = functools.partial(bk.rebuild_sampler, batcher=bk.Vmap())


def places(found: Sites, module: str = "toy") -> set[Found]:
    """What `vmaps_in` tells, for the sites of one module."""
    return {(x.qualname, x.line, x.spelling) for x in found if x.module == module}


def sites(api: Any) -> Sites:
    return bk.sites(api, packages=("toy",))


METHODS = """
    import jax
    class Base:
        def inherited(self, x): return jax.vmap(lambda r: r)(x)
    class Thing(Base):
        def method(self, x): return jax.vmap(lambda r: r)(x)
        @classmethod
        def of_class(cls, x): return jax.vmap(lambda r: r)(x)
        @staticmethod
        def static(x): return jax.vmap(lambda r: r)(x)
        @property
        def read(self): return jax.vmap(lambda r: r)(self)
        @read.setter
        def read(self, x): jax.vmap(lambda r: r)(x)
    thing = Thing()
    def by_name(x): return Thing().method(x)
    def by_instance(x): return thing.method(x)
    """


@pytest.mark.parametrize("name", ["by_name", "by_instance", "Thing", "thing"])
def test_vmaps_in_methods_are_listed(name, make_package):
    module = make_package(init=METHODS)
    assert len(vmaps_in(METHODS)) == 6
    assert places(sites(getattr(module, name))) == vmaps_in(METHODS)


SUB = "import jax\ndef inner(x): return jax.vmap(lambda r: r.sum())(x)\n"
IMPORTS = [
    "import toy.sub as s; return s.inner(x)",
    "import toy.deep.sub as s; return s.inner(x)",
    "from toy import sub; return sub.inner(x)",
    "from toy.sub import inner as f; return f(x)",
    "from .sub import inner; return inner(x)",
    "from . import sub as s; return s.inner(x)",
    "from toy.sub import jax, inner; return inner(x)",
    "from . import sub; return (lambda: sub.inner(x))()",
]


@pytest.mark.parametrize("statement", IMPORTS)
def test_imports_inside_functions_are_followed(statement, make_package, tmp_path):
    # Loading happens while reading, so that it does not matter who has imported what.
    module = make_package(init=f"def run(x): {statement}\n")
    name = "toy.deep.sub" if "deep" in statement else "toy.sub"
    path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(SUB)
    importlib.invalidate_caches()
    assert name not in sys.modules
    found = sites(module.run)
    assert {x.module for x in found} == {name}
    assert places(found, name) == vmaps_in(SUB)


def test_vmaps_of_other_packages_are_not_listed(make_package, tmp_path):
    (tmp_path / "other_toy.py").write_text(SUB)
    source = """
        import jax, other_toy
        def run(x): return other_toy.inner(jax.vmap(lambda r: r)(x))
        """
    module = make_package(init=source)
    assert {x.module for x in sites(module.run)} == {"toy"}
    both = bk.sites(module.run, packages=["toy", "other_toy"])
    del sys.modules["other_toy"]
    assert places(both, "other_toy") == vmaps_in(SUB)
    assert places(both) == vmaps_in(source)


def test_listing_runs_no_code(make_package):
    source = """
        import functools, jax
        def fails(*args): raise RuntimeError("was run")
        class Thing:
            read = property(fails)
            __call__ = __iter__ = __len__ = __eq__ = fails
            __hash__ = None
        thing, part = Thing(), functools.partial(fails)
        registry = {"part": part}
        registry["self"] = registry  # and it comes to an end
        cached = functools.cache(fails)
        def run(x, default=fails):
            fails(cached(), registry, thing(), thing.read, default())
            return jax.vmap(fails)(x)
        """
    module = make_package(init=source)
    for api in (module.run, module):
        assert places(sites(api)) == vmaps_in(source)


def test_optional_modules_are_not_imported(make_package, tmp_path):
    (tmp_path / "optional_toy.py").write_text("raise RuntimeError('was imported')")
    source = """
        import jax
        def run(x):
            import optional_toy, no_such_toy.sub
            from no_such_toy.sub import nothing
            from .broken import anything
            from .absent import something
            from . import missing
            optional_toy.go(nothing, anything, something, missing, no_such_toy.sub.go)
            return jax.vmap(lambda r: r)(x)
        """
    module = make_package(init=source)
    (tmp_path / "toy" / "broken.py").write_text("import no_such_toy")
    importlib.invalidate_caches()
    assert places(sites(module.run)) == vmaps_in(source)
    assert "optional_toy" not in sys.modules


def test_foreign_objects_whose_attributes_raise_are_skipped(make_package):
    module = make_package(
        init="""
        import types
        import jax
        class Lazy(types.ModuleType):
            def __getattr__(self, name): raise ImportError(name)
        class Stranger:
            __module__ = "elsewhere"
            def __getattr__(self, name): raise RuntimeError(name)
            def __call__(self, x): return x
        lazy, stranger = Lazy("lazy"), Stranger()
        def run(x, late=False):
            if late: lazy.function(x)
            return jax.vmap(lambda r: r.sum())(stranger(x))
        """,
    )
    (site,) = sites(module.run)
    copy = bk.rebuild_sampler(module.run, bk.Chunked(2), packages=("toy",))
    assert site.name == "toy:run"
    assert copy(np.ones((4, 2))).tolist() == [2.0] * 4


PHASES = """
    import functools, types, typing, jax
    class Pair(typing.NamedTuple):
        init: typing.Any
        step: typing.Any
    class Thing:
        def __init__(self, **names): self.__dict__.update(names)
    def shared(x): return jax.vmap(lambda r: r.sum())(x)
    def init(x): return jax.vmap(lambda r: 2 * r)(shared(x))
    def build_kernel(scale):
        def kernel(x): return jax.vmap(lambda r: scale * r)(shared(x))
        return kernel
    def step(x): return build_kernel(2.0)(x)
    def other(x): return jax.vmap(lambda r: r - 1)(x)
    pair = Pair(init, step)
    halves = Pair(functools.partial(init), [step])
    registry = {"init": init, "step": step, "other": other}
    thing = Thing(init=init, build_kernel=build_kernel, other=other)
    nested = {"deep": pair, "other": other}
    def build(): return Pair(init, lambda x: jax.vmap(lambda r: r)(shared(x)))
    factory = Thing(build=build, init=init)
    """
KERNEL = "build_kernel.<locals>.kernel"
LAMBDA = "build.<locals>.<lambda>"
BOTH = {"init": {"init", "shared"}, "step": {KERNEL, "shared"}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pair", BOTH),
        ("halves", BOTH),
        ("registry", {**BOTH, None: {"other"}}),
        ("thing", {**BOTH, None: {"other"}}),
        ("nested", {**BOTH, None: {"other"}}),
        ("other", {None: {"other"}}),
        # What a factory hands to either has no phase, beside those of other parts.
        ("factory", {"init": BOTH["init"], None: {LAMBDA, "shared"}}),
        ("init", {None: {"init", "shared"}}),
        (None, {**BOTH, None: {"other", "shared", LAMBDA}}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_phase_of_a_site_follows_the_names_to_it(name, expected, make_package):
    module = make_package(init=PHASES)
    found = sites(module if name is None else getattr(module, name))
    by_phase: dict[str | None, set[str]] = {}
    for site in found:
        by_phase.setdefault(site.phase, set()).add(site.qualname)
    assert by_phase == expected
    assert places(found) <= vmaps_in(PHASES)
    assert len(set(found)) == len(found)


def test_sites_come_in_the_order_of_modules_and_lines(make_package):
    source = "import jax\ndef {}(x): return jax.vmap(jax.vmap(lambda r: r))(x)\n"
    module = make_package(
        init="def run(x): import toy.a, toy.b; return toy.b.f(toy.a.f(toy.a.g(x)))\n",
        b=source.format("f"),
        a=source.format("f") + source.format("g"),
    )
    found = sites(module.run)
    # Two on one line are one site: nothing could tell them apart.
    assert [str(x) for x in found] == ["toy.a:f:2", "toy.a:g:4", "toy.b:f:2"]


def test_sites_print_as_a_table(make_package):
    found = sites(make_package(init=PHASES).pair)
    rows = [[x.module, x.qualname, str(x.line), x.spelling, x.phase] for x in found]
    lines = repr(found).splitlines()
    head = ["module", "qualname", "line", "spelling", "phase"]
    assert [line.split() for line in lines] == [head, *rows]
    column = lines[0].index("line")
    assert {line[column - 1] for line in lines} == {" "}
    assert [line[column:].split()[0] for line in lines[1:]] == [x[2] for x in rows]
    cells = re.findall("<t[hd]>(.*?)</t[hd]>", found._repr_html_())
    assert [html.unescape(x) for x in cells] == [
        cell for row in (head, *rows) for cell in row
    ]
    assert "&lt;locals&gt;" in found._repr_html_()
    assert (repr(Sites()), bool(Sites())) == ("no sites", False)


def test_sites_are_frozen_values(make_package):
    module = make_package(init=PHASES)
    found = sites(module.pair)
    first = found[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].line = None  # pyright: ignore
    assert str(first) == f"{first.name}:{first.line}" == "toy:shared:8"
    assert first == bk.Site("toy", first.qualname, first.line, "jax.vmap", first.phase)
    again = sites(module.pair)
    assert (again, hash(again)) == (found, hash(found))
    assert isinstance(found[1:], Sites)
    assert list(found[1:]) == list(found)[1:] != found


def users(x: Any) -> Any:
    return blackjax.nss(x)


NOTHING = [None, 3, "nss", users, int, sys, jax.numpy.sum, jax.jit(len)]


@pytest.mark.parametrize("caller", [bk.sites, VMAP])
def test_arguments_without_package_code_are_refused(caller):
    for api in NOTHING:
        with pytest.raises(ValueError, match="there is no function of the packages"):
            caller(api)
    for packages in ((), ("black", "blackjax.n")):
        with pytest.raises(ValueError, match="there is no function of the packages"):
            caller(blackjax.nss, packages=packages)


@pytest.mark.parametrize("packages", ["blackjax", (1,), None])
@pytest.mark.usefixtures("no_type_checks")
def test_wrong_packages_are_named(packages):
    for caller in (bk.sites, VMAP):
        with pytest.raises(TypeError, match=r"\(packages=.*tuple of names"):
            caller(blackjax.nss, packages=packages)


def blackjax_modules() -> list[str]:
    root = Path(blackjax.__path__[0])
    paths = [x for x in sorted(root.rglob("*.py")) if "vmap" in x.read_text()]
    names = [x.relative_to(root.parent).with_suffix("").parts for x in paths]
    return [".".join(x).removesuffix(".__init__") for x in names]


@pytest.mark.parametrize("name", blackjax_modules())
def test_every_vmap_of_blackjax_is_found_where_it_stands(name):
    module: ModuleType = importlib.import_module(name)
    expected = vmaps_in(inspect.getsource(module))
    assert places(bk.sites(module), name) == expected


def test_sites_of_nested_sampling_have_their_phases():
    found = {(x.name, x.phase) for x in bk.sites(blackjax.nss)}
    update = "update_with_mcmc_take_last.<locals>.update_function"
    assert (f"blackjax.ns.from_mcmc:{update}", "step") in found
    assert ("blackjax.ns.nss:as_top_level_api.<locals>.init_fn", None) in found

    def density(x: Any) -> Any:
        raise AssertionError("was run")

    algorithm = blackjax.nss(density, density, num_inner_steps=2)
    built = {(x.name, x.phase) for x in bk.sites(algorithm)}
    assert (f"blackjax.ns.from_mcmc:{update}", "step") in built
    assert ("blackjax.ns.nss:as_top_level_api.<locals>.init_fn", "init") in built
    rows = "blackjax.smc.tuning.from_particles:particles_as_rows"
    assert {(rows, "init"), (rows, "step")} <= built
    rebuilt = bk.rebuild_sampler(algorithm, batcher=bk.Chunked(2))
    assert bk.sites(rebuilt) == bk.sites(algorithm)
