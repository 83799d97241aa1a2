"""Traversal of Python values: taking them apart, putting them together, their owners.

All that looks for functions inside of values (to copy them, to find sites, to mark the
user's functions) does so with `walk` and `flatten`. A value is opened if it is a dict,
tuple, list, set, `functools.partial`, bound method, or a plain instance of a class of
the packages. Objects of other kinds are shared, never copied.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, final


def walk(
    roots: Iterable[Any],
    inside: Callable[[Any], Iterable[Any]],
    key: Callable[[Any], Any] = id,
    seen: dict[Any, Any] | None = None,
) -> Iterator[Any]:
    """Yield all that is reached from some roots, each node once.

    **Arguments:**

    - `roots`: where to begin.
    - `inside`: the nodes that a node leads to; asked after the node was yielded.
    - `key`: identifies a node.
    - `seen`: nodes to leave out, by key; those that are reached are added.
    """
    # With the nodes themselves, so that no id is used again meanwhile.
    seen = {} if seen is None else seen
    pending = list(roots)
    while pending:
        node = pending.pop()
        if key(node) not in seen:
            seen[key(node)] = node
            yield node
            pending.extend(inside(node))


def flatten(
    value: Any, opens: Callable[[Any], bool]
) -> tuple[
    list[Any],
    list[str | None],
    Callable[[], Any],
    Callable[[Any, list[Any]], Any],
]:
    """Take a value apart.

    **Arguments:**

    - `value`: anything; what is not opened has no parts.
    - `opens`: whether the attributes of an instance are parts of it.

    **Returns:**

    The parts; the name of each, which is that of an attribute, a key or an argument;
    and two functions that make such a value of other parts. `begin()` returns the new
    value without its parts if it is mutable, else None; `finish(begun, parts)` returns
    it with them. A value that contains itself ends at what was begun.
    """
    names: Iterable[Any]

    def begin() -> Any:
        return None

    def begin_container() -> Any:
        made = copy.copy(value)
        made.clear()
        return made

    if isinstance(value, dict):
        found, names = [*value, *value.values()], [*(None for _ in value), *value]
        begin = begin_container

        def finish(begun: Any, new: list[Any]) -> Any:
            begun.update(zip(new[: len(value)], new[len(value) :], strict=True))
            return begun

    elif isinstance(value, list | set):
        found, names = [*value], [None for _ in value]
        begin = begin_container

        def finish(begun: Any, new: list[Any]) -> Any:
            begun.extend(new) if isinstance(begun, list) else begun.update(new)
            return begun

    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found, names = [*value], value._fields  # pyright: ignore

        def finish(begun: Any, new: list[Any]) -> Any:
            return type(value)._make(new)  # pyright: ignore

    elif isinstance(value, tuple | frozenset):
        found, names = [*value], [None for _ in value]

        def finish(begun: Any, new: list[Any]) -> Any:
            return type(value)(new)

    elif isinstance(value, functools.partial):
        found = [value.func, *value.args, *value.keywords.values()]
        count = 1 + len(value.args)
        names = [*(None for _ in found[:count]), *value.keywords]

        def finish(begun: Any, new: list[Any]) -> Any:
            keywords = zip(value.keywords, new[count:], strict=True)
            return type(value)(*new[:count], **dict(keywords))

    elif isinstance(value, MethodType):
        found, names = [value.__func__, value.__self__], [None, None]

        def finish(begun: Any, new: list[Any]) -> Any:
            return MethodType(*new)

    else:
        attributes = vars(value) if opens(value) else {}
        found, names = [*attributes.values()], [*attributes]

        def begin() -> Any:
            return object.__new__(type(value))

        def finish(begun: Any, new: list[Any]) -> Any:
            # Not by `setattr`, which a frozen dataclass refuses.
            vars(begun).update(zip(attributes, new, strict=True))
            return begun

    names = [x if isinstance(x, str) else None for x in names]
    return found, names, begin, finish


def parts(value: Any, opens: Callable[[Any], bool] = lambda _: False) -> list[Any]:
    """Return what a value consists of; nothing for a leaf."""
    return flatten(value, opens)[0]


def remade_function(
    function: FunctionType, names: dict[str, Any], cells: Iterable[CellType]
) -> FunctionType:
    """Return a function with the same code, other global names and another closure.

    It gets no attributes: those of the original may have to be copied as well.
    """
    defaults, closure = function.__defaults__, tuple(cells) or None
    new = FunctionType(function.__code__, names, function.__name__, defaults, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(new, function, updated=())
    del new.__wrapped__  # pyright: ignore
    return new


def closure_contents(function: FunctionType) -> list[tuple[str, Any]]:
    """Return what a function closes over, by name, as far as it has been assigned."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [(name, cell.cell_contents) for name, cell in cells if is_filled(cell)]


def is_filled(cell: CellType) -> bool:
    """Return whether a cell of a closure has been assigned."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def attribute(value: Any, name: str) -> Any:
    """Return an attribute, or None where there is none or looking it up raises."""
    try:
        return getattr(value, name, None)
    except Exception:  # `__getattr__` of a foreign class may raise anything
        return None


@final
@dataclass(frozen=True)
class Packages:
    """The packages whose functions are rebuilt, by name."""

    names: tuple[str, ...]

    def hold(self, module_name: Any) -> bool:
        """Return whether a module of this name lies in one of the packages."""
        if not isinstance(module_name, str):
            return False
        return any(f"{module_name}.".startswith(f"{name}.") for name in self.names)

    def own(self, value: object) -> bool:
        """Return whether a value comes from the packages.

        A function does if its code stands there. Its globals are asked, not its
        `__module__`, which `functools.wraps` copies. An instance does if its class
        stands there.
        """
        if isinstance(value, FunctionType):
            return self.hold(value.__globals__.get("__name__"))
        if isinstance(value, ModuleType):
            return self.hold(value.__name__)
        cls = value if isinstance(value, type) else type(value)
        return self.hold(cls.__module__)

    def wrapped(self, function: FunctionType) -> bool:
        """Return whether it is a foreign wrapper of a function of the packages."""
        return self.hold(function.__module__) and not self.own(function)

    def opens(self, value: object) -> bool:
        """Return whether a value is a plain instance of a class of the packages.

        All that such an instance has is in its `__dict__`, so it can be made anew.
        """
        cls = type(value)
        return (
            self.hold(cls.__module__)
            and cls.__new__ is object.__new__
            and not any(vars(base).get("__slots__") for base in cls.__mro__)
        )


def packages_from(caller: str, packages: object) -> Packages:
    """Check the argument `packages=` of the function `caller`."""
    if not isinstance(packages, list | tuple) or not all(
        isinstance(name, str) for name in packages
    ):
        raise TypeError(
            f"{caller}(packages={packages!r}): packages must be a tuple of "
            'names such as ("blackjax",).'
        )
    return Packages(tuple(packages))
