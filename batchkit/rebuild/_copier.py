"""Copying functions into another namespace.

A Python function is a code object and a namespace in which its global names are looked
up. The copy of a function is the same code object with another namespace, in which
`jax.vmap` is the batcher's and every function of the package is a copy made the same
way: its defaults, its closure, and what its global names refer to. The original, its
module and `jax` are only read.

A copier makes all copies for one batcher. It remembers them, so that a function has one
copy however it is reached (blackjax compares functions with `is`) and cycles end.
Namespaces are filled name by name, for the names that the copied code reads, from a
queue, so that neither cycles of imports nor long chains of calls matter.
"""

import builtins
import enum
import functools
import threading
from collections import deque
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any, final

from ..batchers import AbstractBatcher
from ._code import global_references, looks_up_names_at_run_time
from ._errors import UnreachableSiteError
from ._inside import holds, with_changed
from ._modules import ModuleStandIn, original_module
from ._ownership import Packages
from ._sites import Site, closure_contents, reachable_sites
from ._vmaps import has_vmap, is_vmap, mapped_function, stand_in_for_vmap


# Under these names a rebuilt namespace keeps whose it is and what it was made from, a
# copied function its original, and an entry point the function behind it.
_COPIER = "__batchkit_copier__"
_SOURCE = "__batchkit_source__"
_ORIGINAL = "__batchkit_original__"
BEHIND_ENTRY = "__batchkit_behind_entry__"

_MODULE_NAMES = (
    "__name__",
    "__doc__",
    "__package__",
    "__spec__",
    "__loader__",
    "__file__",
    "__path__",
)


@final
class _Found(enum.Enum):
    """Where a value was found, which tells who applied a `jax.vmap` to it."""

    IN_MODULE = enum.auto()  # at the top level of a module: the package did
    IN_CLOSURE = enum.auto()  # the package did if it wrote the function, else the user
    IN_ARGUMENT = enum.auto()  # the user did


