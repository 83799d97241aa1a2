"""Copying functions into another namespace, in which `vmap` is the batcher's.

A Python function is a code object and a namespace in which its global names are looked
up. The copy of a function is the same code object with another namespace, in which
`jax.vmap` is a stand-in and every function of the packages is a copy made the same way:
its defaults, its closure, and what its global names refer to. The original, its module
and `jax` are only read. The stand-in finds the site at which it is called, takes that
site's batcher from the policy, and runs the call with it.
"""

import builtins
import contextlib
import functools
import inspect
import threading
import weakref
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final, final

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Site, Vmap
from ..batchers._call import Call, logged_call, mapped_function
from ..batchers._trace_log import current_entry
from ._code import global_names, nonlocal_names
from ._policies import AnyPolicy, chosen, may_want
from ._sites import (
    Node,
    Origin,
    UnreachableSiteError,
    description_of,
    opened,
    phase_of,
    reachable,
    site_of_call,
)
from ._users import Marker
from ._values import (
    ORIGINAL,
    Mapped,
    Packages,
    attributes_of,
    closure_contents,
    flatten,
    is_vmap,
    original_module,
    record,
    record_of,
    recursion_error,
    walk,
)


# Names that the import system has put into a module and reads without a `__missing__`.
_MODULE_NAMES: Final = ("__name__", "__package__", "__path__", "__file__", "__spec__")
# Builtins that read names which do not occur in the code of their caller.
_LOOKUPS: Final = ("globals", "eval", "exec")
# Stands for a container whose parts are being copied.
_UNFINISHED: Final = object()
_SIGNATURE: Final = inspect.signature(jax.vmap)


