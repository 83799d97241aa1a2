"""Python values: what they consist of, whose they are, and which of them are vmaps.

All that looks for functions inside of values (to copy them, to find sites, to mark the
user's functions) does so with `walk` and `flatten`. A value is opened if it is a dict,
tuple, list, `functools.partial`, bound method, or a plain instance of a class of the
packages. Objects of other kinds are shared, never copied.
"""

import contextlib
import copy
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, final

import jax

from ..batchers import Site


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
        identity = key(node)
        if identity not in seen:
            seen[identity] = node
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

            return [*value, *value.values()], [*[None] * count, *value], make_dict
        case tuple() if hasattr(value, "_fields"):
            kind: Any = type(value)
            return [*value], [*kind._fields], kind._make
        case tuple() | list():
            return [*value], [None] * len(value), type(value)
        case functools.partial():

            def make_partial(new: list[Any]) -> Any:
                function, args, by_name = new
                keywords = dict(zip(value.keywords, by_name, strict=True))
                return type(value)(function, *args, **keywords)

            keywords = tuple(value.keywords.values())
            return [value.func, value.args, keywords], [None] * 3, make_partial
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
    found: list[tuple[str, Any]] = []
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):
            found.append((name, cell.cell_contents))
    return found


def attribute(value: Any, name: str) -> Any:
    """Return an attribute, or None where there is none or looking it up raises."""
    try:
        return getattr(value, name, None)
    except Exception:  # `__getattr__` of a foreign class may raise anything
        return None


@functools.lru_cache(maxsize=4096)  # reading a sampler asks a hundred thousand times
def _lies_in(module_name: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module_name}.".startswith(f"{name}.") for name in packages)


@final
@dataclass(frozen=True)
class Packages:
    """The packages whose functions are rebuilt, by name."""

    names: tuple[str, ...]

    def hold(self, module_name: Any) -> bool:
        """Return True if a module of this name lies in one of the packages."""
        return isinstance(module_name, str) and _lies_in(module_name, self.names)

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


# Vmaps, and what rebuilding made

# The attribute under which a function has its record.
RECORD: Final = "__batchkit_record__"
# The attribute of a stand-in for a module that holds the module.
ORIGINAL: Final = "__batchkit_original__"


@final
@dataclass(frozen=True)
class Mapped:
    """A function that a stand-in for `jax.vmap` has mapped, and how."""

    fun: Callable[..., Any]
    arguments: dict[str, Any]
    site: Site
    copier: Any


@final
@dataclass
class Record:
    """How rebuilding made a function: a copy, an entry point, a mapped one, a vmap."""

    # `functools.wraps` hands the attributes of a function on to whatever wraps it, so a
    # record names its owner and means nothing on any other function.
    owner: weakref.ref[Any]
    original: weakref.ref[Any] | None = None  # of a copy, which does not keep it alive
    entry: Any = None  # the entry point of a copy
    behind: Any = None  # the copy that an entry point calls
    mapped: Mapped | None = None
    is_stand_in: bool = False


def record(function: Any, **made: Any) -> Any:
    """Note how a function was made, and return it."""
    # Where `functools.wraps` has handed on another record, it is replaced.
    previous = record_of(function) or Record(weakref.ref(function))
    function.__dict__[RECORD] = dataclasses.replace(previous, **made)
    return function


def record_of(value: object) -> Record | None:
    """Return how rebuilding made a value, or None if it did not."""
    if not isinstance(value, FunctionType):
        return None
    found = value.__dict__.get(RECORD)
    return found if found is not None and found.owner() is value else None


def attributes_of(function: FunctionType) -> dict[str, Any]:
    """Return the attributes of a function, without its record."""
    return {k: x for k, x in function.__dict__.items() if k != RECORD}


def is_vmap(value: object) -> bool:
    """Return True for `jax.vmap` or a stand-in for it."""
    made = record_of(value)
    return value is jax.vmap or (made is not None and made.is_stand_in)


def holds_vmap(value: object) -> bool:
    """Return True for a vmap, or a partial or a container of one."""
    inner = parts(value)  # of most values none, and a walk costs more
    return is_vmap(value) or (bool(inner) and any(map(is_vmap, walk(inner, parts))))


def original_module(module: ModuleType) -> ModuleType:
    """Return the module behind a stand-in, and any other as it is."""
    return vars(module).get(ORIGINAL, module)


def mapped_by_jax(value: object) -> Any:
    """Return the function that `jax.vmap` made a value from, or None."""
    made = _behind_boundary(value)
    if made is None or made.__code__ is not CODE_OF_MAPPED:
        return None
    return dict(closure_contents(made)).get("fun")


def shared_functions(function: FunctionType) -> list[Any]:
    """Return the functions inside a foreign function that is shared, never copied.

    Such a function is mapped, or generic with a table and a cache of its own.
    """
    registry = getattr(function, "registry", None)  # of `functools.singledispatch`
    if isinstance(registry, Mapping):
        return list(registry.values())
    fun = mapped_by_jax(function)
    return [] if fun is None else [fun]


def _behind_boundary(value: object) -> FunctionType | None:
    """Return the function inside the wrapper that JAX puts around public functions."""
    if not isinstance(value, FunctionType) or value.__code__ is not CODE_OF_BOUNDARY:
        return None
    inner = dict(closure_contents(value)).get("fun")
    return inner if isinstance(inner, FunctionType) else None


# A function that `jax.vmap` mapped while its module was imported, such as one decorated
# by `@jax.vmap`, is recognised by the code of the wrapper that JAX makes. No public
# interface names that code, so it is read off an example. Tried with JAX 0.9.0, 0.10.2
# and 0.12.0.

_MODEL = jax.vmap(lambda x: x)
CODE_OF_BOUNDARY = _MODEL.__code__  # pyright: ignore
_MADE = _behind_boundary(_MODEL)

# The code that runs when something mapped by `jax.vmap` is called, with the function
# and the axes among its variables; None with a JAX whose wrappers have another form.
CODE_OF_MAPPED = None if _MADE is None else _MADE.__code__