@final
class Copier:
    """Makes and remembers the copies for one batcher."""

    def __init__(self, batcher: AbstractBatcher, packages: Packages) -> None:
        self._packages = packages
        self._vmap = stand_in_for_vmap(batcher)
        self._copies: dict[int, tuple[Any, Any]] = {}  # by id; originals kept alive
        self._namespaces: dict[int, dict[str, Any]] = {}
        self._queue: deque[Callable[[], None]] = deque()
        self._unresolved: list[tuple[dict[str, Any], str]] = []
        self._site_of_class: dict[type, Site | None] = {}
        self._lock = threading.RLock()  # traces may ask from several threads
        self._builtins = {**vars(builtins), "__import__": self._import}

    def copy(self, value: Any) -> Any:
        """`value` with every function of the packages in it replaced by its copy.

        What holds no such function comes back as it is, the same object.
        """
        with self._lock:
            result = self._copy(value, _Found.IN_MODULE)
            self._drain()
            return result

    def copy_arguments(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """`copy` for what a user hands to a rebuilt function.

        A `jax.vmap` that the user applied stays theirs, whatever it is applied to.
        """
        with self._lock:
            result = self._copy((args, kwargs), _Found.IN_ARGUMENT)
            self._drain()
            return result

    def holds_package_code(self, value: Any) -> bool:
        """Whether `copy` would return something other than `value`."""
        return holds(value, self._is_copied, self.opens)

    def opens(self, value: Any) -> bool:
        """Whether functions are looked for in the attributes of `value`."""
        return self._packages.own_instance(value)

    def made(self, value: Any) -> bool:
        """Whether `value` is a function with a namespace of this copier."""
        if not isinstance(value, FunctionType):
            return False
        return value.__globals__.get(_COPIER) is self

    def resolve_late_names(self) -> None:
        """Looks again for global names that did not exist when they were first read."""
        with self._lock:
            unresolved, self._unresolved = self._unresolved, []
            for namespace, name in unresolved:
                self._fill(namespace, name)
            self._drain()

    # Deciding

    def _is_copied(self, value: Any) -> bool:
        if is_vmap(value) or mapped_function(value) is not None:
            return value is not self._vmap
        if isinstance(value, FunctionType):
            ours = self._packages.wrote(value) or self._packages.wrapped(value)
            return ours and not self.made(value)
        if isinstance(value, ModuleType):
            return self._packages.own_module(value) or has_vmap(value)
        if isinstance(value, type):
            return self._packages.own_class(value)
        return self._is_opaque(value) or (
            self._packages.own_instance(value) and self._hides_sites(type(value))
        )

    def _is_opaque(self, value: Any) -> bool:
        """Whether `value` wraps a function of the packages and cannot be opened."""
        if not callable(value):
            return False
        wrapped = getattr(value, "__wrapped__", None)
        return isinstance(wrapped, FunctionType) and self._packages.wrote(wrapped)

    def _hides_sites(self, cls: type) -> bool:
        if cls not in self._site_of_class:
            sites = reachable_sites(cls, self._packages)
            self._site_of_class[cls] = next(sites, None)
        return self._site_of_class[cls] is not None

    # Copying

    def _copy(self, value: Any, found: _Found) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if not self.holds_package_code(value):
            return value
        if is_vmap(value):
            return self._vmap
        if isinstance(value, FunctionType):
            return self._copy_function(value, found)
        if isinstance(value, ModuleType):
            return self._remember(value, self._copy_module(value))
        if isinstance(value, type):
            self._refuse_hidden_sites(value)
            return value
        if self._is_opaque(value):
            return self._remember(value, self._copy_opaque(value))
        if self._packages.own_instance(value):
            self._refuse_hidden_sites(type(value))
        change = functools.partial(self._copy, found=found)
        new = with_changed(value, change, self._remember)
        # What a user hands in is often made for one call; it need not be kept alive.
        return new if found is _Found.IN_ARGUMENT else self._remember(value, new)

    def _remember(self, value: Any, new: Any) -> Any:
        self._copies[id(value)] = (value, new)
        return new

    def _copy_function(self, function: FunctionType, found: _Found) -> Any:
        for name in (BEHIND_ENTRY, _ORIGINAL):  # rebuilt before, perhaps for another
            if name in function.__dict__:
                return self._copy(function.__dict__[name], found)
        mapped = mapped_function(function)
        if mapped is not None and self._package_applied(mapped[0], found):
            fun, arguments = mapped
            fun = self._copy(fun, _Found.IN_MODULE)
            return self._remember(function, self._vmap(fun, **arguments))
        if not self._packages.wrote(function):
            return self._remember(function, self._copy_wrapper(function))
        source = function.__globals__.get(_SOURCE, function.__globals__)
        namespace = self._namespace(source)
        closure = tuple(self._copy_cell(cell) for cell in function.__closure__ or ())
        new = FunctionType(
            function.__code__, namespace, function.__name__, None, closure or None
        )
        self._remember(function, new)
        self._queue.append(lambda: self._complete(new, function, source))
        return new

    def _package_applied(self, fun: Any, found: _Found) -> bool:
        if found is _Found.IN_CLOSURE:
            return isinstance(fun, FunctionType) and self._packages.wrote(fun)
        return found is _Found.IN_MODULE

    def _complete(
        self, new: FunctionType, function: FunctionType, source: dict[str, Any]
    ) -> None:
        """Gives a copy what may lead back to itself: defaults, attributes, names."""
        new.__defaults__ = self._copy(function.__defaults__, _Found.IN_MODULE)
        new.__kwdefaults__ = self._copy(function.__kwdefaults__, _Found.IN_MODULE)
        new.__annotations__ = function.__annotations__
        new.__module__ = function.__module__
        new.__qualname__ = function.__qualname__
        new.__doc__ = function.__doc__
        for name, value in function.__dict__.items():
            new.__dict__[name] = self._copy(value, _Found.IN_CLOSURE)
        if _SOURCE not in function.__globals__:
            new.__dict__[_ORIGINAL] = function
        if looks_up_names_at_run_time(function.__code__):
            for name in list(source):
                self._fill(new.__globals__, name)
        for reference in global_references(function.__code__):
            self._fill(new.__globals__, reference.path[0])
            self._follow(new.__globals__, reference.path)

    def _copy_wrapper(self, function: FunctionType) -> FunctionType:
        """Copies somebody else's wrapper around a function of the packages.

        Its code keeps its own namespace; only what it closes over is exchanged.
        """
        if not any(
            self._leads_to_package(contents)
            for _, contents in closure_contents(function)
        ):
            return function
        closure = tuple(self._copy_wrapper_cell(c) for c in function.__closure__ or ())
        new = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            closure,
        )
        functools.update_wrapper(new, function)
        self._remember(function, new)
        new.__kwdefaults__ = function.__kwdefaults__
        new.__dict__.pop("__wrapped__", None)
        for name, value in function.__dict__.items():
            new.__dict__[name] = self._copy(value, _Found.IN_CLOSURE)
        return new

    def _leads_to_package(self, value: Any) -> bool:
        if isinstance(value, FunctionType) and not self._is_copied(value):
            contents = [inner for _, inner in closure_contents(value)]
            return any(self._leads_to_package(inner) for inner in contents)
        return self.holds_package_code(value)

    def _copy_wrapper_cell(self, cell: CellType) -> CellType:
        contents = cell.cell_contents
        if not self._leads_to_package(contents):
            return cell
        if isinstance(contents, FunctionType) and not self._is_copied(contents):
            return CellType(self._copy_wrapper(contents))
        return CellType(self._copy(contents, _Found.IN_CLOSURE))

    def _copy_cell(self, cell: CellType) -> CellType:
        """A new cell, shared by all copies of the functions that share the old one."""
        if id(cell) not in self._copies:
            new = self._remember(cell, CellType())

            def fill() -> None:
                try:
                    contents = cell.cell_contents
                except ValueError:  # the original has not been assigned either
                    return
                new.cell_contents = self._copy(contents, _Found.IN_CLOSURE)

            self._queue.append(fill)
        return self._copies[id(cell)][1]

    def _copy_opaque(self, value: Any) -> Any:
        if hasattr(value, "cache_parameters"):  # functools.lru_cache
            return functools.lru_cache(**value.cache_parameters())(
                self._copy(value.__wrapped__, _Found.IN_MODULE)
            )
        name = f"{value.__wrapped__.__module__}.{value.__wrapped__.__qualname__}"
        for site in reachable_sites(value.__wrapped__, self._packages):
            raise UnreachableSiteError(f"The {type(value).__name__} of {name}", site)
        return value

    def _refuse_hidden_sites(self, cls: type) -> None:
        if self._hides_sites(cls):
            holder = f"The class {cls.__module__}.{cls.__qualname__}"
            raise UnreachableSiteError(holder, self._site_of_class[cls])

    # Namespaces and modules

    def _namespace(self, source: dict[str, Any]) -> dict[str, Any]:
        if id(source) not in self._namespaces:
            namespace = {name: source[name] for name in _MODULE_NAMES if name in source}
            namespace["__builtins__"] = self._builtins
            namespace[_COPIER] = self
            namespace[_SOURCE] = source
            self._namespaces[id(source)] = namespace
        return self._namespaces[id(source)]

    def _fill(self, namespace: dict[str, Any], name: str) -> None:
        if name in namespace:
            return
        source = namespace[_SOURCE]
        if name in source:
            namespace[name] = self._copy(source[name], _Found.IN_MODULE)
        elif not hasattr(builtins, name):
            self._unresolved.append((namespace, name))

    def _follow(self, namespace: dict[str, Any], path: tuple[str, ...]) -> None:
        """Copies what `a.b.c` refers to now, so that what cannot be copied says so."""
        found = namespace.get(path[0])
        for name in path[1:]:
            if not isinstance(found, ModuleStandIn):
                return
            found = getattr(found, name, None)

    def _copy_module(self, module: ModuleType) -> ModuleType:
        if isinstance(module, ModuleStandIn):
            return self._copy(original_module(module), _Found.IN_MODULE)
        if not self._packages.own_module(module):
            return ModuleStandIn(module, lambda name: self.copy(getattr(module, name)))
        namespace = self._namespace(vars(module))

        def look_up(name: str) -> Any:
            with self._lock:
                self._fill(namespace, name)
                self._drain()
            return namespace[name] if name in namespace else getattr(module, name)

        return ModuleStandIn(module, look_up)

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """`import` inside a rebuilt function."""
        return self.copy(builtins.__import__(name, *args, **kwargs))

    def _drain(self) -> None:
        while self._queue:
            self._queue.popleft()()
