"""Copying functions into another namespace.

A Python function is a code object and a namespace in which its global names are looked
up. The copy of a function is the same code object with another namespace, in which
`jax.vmap` is the batcher's and every function of the package is a copy made the same
way: its defaults, its closure, and what its global names refer to. The original, its
module and `jax` are only read.

A copier makes all copies for one `Mapper`. It remembers them, so that a function has
one copy however it is reached (blackjax compares functions with `is`) and cycles end.
Namespaces are filled name by name, for the names that the copied code reads, so that
neither cycles of imports nor long chains of calls matter.
"""

import builtins
import contextlib
import functools
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any, final

from ..batchers import Site
from ._code import global_names, looks_up_names_at_run_time
from ._dispatch import copied_generic, is_generic
from ._errors import UnreachableSiteError
from ._expensive import Marker
from ._finder import closure_contents, site_of_decorator
from ._found import Found
from ._hidden import HiddenSites, holder_of, is_cache
from ._inside import holds, with_changed
from ._mapper import Mapper
from ._marks import BEHIND_ENTRY, MARKS, ORIGINAL, REBUILT, SOURCE, mark, marked
from ._memory import Memory, SharedCells
from ._modules import ModuleStandIn, original_module
from ._ownership import Packages
from ._users import users_functions
from ._vmaps import Mapped, is_vmap, leads_to_vmap, mapped_by, mapped_function


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
class Copier:
    """Makes and remembers the copies in which a mapper's `vmap` is the vmap."""

    def __init__(
        self, mapper: Mapper, packages: Packages, cells: SharedCells, marker: Marker
    ) -> None:
        self._packages = packages
        self._marker = marker
        self._mapper = mapper
        self._cells = cells
        self._hidden = HiddenSites(packages)
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._memory = Memory()
        self._namespaces: dict[int, dict[str, Any]] = {}
        self._unresolved: list[tuple[dict[str, Any], str]] = []

    def copy(self, value: Any, found: Found = Found.IN_CLOSURE) -> Any:
        """`value` with every function of the packages in it replaced by its copy.

        What holds no such function comes back as it is, the same object.
        """
        with self.operation():
            result = self._copy(value, found)
        return result

    def operation(self) -> contextlib.AbstractContextManager[None]:
        """In its body nothing is copied twice; what fails leaves nothing behind."""
        return self._memory.operation()

    def opens(self, value: Any) -> bool:
        """Whether functions are looked for in the attributes of `value`."""
        return self._packages.own_instance(value)

    def holds_package_code(self, value: Any, found: Found = Found.IN_CLOSURE) -> bool:
        """Whether `copy` would return something other than `value`."""
        wanted = functools.partial(self._is_copied, found=found)
        return holds(value, wanted, self.opens)

    def is_users_function(self, value: Any) -> bool:
        """Whether `value` can be called and is neither a class nor of the packages."""
        if not callable(value) or isinstance(value, type):
            return False
        return not self.made(value) and not self.holds_package_code(value)

    def made(self, value: Any) -> bool:
        """Whether `value` is a function with a namespace of this copier."""
        if not isinstance(value, FunctionType):
            return False
        if mapped_by(value) is self._mapper:
            return True
        return value.__globals__.get(REBUILT) is self

    def copies(self, value: Any, found: Found) -> bool:
        """Whether `value` itself is copied, whatever may be inside it."""
        return self._is_copied(value, found)

    def refuse_hidden(self, value: Any, found: Found) -> None:
        """Raises `UnreachableSiteError` for a vmap that is out of reach."""
        site = self._hidden_site(value, found)
        if site is not None:
            raise UnreachableSiteError(holder_of(value), site)

    def resolve_late_names(self) -> None:
        """Looks again for global names that did not exist when they were first read."""
        with self._memory.operation():
            unresolved, self._unresolved = self._unresolved, []
            self._memory.on_failure(lambda: self._unresolved.extend(unresolved))
            for namespace, name in unresolved:
                self._fill(namespace, name)

    def _remember(self, value: Any, new: Any, found: Found) -> Any:
        lasting = found is Found.IN_MODULE or isinstance(value, ModuleType)
        return self._memory.remember(value, new, lasting)

    # Deciding

    def _is_copied(self, value: Any, found: Found) -> bool:
        if self._offers_vmap(value):
            return found is not Found.IN_ARGUMENT and value is not self._mapper.vmap
        if isinstance(value, FunctionType):
            if self.made(value):
                return False
            return (
                marked(value, BEHIND_ENTRY) is not None
                or mapped_by(value) is not None
                or self._packages.wrote(value)
                or self._packages.wrapped(value)
                or (found is Found.IN_MODULE and self._leads_to_package(value))
            )
        if isinstance(value, ModuleType):
            return self._packages.own_module(value)
        if isinstance(value, type):
            return self._packages.own_class(value)
        if is_cache(value):
            return self.holds_package_code(value.__wrapped__)
        return self._hidden_site(value, found) is not None

    def _offers_vmap(self, value: Any) -> bool:
        """Whether it is `jax.vmap`, or somebody else's module that has it."""
        return leads_to_vmap(value) and not self._packages.own_module(value)

    def _leads_to_package(self, value: Any) -> bool:
        """Whether somebody else's function closes over code of the packages."""
        seen: set[int] = set()
        pending = [value]
        while pending:
            item = pending.pop()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, FunctionType) and not self._packages.wrote(item):
                if mapped_function(item) is not None:
                    return True
                pending.extend(contents for _, contents in closure_contents(item))
            elif self.holds_package_code(item) and not self._offers_vmap(item):
                return True
        return False

    def _hidden_site(self, value: Any, found: Found) -> Site | None:
        """A vmap that cannot be exchanged in `value` although the policy wants it."""
        for site in self._hidden.of(value, found is Found.IN_MODULE):
            if not self._mapper.leaves(site):
                return site
        return None

    # Copying

    def _copy(self, value: Any, found: Found) -> Any:
        known = self._memory.recall(value)
        if known is not None:
            return known
        if not self.holds_package_code(value, found):
            return value
        if is_vmap(value):
            return self._mapper.vmap
        if isinstance(value, FunctionType):
            return self._copy_function(value, found)
        if isinstance(value, ModuleType):
            return self._remember(value, self._copy_module(value), found)
        self.refuse_hidden(value, found)
        if isinstance(value, type):
            return value
        if is_cache(value):
            cached = self._copy(value.__wrapped__, Found.IN_MODULE)
            new = functools.lru_cache(**value.cache_parameters())(cached)
            return self._remember(value, new, found)
        is_partial = isinstance(value, functools.partial)

        def change(part: Any, name: str | None) -> Any:
            if is_partial and found is Found.IN_CLOSURE and part is not value.func:
                # Given to it by the user.
                return self._marked(self._copy(part, Found.IN_ARGUMENT), name or "")
            return self._copy(part, found)

        remember = functools.partial(self._remember, found=found)
        return remember(value, with_changed(value, change, remember))

    def _copy_function(self, function: FunctionType, found: Found) -> Any:
        for name in (BEHIND_ENTRY, ORIGINAL):  # rebuilt before, perhaps for another
            target = marked(function, name)
            if target is not None:
                return self._copy(target, found)
        mapped = mapped_function(function)
        if mapped is not None and (mapped.site or found is not Found.IN_ARGUMENT):
            return self._remember(function, self._map_again(function, mapped), found)
        if not self._packages.wrote(function):
            return self._copy_wrapper(function, found)
        source = function.__globals__.get(SOURCE, function.__globals__)
        namespace = self._namespace(source)
        names = function.__code__.co_freevars
        closure = tuple(
            self._copy_cell(cell, name=name)
            for cell, name in zip(function.__closure__ or (), names, strict=True)
        )
        new = FunctionType(
            function.__code__, namespace, function.__name__, None, closure or None
        )
        self._remember(function, new, found)
        self._memory.later(lambda: self._complete(new, function, source))
        return new

    def _map_again(self, function: FunctionType, mapped: Mapped) -> Any:
        """What has been mapped already, by another batcher."""
        where = Found.IN_MODULE if mapped.site is None else Found.IN_CLOSURE
        site = mapped.site or site_of_decorator(function)
        fun = self._copy(mapped.fun, where)
        return self._mapper.map(Mapped(fun, mapped.arguments, site))

    def _complete(
        self, new: FunctionType, function: FunctionType, source: dict[str, Any]
    ) -> None:
        """Gives a copy what may lead back to itself: defaults, attributes, names."""
        new.__defaults__ = self._copy(function.__defaults__, Found.IN_MODULE)
        new.__kwdefaults__ = self._copy(function.__kwdefaults__, Found.IN_MODULE)
        self._dress(new, function)
        mark(new, ORIGINAL, function)
        if looks_up_names_at_run_time(function.__code__):
            for name in list(source):
                self._fill(new.__globals__, name)
        for path in global_names(function.__code__):
            self._fill(new.__globals__, path[0])
            self._follow(new.__globals__, path)

    def _dress(self, new: FunctionType, function: FunctionType) -> None:
        """Makes a copy look like its original."""
        new.__annotations__ = function.__annotations__
        new.__module__ = function.__module__
        new.__qualname__ = function.__qualname__
        new.__doc__ = function.__doc__
        for name, value in function.__dict__.items():
            if name not in MARKS:
                new.__dict__[name] = self._copy(value, Found.IN_CLOSURE)

    def _copy_wrapper(self, function: FunctionType, found: Found) -> Any:
        """Copies somebody else's wrapper around code of the packages.

        Its code keeps its own namespace; only what it closes over is exchanged.
        """
        if is_generic(function):
            copy = functools.partial(self._copy, found=Found.IN_MODULE)
            return self._remember(function, copied_generic(function, copy), found)
        if not self._leads_to_package(function):
            return function
        closure = tuple(self._copy_wrapper_cell(c) for c in function.__closure__ or ())
        new = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            closure or None,
        )
        self._remember(function, new, found)
        new.__kwdefaults__ = function.__kwdefaults__
        self._memory.later(lambda: self._dress(new, function))
        return new

    def _copy_wrapper_cell(self, cell: CellType) -> CellType:
        def copy(contents: Any) -> Any:
            if self._offers_vmap(contents):
                return contents  # somebody else's, since the wrapper is
            if isinstance(contents, FunctionType) and self._leads_to_package(contents):
                known = self._memory.recall(contents)
                if known is not None:
                    return known
                return self._copy_function(contents, Found.IN_CLOSURE)
            return self._copy(contents, Found.IN_CLOSURE)

        return self._copy_cell(cell, copy)

    def _copy_cell(
        self,
        cell: CellType,
        copy: Callable[[Any], Any] | None = None,
        name: str = "function",
    ) -> CellType:
        """A new cell, shared by all copies of the functions that share the old one."""
        known = self._memory.recall(cell)
        if known is not None:
            return known
        if copy is None and self._holds_data(cell):
            contents = self._marked(cell.cell_contents, name)
            if contents is not cell.cell_contents:
                return self._remember(cell, CellType(contents), Found.IN_CLOSURE)
            return self._remember(cell, self._cells.new(cell), Found.IN_CLOSURE)
        new = self._remember(cell, CellType(), Found.IN_CLOSURE)

        def fill() -> None:
            try:
                contents = cell.cell_contents
            except ValueError:  # the original has not been assigned either
                return
            if copy is None:
                new.cell_contents = self._copy(contents, Found.IN_CLOSURE)
            else:
                new.cell_contents = copy(contents)

        self._memory.later(fill)
        return new

    def _marked(self, value: Any, name: str) -> Any:
        """A function of the user's marked for batchers that look for it."""
        if not any(users_functions(value, self._packages)) or not callable(value):
            return value
        return self._marker.function(value, name or "function")

    def _holds_data(self, cell: CellType) -> bool:
        try:
            return not self.holds_package_code(cell.cell_contents)
        except ValueError:  # not assigned yet
            return False

    # Namespaces and modules

    def _namespace(self, source: dict[str, Any]) -> dict[str, Any]:
        if id(source) not in self._namespaces:
            namespace = {name: source[name] for name in _MODULE_NAMES if name in source}
            namespace["__builtins__"] = self._builtins
            namespace[REBUILT] = self
            namespace[SOURCE] = source
            self._namespaces[id(source)] = namespace
        return self._namespaces[id(source)]

    def _fill(self, namespace: dict[str, Any], name: str) -> None:
        if name in namespace:
            return
        source = namespace[SOURCE]
        if name in source:
            namespace[name] = self._copy(source[name], Found.IN_MODULE)
            self._memory.on_failure(lambda: namespace.pop(name, None))
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
            return self._copy(original_module(module), Found.IN_MODULE)
        if not self._packages.own_module(module):

            def look_up_there(name: str) -> Any:
                with self.operation():
                    found = self.copy(getattr(module, name), Found.IN_MODULE)
                    # `jax.numpy` and the like are read at every turn.
                    vars(stand_in)[name] = found
                    self._memory.on_failure(lambda: vars(stand_in).pop(name, None))
                return found

            stand_in = ModuleStandIn(module, look_up_there, {})
            return stand_in
        namespace = self._namespace(vars(module))

        def look_up(name: str) -> Any:
            with self._memory.operation():
                self._fill(namespace, name)
            return namespace[name] if name in namespace else getattr(module, name)

        return ModuleStandIn(module, look_up, namespace)

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """`import` inside a rebuilt function."""
        module = builtins.__import__(name, *args, **kwargs)
        return self.copy(module, Found.IN_MODULE)
