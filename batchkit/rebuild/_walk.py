"""Traversal of Python values: taking them apart, putting them together, their owners.

All that looks for functions inside of values (to copy them, to find sites, to mark the
user's functions) does so with `walk` and `flatten`. A value is opened if it is a dict,
tuple, list, `functools.partial`, bound method, or a plain instance of a class of the
packages. Objects of other kinds are shared, never copied.
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
    """Yield each node that is reached from some roots, once, and add it to `seen`.

    What is `inside` a node is asked for after the node was yielded.
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
) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]]:
    """Return the parts of a value, their names, and what makes such a value of others.

    A name is that of an attribute or a key, and None where a part has neither. A leaf
    has no parts. `opens` decides whether the attributes of an instance are its parts.
    """
    match value:
        case dict():
            count = len(value)

            def make_dict(new: list[Any]) -> Any:
                made = copy.copy(value)
                made.clear()
                made.update(zip(new[:count], new[count:], strict=True))
                return made

            names = [*(None for _ in value), *value]
            return [*value, *value.values()], names, make_dict
        case tuple() if hasattr(value, "_fields"):
            kind: Any = type(value)
            return [*value], [*kind._fields], kind._make
        case tuple() | list():
            return [*value], [None for _ in value], type(value)
        case functools.partial():
            count = 1 + len(value.args)

            def make_partial(new: list[Any]) -> Any:
                keywords = dict(zip(value.keywords, new[count:], strict=True))
                return type(value)(*new[:count], **keywords)

            found = [value.func, *value.args, *value.keywords.values()]
            return found, [None for _ in found], make_partial
        case MethodType():
            found = [value.__func__, value.__self__]
            return found, [None, None], lambda new: MethodType(*new)
        case _ if opens(value):
            attributes = vars(value)

            def make_instance(new: list[Any]) -> Any:
                made = object.__new__(type(value))
                # Not by `setattr`, which a frozen dataclass refuses.
                vars(made).update(zip(attributes, new, strict=True))
                return made

            return [*attributes.values()], [*attributes], make_instance
    return [], [], lambda _: value


def parts(value: Any, opens: Callable[[Any], bool] = lambda _: False) -> list[Any]:
    """Return the parts of a value; none for a leaf."""
    return flatten(value, opens)[0]


def recursion_error(value: object) -> ValueError:
    """Return the error for a value that is one of its own parts."""
    return ValueError(
        f"A {type(value).__name__} holds functions to be rebuilt and contains itself, "
        "which cannot be copied. Keep the reference to itself elsewhere, such as in "
        "the function that uses it."
    )


def closure_contents(function: FunctionType) -> list[tuple[str, Any]]:
    """Return the variables of a closure with their values, as far as assigned."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [(name, cell.cell_contents) for name, cell in cells if is_filled(cell)]


def is_filled(cell: CellType) -> bool:
    """Return True if a cell of a closure has been assigned."""
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
        """Return True if a module of this name lies in one of the packages."""
        if not isinstance(module_name, str):
            return False
        return any(f"{module_name}.".startswith(f"{name}.") for name in self.names)

    def own(self, value: object) -> bool:
        """Return True if a function, a module or the class of a value is theirs.

        A function belongs to the module of its globals: its `__module__` is copied by
        `functools.wraps`.
        """
        if isinstance(value, FunctionType):
            return self.hold(value.__globals__.get("__name__"))
        if isinstance(value, ModuleType):
            return self.hold(value.__name__)
        cls = value if isinstance(value, type) else type(value)
        return self.hold(cls.__module__)

    def wrapped(self, function: FunctionType) -> bool:
        """Return True for a foreign wrapper of a function of the packages."""
        return self.hold(function.__module__) and not self.own(function)

    def opens(self, value: object) -> bool:
        """Return True for a plain instance of a class of the packages.

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