@final
class Namespace(dict[str, Any]):
    """The global names of rebuilt functions.

    A name that the module did not have when a function was copied is looked up when
    the function reads it.
    """

    def __init__(self, source: dict[str, Any], copier: "Copier") -> None:
        super().__init__({x: source[x] for x in _MODULE_NAMES if x in source})
        self["__builtins__"] = copier.builtins
        self.source = source
        self.copier = copier

    def __missing__(self, name: str) -> Any:
        # The name of a builtin raises `KeyError`, as Python expects.
        found = self.copier.copy(self.source[name], Origin.MODULE)
        return self.setdefault(name, found)


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
@dataclass(eq=False)
class Copier:
    """Copies of functions for one phase of a policy.

    They are remembered, so that a function has one copy however it is reached (blackjax
    compares functions with `is`) and cycles end.
    """

    policy: AnyPolicy
    packages: Packages
    marker: Marker
    phase: str | None = None
    phases: dict[str | None, "Copier"] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.phases[self.phase] = self
        self._uses_outer_lanes = may_want(self.policy, "uses_outer_lanes")
        self._sites: dict[tuple[CodeType, int], Site] = {}
        self.builtins = {**vars(builtins), "__import__": self._import}
        # Copies whose parts, which may lead back to them, have not been copied yet.
        self._incomplete: deque[tuple[FunctionType, FunctionType]] = deque()
        self._forget()

        def vmap(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            bound = _SIGNATURE.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            return self._map(arguments.pop("fun"), arguments, self._calling_site())

        self._vmap = record(vmap, is_stand_in=True)

    def _forget(self) -> None:
        # Functions are remembered for as long as they live, what stands in a module for
        # ever, and all else for the time of one call: a user's arguments must neither
        # be kept alive nor be out of date. Ids come with their originals.
        self._functions: weakref.WeakKeyDictionary[FunctionType, Any]
        self._functions = weakref.WeakKeyDictionary()
        self._memory: ChainMap[int, tuple[Any, Any]] = ChainMap({}, {})
        self._checked: dict[Any, Any] = {}
        self._incomplete.clear()

    def for_part(self, name: str | None) -> "Copier":
        """Return the copier of a part's phase; one serves all for a single batcher."""
        phase = phase_of(name, self.phase)
        if isinstance(self.policy, AbstractBatcher) or phase == self.phase:
            return self
        with self.lock:
            return self.phases.get(phase) or replace(self, phase=phase)

    def copy(self, value: Any, origin: Origin) -> Any:
        """Return a value with every function of the packages in it replaced by a copy.

        A value that holds no such function comes back as the same object.
        """
        with self._copying(value, origin):
            return self._copy(value, origin)

    def arguments(
        self, function: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return copied arguments of a call, with the user's functions marked."""
        # Of a decorated function, the names are those of the function inside.
        parameters = inspect.signature(function).parameters.values()
        names = [x.name for x in parameters if x.kind <= x.POSITIONAL_OR_KEYWORD]
        names += [f"argument {i}" for i in range(len(names), len(args))]

        def copied(name: str, value: Any) -> Any:
            return self._copy(value, Origin.ARGUMENT, name)

        with self._copying((args, kwargs), Origin.ARGUMENT):
            by_name = {name: copied(name, value) for name, value in kwargs.items()}
            return [*map(copied, names, args)], by_name

    def made(self, value: Any) -> bool:
        """Return True for a function that this copier, or its code, made."""
        made = record_of(value)
        if made is not None and made.mapped is not None:
            return made.mapped.copier is self
        names = value.__globals__ if isinstance(value, FunctionType) else None
        return isinstance(names, Namespace) and names.copier is self

    # Values

    @contextlib.contextmanager
    def _copying(self, value: Any, origin: Origin) -> Iterator[None]:
        """Check a value that is copied inside, and then complete its functions."""
        with self.lock:
            self._refuse_unreachable(value, origin)
            try:
                yield
                while self._incomplete:
                    self._complete(*self._incomplete.popleft())
            except BaseException:  # a copy without its parts must not be found again
                self._forget()
                raise
            self._memory.maps[0].clear()  # of this call

    def _refuse_unreachable(self, value: Any, origin: Origin) -> None:
        # Modules and an API are read once, arguments of the user at every call.
        lasts = origin is not Origin.ARGUMENT
        seen = self._checked if lasts else dict(self._checked)
        nodes = [Node(value, origin)]
        found = reachable(nodes, self.packages, seen, follow_imports=False)
        for site, holder in found:
            if holder is not None and self._batcher(site) != Vmap():
                self._checked.clear()
                raise UnreachableSiteError(description_of(holder), site)

    def _is_copied(self, node: Node) -> bool:
        """Return True if a value itself is copied, whatever may be inside it."""
        value, origin, _ = node
        is_packages = origin in (Origin.MODULE, Origin.CLOSURE)
        if is_vmap(value):
            return is_packages and value is not self._vmap
        own = self.packages.own(value)
        if isinstance(value, ModuleType):
            names = vars(original_module(value))
            return own or (is_packages and names.get("vmap") is jax.vmap)
        if not isinstance(value, FunctionType) or self.made(value):
            return False
        made = record_of(value)
        return own or bool(made and (made.behind or made.mapped))

    def _remember(self, value: Any, new: Any, lasts: bool = False) -> Any:
        if isinstance(value, FunctionType):
            self._functions[value] = new
        else:
            self._memory.maps[lasts][id(value)] = value, new
        return new

    def _recall(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._functions.get(value)
        return self._memory.get(id(value), (None, None))[1]

    def _copy(self, value: Any, origin: Origin, name: str | None = None) -> Any:
        """Return a copy, or what belongs to the user, marked as the argument `name`."""
        if isinstance(value, ModuleType):
            value = original_module(value)
        remembered = self._recall(value)
        if remembered is _UNFINISHED:
            raise recursion_error(value)
        if remembered is not None:
            return remembered
        inside = functools.partial(opened, packages=self.packages)
        if not any(map(self._is_copied, walk([Node(value, origin)], inside, Node.key))):
            if origin.opens_foreign or self.made(value):
                return value
            return self.marker.users(value, name, origin is Origin.ARGUMENT)
        if is_vmap(value):
            return self._vmap
        if isinstance(value, FunctionType):
            return self._copy_function(value, origin)
        lasts = origin is Origin.MODULE
        if isinstance(value, ModuleType):
            return self._remember(value, self._stand_in(value), lasts=True)
        self._remember(value, _UNFINISHED, lasts)
        inner, _, make = flatten(value, self.packages.opens)
        if isinstance(value, functools.partial) and origin is Origin.CLOSURE:
            function, args, keywords = inner
            pairs = zip(value.keywords, keywords, strict=True)
            new = [
                self._copy(function, origin),
                [self._copy(x, Origin.BOUND, "function") for x in args],
                [self._copy(x, Origin.BOUND, name) for name, x in pairs],
            ]
        else:
            new = [self._copy(x, origin) for x in inner]
        return self._remember(value, make(new), lasts)

    # Functions

    def _copy_function(self, function: FunctionType, origin: Origin) -> Any:
        made = record_of(function)
        if made is not None:  # rebuilt before, perhaps for another batcher
            target = (made.original and made.original()) or made.behind
            if target is not None:
                return self._copy(target, origin)
            if made.mapped is not None:
                fun = self._copy(made.mapped.fun, Origin.CLOSURE)
                arguments, site = made.mapped.arguments, made.mapped.site
                return self._remember(function, self._map(fun, arguments, site))
        code, names = function.__code__, function.__globals__
        if nonlocal_names(code):
            raise ValueError(
                f"{function.__module__}.{function.__qualname__} assigns "
                f"{', '.join(sorted(nonlocal_names(code)))} in the function around it "
                "(`nonlocal`), which a copy cannot share with others. Keep what it "
                "remembers in a list or a dict, or return it."
            )
        if self.packages.own(function):
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
        own, code = self.packages.own(function), function.__code__
        cells = dict(zip(code.co_freevars, new.__closure__ or (), strict=True))
        filled = dict(closure_contents(new))  # by another function of the same scope
        for name, contents in closure_contents(function):
            if name not in filled and own:
                cells[name].cell_contents = self._copy(contents, Origin.CLOSURE, name)
            elif name not in filled:
                cells[name].cell_contents = self._copy(contents, Origin.WRAPPER)
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
        names = self._recall(source) or Namespace(source, self)
        return self._remember(source, names, lasts=True)

    def _stand_in(self, module: ModuleType) -> ModuleType:
        names = self._namespace(vars(module)) if self.packages.own(module) else {}

        def look_up(name: str) -> Any:
            found = self.copy(getattr(module, name), Origin.MODULE)
            return names.setdefault(name, found)

        return ModuleStandIn(module, look_up, names)

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Import a module, or its stand-in, inside a rebuilt function."""
        return self.copy(builtins.__import__(name, *args, **kwargs), Origin.MODULE)

    # Mapping

    def _batcher(self, site: Site) -> AbstractBatcher:
        return chosen(self.policy, replace(site, phase=self.phase))

    def _map(
        self, fun: Callable[..., Any], arguments: dict[str, Any], site: Site
    ) -> Callable[..., Any]:
        """Map `fun` as `jax.vmap` does, with calls run by the batcher of the site."""
        site = replace(site, phase=self.phase)
        batcher = self._batcher(site)

        def run(call: Call) -> PyTree:
            if current_entry() is None:
                return batcher.batch(call)
            names = self.marker.names
            return logged_call(call, site, batcher, batcher.batch, user_functions=names)

        new: Any = mapped_function(run, fun, **arguments, in_sampler=True)
        if batcher == Vmap() and not self._uses_outer_lanes:
            logged, plain = new, jax.vmap(fun, **arguments)

            # JAX walks all frames for every equation that it traces. These are one in
            # place of six, unless the trace is logged.
            @functools.wraps(plain)
            def plain_or_logged(*args: Any, **kwargs: Any) -> Any:
                run = plain if current_entry() is None else logged
                return run(*args, **kwargs)

            new = plain_or_logged
        return record(new, mapped=Mapped(fun, arguments, site, self))

    def _calling_site(self) -> Site:
        """Return the site of the innermost rebuilt function that is running."""
        frame = inspect.currentframe()
        while frame is not None and not isinstance(frame.f_globals, Namespace):
            frame = frame.f_back
        if frame is None:
            return Site("", "", 0, "vmap")
        code, line = place = frame.f_code, frame.f_lineno
        if place not in self._sites:
            variables = frame.f_locals
            if frame.f_back is not None and not code.co_flags & inspect.CO_OPTIMIZED:
                # Of the body of a class, which does not show its free variables.
                variables = {**frame.f_back.f_locals, **variables}
            site = site_of_call(code, frame.f_globals, variables, line)
            self._sites[place] = site
        return self._sites[place]
