"""Copying functions into another namespace.

A Python function is a code object and a namespace in which its global names are looked
up. The copy of a function is the same code object with another namespace, in which
`jax.vmap` is the batcher's and every function of the packages is a copy made the same
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
import weakref
from collections import deque
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any, Final, final

from ._code import global_names, nonlocal_names
from ._mapper import COPIER, Mapper
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
    remade_function,
    walk,
)


# Under this name a rebuilt namespace keeps the one that it was made from.
_SOURCE: Final = "__batchkit_source__"
# Names that the import system has put into a module; none is a function of it.
_MODULE_NAMES: Final = ("__name__", "__package__", "__path__", "__file__", "__spec__")
# Builtins that read names which nothing in the code of their caller tells.
_LOOKUPS: Final = ("globals", "eval", "exec")


@final
class ModuleStandIn(ModuleType):
    """A module as seen from rebuilt code: names are looked up when they are read.

    Modules import each other in cycles, so a stand-in may be needed before its module
    is complete.
    """

    def __init__(
        self,
        original: ModuleType,
        look_up: Callable[[str], Any],
        names: dict[str, Any] | None = None,
    ) -> None:
        """**Arguments:**

        - `original`: the module.
        - `look_up`: finds what is in neither `names` nor the stand-in.
        - `names`: where names are kept; the stand-in itself by default.
        """
        super().__init__(original.__name__, original.__doc__)
        names = vars(self) if names is None else names
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
    """Makes and remembers the copies in which a mapper's `vmap` is the vmap."""

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
        # Steps that could lead back to an unfinished copy wait until it is remembered.
        self._queue: deque[Callable[[], None]] = deque()
        # Namespaces by their ids, with global names that their modules do not have yet.
        self._missing: dict[tuple[int, str], dict[str, Any]] = {}
        self._forget()

    def _forget(self) -> None:
        # Functions are remembered for as long as they live, what stands in a module for
        # ever, and all else for the time of one call: a user's arguments must neither
        # be kept alive nor be out of date. Ids come with their originals.
        self._functions: weakref.WeakKeyDictionary[FunctionType, Any]
        self._functions = weakref.WeakKeyDictionary()
        self._lasting: dict[int, tuple[Any, Any]] = {}
        self._passing: dict[int, tuple[Any, Any]] = {}
        self._namespaces: dict[int, dict[str, Any]] = {}
        self._checked: dict[Any, Any] = {}
        self._queue.clear()

    def copy(self, value: Any, origin: Origin) -> Any:
        """Return a value with every function of the packages in it replaced by a copy.

        A value that holds no such function comes back as the same object.

        **Raises:**

        `UnreachableSiteError` for a vmap that is out of reach, `ValueError` for code
        that cannot be copied.
        """
        with self._lock:
            late = {k: x for k, x in self._missing.items() if k[1] in x[_SOURCE]}
            for (_, name), namespace in late.items():
                self._refuse_unreachable(namespace[_SOURCE][name], Origin.MODULE)
            self._refuse_unreachable(value, origin)
            try:
                for (_, name), namespace in late.items():
                    self._fill(namespace, name)
                new = self._copy(value, origin)
                while self._queue:
                    self._queue.popleft()()
            except BaseException:  # a copy without its parts must not be found again
                self._forget()
                raise
            self._passing.clear()
            for place in late:
                self._missing.pop(place, None)
            return new

    def made(self, value: Any) -> bool:
        """Return whether a value is a function that this copier, or its code, made."""
        made = record_of(value)
        if made is not None and made.mapped is not None:
            return made.mapped.mapper is self._mapper
        return isinstance(value, FunctionType) and (
            value.__globals__.get(COPIER) is self
        )

    def is_copied(self, value: Any, origin: Origin) -> bool:
        """Return whether `value` itself is copied, whatever may be inside it."""
        if isinstance(value, ModuleType) and self._packages.own(value):
            return True
        if leads_to_vmap(value):
            return origin.replaces_vmap and value is not self._mapper.vmap
        if not isinstance(value, FunctionType) or self.made(value):
            return False
        opened = origin.opens_foreign or self._packages.wrapped(value)
        return self._is_own(value) or (opened and self._wraps_package_code(value))

    def is_users_function(self, value: Any) -> bool:
        """Return whether a value can be called and is neither a class nor copied."""
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
        """Return whether a value is of the packages, or was rebuilt before."""
        made = record_of(value)
        rebuilt = made is not None and (made.behind or made.mapped)
        is_code = isinstance(value, FunctionType | ModuleType)
        return bool(rebuilt) or (is_code and self._packages.own(value))

    def _holds_copied(self, value: Any, origin: Origin) -> bool:
        items = walk([value], lambda x: parts(x, self._packages.opens))
        return any(self.is_copied(item, origin) for item in items)

    def _wraps_package_code(self, function: FunctionType) -> bool:
        """Return whether a foreign function closes over code of the packages."""

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
            known = self._lasting if lasts else self._passing
            known[id(value)] = value, new
        return new

    def _recall(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._functions.get(value)
        passing = self._passing.get(id(value), (None, None))
        return self._lasting.get(id(value), passing)[1]

    def _copy(self, value: Any, origin: Origin) -> Any:
        if isinstance(value, ModuleType):
            value = original_module(value)
        known = self._recall(value)
        if known is not None:
            return known
        if not self._holds_copied(value, origin):
            return value
        if is_vmap(value):
            return self._mapper.vmap
        if isinstance(value, FunctionType):
            return self._copy_function(value, origin)
        lasts = origin is Origin.MODULE
        if isinstance(value, ModuleType):
            return self._remember(value, self._stand_in(value), lasts=True)
        inner, names, begin, finish = flatten(value, self._packages.opens)
        begun = begin()
        if begun is not None:
            self._remember(value, begun, lasts)
        if isinstance(value, functools.partial) and origin is Origin.CLOSURE:
            # Its arguments are the user's.
            bound = [self._copy(x, Origin.ARGUMENT) for x in inner[1:]]
            named = zip(bound, names[1:], strict=True)
            bound = [self._marker.bound(x, name or "function") for x, name in named]
            new = [self._copy(value.func, origin), *bound]
        else:
            new = [self._copy(x, origin) for x in inner]
        known = self._recall(value)
        if begun is None and known is not None:  # a part of it contains it
            return known
        return self._remember(value, finish(begun, new), lasts)

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
        own = self._packages.own(function)
        if own:
            names = self._namespace(names.get(_SOURCE, names))
        inside = Origin.CLOSURE if own else Origin.WRAPPER
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        copied = [self._copy_cell(cell, name, inside) for name, cell in cells]
        new = remade_function(function, names, copied)
        self._remember(function, record(new, original=weakref.ref(function)))
        self._queue.append(lambda: self._complete(new, function, own))
        return new

    def _complete(self, new: FunctionType, function: FunctionType, own: bool) -> None:
        """Give a copy what may lead back to itself: attributes, defaults, names."""
        for name, value in attributes_of(function).items():
            new.__dict__[name] = self._copy(value, Origin.CLOSURE)
        if not own:
            return
        new.__defaults__ = self._copy(function.__defaults__, Origin.MODULE)
        new.__kwdefaults__ = self._copy(function.__kwdefaults__, Origin.MODULE)
        for name in global_names(function.__code__):
            self._fill(new.__globals__, name)

    def _copy_cell(self, cell: CellType, name: str, origin: Origin) -> CellType:
        """Return a cell of a closure with its contents copied or marked."""
        known = self._recall(cell)
        if known is not None:
            return known
        if not is_filled(cell):
            return self._remember(cell, CellType())
        contents = cell.cell_contents
        if not self._holds_copied(contents, origin):
            own = origin is Origin.CLOSURE
            marked = self._marker.bound(contents, name) if own else contents
            return self._remember(cell, CellType(marked))
        new = self._remember(cell, CellType())

        def fill() -> None:
            new.cell_contents = self._copy(contents, origin)

        self._queue.append(fill)
        return new

    # Namespaces and modules

    def _namespace(self, source: dict[str, Any]) -> dict[str, Any]:
        if id(source) not in self._namespaces:
            names = {name: source[name] for name in _MODULE_NAMES if name in source}
            made = {"__builtins__": self._builtins, COPIER: self, _SOURCE: source}
            self._namespaces[id(source)] = {**names, **made}
        return self._namespaces[id(source)]

    def _fill(self, namespace: dict[str, Any], name: str) -> None:
        source = namespace[_SOURCE]
        if name in namespace:
            return
        if name in source:
            namespace[name] = self._copy(source[name], Origin.MODULE)
        elif name in _LOOKUPS:
            raise ValueError(
                f"A function of {source['__name__']} calls `{name}`, which can read "
                "names that nothing in its code tells, so that it cannot be rebuilt. "
                "Name what it looks up, or leave its package out of `packages`."
            )
        elif not hasattr(builtins, name):
            self._missing[id(namespace), name] = namespace

    def _stand_in(self, module: ModuleType) -> ModuleType:
        own = self._packages.own(module)
        names = self._namespace(vars(module)) if own else None

        def look_up(name: str) -> Any:
            found = self.copy(getattr(module, name), Origin.MODULE)
            return vars(stand_in)["_names"].setdefault(name, found)

        stand_in = ModuleStandIn(module, look_up, names)
        return stand_in

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Import a module, or its stand-in, inside a rebuilt function."""
        return self.copy(builtins.__import__(name, *args, **kwargs), Origin.MODULE)
