"""Promises of rebuilding, on random packages.

The batcher of these tests is `jax.vmap` and records the number of rows of each call. No
two sites of a program map equally many rows, so the records identify the sites.
"""

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import batchkit as bk

from .random_packages.sources import ADDERS, Sources
from .random_packages.synthetic import Program, carriers, programs, refusals, routes


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        # On a busy machine drawing a program may take long.
        suppress_health_check=[HealthCheck.too_slow],
    )


@final
class Api(NamedTuple):
    """An API with one function."""

    f0: Any


@final
class Recorder(bk.AbstractBatcher):
    """`Vmap` that records the number of rows of each call."""

    sizes: list[int] = eqx.field(static=True)

    def batch(self, call: Any) -> Any:
        # All but one of the arguments are numbers.
        self.sizes.append(max(map(np.size, call.args)))
        return call.vmap()


def rebuild(api: Any, sizes: list[int]) -> Any:
    return bk.rebuild_sampler(api, batcher=Recorder(sizes), packages=("toy",))


# The function `f0` of a module, rebuilt in various forms.
FORMS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "function": lambda module, new: new(module.f0),
    "module": lambda module, new: new(module).f0,
    "partial": lambda module, new: new(functools.partial(module.f0)),
    "table": lambda module, new: new({"f": [module.f0]})["f"][0],
}
forms = st.sampled_from([*FORMS])
arguments = st.tuples(st.integers(0, 2), st.integers(0, 1))


@examples(40)
@given(programs(), forms, arguments)
def test_nothing_of_the_original_changes(
    program: Program, form: str, arguments: tuple[int, int]
) -> None:
    with program.sources.imported() as modules:
        before = snapshot(modules.values())
        copy = FORMS[form](modules[program.entry], lambda api: rebuild(api, []))
        copy(*arguments)
        assert_unchanged(snapshot(modules.values()), before)


def snapshot(modules: Iterable[types.ModuleType]) -> dict[tuple[Any, ...], Any]:
    """Return every value that the modules lead to, by its path."""
    places: dict[tuple[Any, ...], Any] = {("jax", x): y for x, y in vars(jax).items()}
    seen: set[int] = set()
    pending: list[tuple[tuple[Any, ...], Any]] = [((m.__name__,), m) for m in modules]
    while pending:
        place, value = pending.pop()
        places[place] = value
        if id(value) not in seen:
            seen.add(id(value))
            pending += [((*place, name), part) for name, part in parts_of(value)]
    return places


def assert_unchanged(after: Mapping[Any, Any], before: Mapping[Any, Any]) -> None:
    assert after.keys() == before.keys()
    for place, value in before.items():
        assert after[place] is value, place


