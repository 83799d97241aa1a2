"""Copying functions into another namespace.

A Python function is a code object and a namespace in which its global names are looked
up. The copy of a function is the same code object with another namespace, in which
`jax.vmap` is the batcher's and every function of the packages is a copy made the same
way: its defaults, its closure, and what its global names refer to. The original, its
module and `jax` are only read.

A copier makes all copies for one `Mapper`. It remembers them, so that a function has
one copy however it is reached (blackjax compares functions with `is`) and cycles end.
"""

import builtins
import contextlib
import functools
import weakref
from collections import deque
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any, Final, final

from ._code import global_names, nonlocal_names
from ._mapper import Mapper, Namespace
from ._sites import Node, Origin, UnreachableSiteError, description_of, reachable
from ._users import Marker
from ._vmaps import (
    ORIGINAL,
    attributes_of,
    is_vmap,
    leads_to_vmap,
    original_module,
    record,
    record_of,
    shared_functions,
)
from ._walk import (
    Packages,
    closure_contents,
    flatten,
    is_filled,
    parts,
    recursion_error,
    walk,
)


# Builtins that read names which do not occur in the code of their caller.
_LOOKUPS: Final = ("globals", "eval", "exec")
# Stands for a container whose parts are being copied.
_UNFINISHED: Final = object()