def parts_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the parts of a value, of the kinds that random programs have."""
    if isinstance(value, types.FunctionType):
        for name in ("__code__", "__defaults__", "__kwdefaults__", "__dict__"):
            yield name, getattr(value, name)
        for i, cell in enumerate(value.__closure__ or ()):
            yield i, cell.cell_contents
    elif isinstance(value, dict):
        yield from enumerate((*value.keys(), *value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from enumerate(value)
    elif isinstance(value, functools.partial):
        yield from enumerate((value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield from enumerate((value.__func__, value.__self__))
    elif is_ours(value):
        yield from ((x, y) for x, y in vars(value).items() if x[:2] != "__")
    elif is_ours(type(value)):
        yield from getattr(value, "__dict__", {}).items()


def is_ours(value: Any) -> bool:
    """Return whether a value is a module or a class of the programs."""
    if not isinstance(value, type | types.ModuleType):
        return False
    name = value.__module__ if isinstance(value, type) else value.__name__
    return name.split(".")[0] in ("toy", "theirs")


@examples(80)
@given(programs(), forms, arguments)
def test_copy_returns_the_same_and_every_vmap_gets_its_own_batcher(
    program: Program, form: str, arguments: tuple[int, int]
) -> None:
    with program.sources.imported() as modules:
        original = modules[program.entry]
        first: list[int] = []
        second: list[int] = []
        copies = [
            FORMS[form](original, lambda api, sizes=sizes: rebuild(api, sizes))
            for sizes in (first, second)
        ]
        result, sizes = program.expected(*arguments)
        assert copies[0](*arguments) == result
        assert (first, second) == (sizes, [])
        assert copies[1](*arguments) == result
        assert original.f0(*arguments) == result
        assert (first, second) == (sizes, sizes)


@examples(40)
@given(programs(), forms, forms, arguments)
def test_what_was_rebuilt_takes_another_batcher(
    program: Program, form: str, other: str, arguments: tuple[int, int]
) -> None:
    with program.sources.imported() as modules:
        original = modules[program.entry]
        first: list[int] = []
        second: list[int] = []
        copy = FORMS[form](original, lambda api: rebuild(api, first))
        again = FORMS[other](Api(copy), lambda api: rebuild(api, second))
        result, sizes = program.expected(*arguments)
        assert again(*arguments) == result
        assert (first, second) == ([], sizes)
        assert copy(*arguments) == result
        assert (first, second) == (sizes, sizes)


@examples(40)
@given(programs(late=True), arguments)
def test_names_defined_after_rebuilding_are_found(
    program: Program, arguments: tuple[int, int]
) -> None:
    sizes: list[int] = []
    copies: list[Any] = []

    def half_way(f0: Any) -> None:
        copies.append(rebuild(f0, sizes))

    with program.sources.imported(half_way):
        assert (copies[0](*arguments), sizes) == program.expected(*arguments)


@examples(40)
@given(refusals(), forms)
def test_what_cannot_be_reached_is_refused(sources: Sources, form: str) -> None:
    with sources.imported() as modules:
        before = snapshot(modules.values())
        with pytest.raises(bk.UnreachableSiteError):
            FORMS[form](modules["toy"], lambda api: rebuild(api, []))(0, 0)
        assert_unchanged(snapshot(modules.values()), before)


# Origins of a function that is passed to a rebuilt one.
REBUILT: dict[str, Callable[[Any, Any], Any]] = {
    "original": lambda toy, new: toy.far.goal,
    "rebuilt with it": lambda toy, new: new.far.goal,
    "rebuilt for another batcher": lambda toy, new: rebuild(toy, []).far.goal,
}


@examples(40)
@given(routes(), st.sampled_from([*REBUILT]))
def test_a_function_has_one_copy(sources: Sources, handed: str) -> None:
    with sources.imported() as modules:
        toy = modules["toy"]
        sizes: list[int] = []
        new = rebuild(toy, sizes)
        found = new.f0(REBUILT[handed](toy, new))
        assert all(copy is new.far.goal for copy in found)
        assert all(original is toy.far.goal for original in toy.f0(toy.far.goal))
        assert found[0] is not toy.far.goal
        assert found[0](3, 1) == toy.far.goal(3, 1)
        assert sizes == [3]


# Ways to pass a user's function to a rebuilt function.
HANDED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "by position": lambda toy, new, u: functools.partial(new(toy.f0), u),
    "by name": lambda toy, new, u: functools.partial(new(toy.f0), u=u),
    "in a partial": lambda toy, new, u: new(functools.partial(toy.f0, u)),
    "by name in a partial": lambda toy, new, u: new(functools.partial(toy.f0, u=u)),
    "to build": lambda toy, new, u: new(toy.build)(u),
}
ROWS = np.arange(3)
adders = st.sampled_from([*ADDERS.values()])


def adder(text: str, modules: Mapping[str, types.ModuleType]) -> Any:
    """Make a function in the user's module."""
    return eval(text, vars(modules["theirs"]))


@examples(40)
@given(carriers(), st.sampled_from([*HANDED]), adders)
def test_users_functions_arrive_as_they_are(
    sources: Sources, handed: str, user: str
) -> None:
    with sources.imported() as modules:
        users = adder(user, modules)
        sizes: list[int] = []
        run = HANDED[handed](modules["toy"], lambda api: rebuild(api, sizes), users)
        arrived, *results = run(x=ROWS)
        assert arrived is users
        np.testing.assert_array_equal(results, [ROWS + 1, ROWS + 2])
        assert sizes == [3]


@examples(40)
@given(carriers(), adders)
def test_users_vmaps_stay_in_what_upstream_built(sources: Sources, user: str) -> None:
    with sources.imported() as modules:
        toy = modules["toy"]
        sizes: list[int] = []
        built = toy.build(adder(user, modules))
        _, *results = rebuild(built, sizes)(ROWS)
        np.testing.assert_array_equal(results, [ROWS + 1, ROWS + 2])
        assert sizes == [3]