@final
class ModuleStandIn(ModuleType):
    """A module as seen from rebuilt code: names are looked up when they are read.

    Modules import each other in cycles, so a stand-in may be needed before its module
    is complete.
    """

    def __init__(
        self, original: ModuleType, look_up: Callable[[str], Any], names: dict[str, Any]
    ) -> None:
        super().__init__(original.__name__, original.__doc__)
        vars(self).update({ORIGINAL: original, "_look_up": look_up, "_names": names})

    def __getattr__(self, name: str) -> Any:
        names = vars(self)["_names"]
        return names[name] if name in names else vars(self)["_look_up"](name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["_names"][name] = value

    def __dir__(self) -> list[str]:
        return dir(original_module(self))


@final
class Copier:
    """Copies of functions, made once each, in which `vmap` is that of a mapper."""

    def __init__(
        self,
        mapper: Mapper,
        packages: Packages,
        marker: Marker,
        lock: contextlib.AbstractContextManager[Any],
    ) -> None:
        self._mapper = mapper
        self._packages = packages
        self._marker = marker
        self._lock = lock
        self._builtins = {**vars(builtins), "__import__": self._import}
        # Copies whose parts, which may lead back to them, have not been copied yet.
        self._incomplete: deque[tuple[FunctionType, FunctionType]] = deque()
        self._forget()

    def _forget(self) -> None:
        # Functions are remembered for as long as they live, what stands in a module for
        # ever, and all else for the time of one call: a user's arguments must neither
        # be kept alive nor be out of date. Ids come with their originals.
        self._functions: weakref.WeakKeyDictionary[FunctionType, Any]
        self._functions = weakref.WeakKeyDictionary()
        self._lasting: dict[int, tuple[Any, Any]] = {}
        self._passing: dict[int, tuple[Any, Any]] = {}
        self._checked: dict[Any, Any] = {}
        self._incomplete.clear()

    def copy(self, value: Any, origin: Origin) -> Any:
        """Return a value with every function of the packages in it replaced by a copy.

        A value that holds no such function comes back as the same object.
        """
        with self._lock:
            self._refuse_unreachable(value, origin)
            try:
                new = self._copy(value, origin)
                while self._incomplete:
                    self._complete(*self._incomplete.popleft())
            except BaseException:  # a copy without its parts must not be found again
                self._forget()
                raise
            self._passing.clear()
            return new

    def made(self, value: Any) -> bool:
        """Return True for a function that this copier, or its code, made."""
        made = record_of(value)
        if made is not None and made.mapped is not None:
            return made.mapped.mapper is self._mapper
        names = value.__globals__ if isinstance(value, FunctionType) else None
        return isinstance(names, Namespace) and (
            names["__builtins__"] is self._builtins
        )

    def is_users_function(self, value: Any) -> bool:
        """Return True if a value can be called and is neither a class nor copied."""
        if not callable(value) or isinstance(value, type) or self.made(value):
            return False
        return not self._holds_copied(value, Origin.CLOSURE)

    def _refuse_unreachable(self, value: Any, origin: Origin) -> None:
        # Values of a module are read once, arguments of the user at every call.
        lasts = origin is Origin.MODULE
        seen = self._checked if lasts else dict(self._checked)
        nodes = [Node(value, origin)]
        found = reachable(nodes, self._packages, seen, follow_imports=False)
        for site, holder in found:
            if holder is not None and not self._mapper.leaves(site):
                self._checked.clear()
                raise UnreachableSiteError(description_of(holder), site)

    def _is_own(self, value: Any) -> bool:
        """Return True if a value is of the packages, or was rebuilt before."""
        made = record_of(value)
        rebuilt = made is not None and (made.behind or made.mapped)
        is_code = isinstance(value, FunctionType | ModuleType)
        return bool(rebuilt) or (is_code and self._packages.own(value))

    def _holds_copied(self, value: Any, origin: Origin) -> bool:
        items = walk([value], lambda x: parts(x, self._packages.opens))
        return any(self._is_copied(item, origin) for item in items)

    def _is_copied(self, value: Any, origin: Origin) -> bool:
        """Return True if `value` itself is copied, whatever may be inside it."""
        if isinstance(value, ModuleType) and self._packages.own(value):
            return True
        if leads_to_vmap(value):
            is_packages = origin in (Origin.MODULE, Origin.CLOSURE)
            return is_packages and value is not self._mapper.vmap
        if not isinstance(value, FunctionType) or self.made(value):
            return False
        opened = origin.opens_foreign or self._packages.wrapped(value)
        return self._is_own(value) or (opened and self._wraps_package_code(value))

    def _wraps_package_code(self, function: FunctionType) -> bool:
        """Return True if a foreign function closes over code of the packages."""

        def inside(item: Any) -> list[Any]:
            if not isinstance(item, FunctionType):
                return parts(item, self._packages.opens)
            if self._is_own(item) or shared_functions(item):
                return []
            return [contents for _, contents in closure_contents(item)]

        return any(map(self._is_own, walk([function], inside)))

    # Copying

    def _remember(self, value: Any, new: Any, lasts: bool = False) -> Any:
        if isinstance(value, FunctionType):
            self._functions[value] = new
        else:
            memory = self._lasting if lasts else self._passing
            memory[id(value)] = value, new
        return new

    def _recall(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._functions.get(value)
        passing = self._passing.get(id(value), (None, None))
        return self._lasting.get(id(value), passing)[1]

    def _copy(self, value: Any, origin: Origin) -> Any:
        if isinstance(value, ModuleType):
            value = original_module(value)
        remembered = self._recall(value)
        if remembered is _UNFINISHED:
            raise recursion_error(value)
        if remembered is not None:
            return remembered
        if not self._holds_copied(value, origin):
            if origin in (Origin.CLOSURE, Origin.ARGUMENT):  # it may be the user's
                self._marker.note(value)
            return value
        if is_vmap(value):
            return self._mapper.vmap
        if isinstance(value, FunctionType):
            return self._copy_function(value, origin)
        lasts = origin is Origin.MODULE
        if isinstance(value, ModuleType):
            return self._remember(value, self._stand_in(value), lasts=True)
        self._remember(value, _UNFINISHED, lasts)
        inner, _, make = flatten(value, self._packages.opens)
        if isinstance(value, functools.partial) and origin is Origin.CLOSURE:
            names = [*("function" for _ in value.args), *value.keywords]
            bound = [self._copy(x, Origin.ARGUMENT) for x in inner[1:]]
            bound = [self._marker.bound(*x) for x in zip(bound, names, strict=True)]
            new = [self._copy(value.func, origin), *bound]
        else:
            new = [self._copy(x, origin) for x in inner]
        return self._remember(value, make(new), lasts)

    def _copy_function(self, function: FunctionType, origin: Origin) -> Any:
        made = record_of(function)
        if made is not None:  # rebuilt before, perhaps for another batcher
            original = None if made.original is None else made.original()
            target = made.behind if original is None else original
            if target is not None:
                return self._copy(target, origin)
            if made.mapped is not None:
                fun = self._copy(made.mapped.fun, Origin.CLOSURE)
                arguments, site = made.mapped.arguments, made.mapped.site
                return self._remember(function, self._mapper.map(fun, arguments, site))
        code, names = function.__code__, function.__globals__
        if nonlocal_names(code):
            raise ValueError(
                f"{function.__module__}.{function.__qualname__} assigns "
                f"{', '.join(sorted(nonlocal_names(code)))} in the function around it "
                "(`nonlocal`), which a copy cannot share with others. Keep what it "
                "remembers in a list or a dict, or return it."
            )
        if self._packages.own(function):
            source = names.source if isinstance(names, Namespace) else names
            names = self._namespace(source)
        cells = [
            self._recall(cell) or self._remember(cell, CellType())
            for cell in function.__closure__ or ()
        ]
        defaults, closure = function.__defaults__, tuple(cells) or None
        new = FunctionType(code, names, function.__name__, defaults, closure)
        new.__kwdefaults__ = function.__kwdefaults__
        functools.update_wrapper(new, function, updated=())
        del new.__wrapped__  # pyright: ignore
        self._incomplete.append((new, function))
        return self._remember(function, record(new, original=weakref.ref(function)))

    def _complete(self, new: FunctionType, function: FunctionType) -> None:
        """Copy the closure and attributes of a function, its defaults and its names."""
        own = self._packages.own(function)
        code, closures = function.__code__, (function.__closure__, new.__closure__)
        cells = zip(code.co_freevars, *(x or () for x in closures), strict=True)
        for name, cell, new_cell in cells:
            if not is_filled(cell) or is_filled(new_cell):
                continue
            contents = cell.cell_contents
            copied = self._copy(contents, Origin.CLOSURE if own else Origin.WRAPPER)
            is_bound = own and copied is contents
            new_cell.cell_contents = (
                self._marker.bound(contents, name) if is_bound else copied
            )
        for name, value in attributes_of(function).items():
            new.__dict__[name] = self._copy(value, Origin.CLOSURE)
        if not own:
            return
        new.__defaults__ = self._copy(function.__defaults__, Origin.MODULE)
        new.__kwdefaults__ = self._copy(function.__kwdefaults__, Origin.MODULE)
        names: Any = new.__globals__
        for name in global_names(code):
            if name in names.source and name not in names:
                names[name] = self._copy(names.source[name], Origin.MODULE)
            elif name in _LOOKUPS and name not in names:
                raise ValueError(
                    f"A function of {names['__name__']} calls `{name}`, which can read "
                    "names that do not occur in its code, so that it cannot be "
                    "rebuilt. Name what it looks up, or leave its package out of "
                    "`packages`."
                )

    # Namespaces and modules

    def _namespace(self, source: dict[str, Any]) -> Namespace:
        def look_up(name: str) -> Any:
            return self.copy(source[name], Origin.MODULE)

        return self._recall(source) or self._remember(
            source, Namespace(source, self._builtins, look_up), lasts=True
        )

    def _stand_in(self, module: ModuleType) -> ModuleType:
        names = self._namespace(vars(module)) if self._packages.own(module) else {}

        def look_up(name: str) -> Any:
            found = self.copy(getattr(module, name), Origin.MODULE)
            return names.setdefault(name, found)

        return ModuleStandIn(module, look_up, names)

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Import a module, or its stand-in, inside a rebuilt function."""
        return self.copy(builtins.__import__(name, *args, **kwargs), Origin.MODULE)
