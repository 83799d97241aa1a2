"""Finding every vmap that a value can reach, without running anything."""

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..batchers import Site
from ._code import Import, Reference, own_references, references
from ._inside import attribute, children, holds, named_children, wrapped_by
from ._modules import ModuleStandIn, original_module
from ._ownership import Packages
from ._phases import PHASES, phase_of
from ._vmaps import is_vmap, mapped_function


def holds_code_of(value: Any, packages: Packages) -> bool:
    """Whether something of the packages is in `value`, be it jitted."""

    def own(item: Any) -> bool:
        while not isinstance(item, FunctionType):
            if packages.own_module(item) or packages.own_class(item):
                return True
            if packages.own_instance(item):
                return True
            item = wrapped_by(item)
            if item is None:
                return False
        return packages.wrote(item) or packages.wrapped(item)

    return holds(value, own, packages.own_instance)


def reachable_by_phase(value: Any, packages: Packages) -> Iterator[Site]:
    """Every reachable vmap, with the phase that reaches it where a name tells.

    What has no phase of its own (an API as a whole, which builds both) counts for what
    it reaches beside the functions that have one.
    """
    leaves: dict[str | None, list[Any]] = {phase: [] for phase in (*PHASES, None)}
    seen: dict[tuple[int, str | None], Any] = {}
    pending: list[tuple[Any, str | None]] = [(value, None)]
    while pending:
        item, phase = pending.pop()
        if (id(item), phase) in seen:
            continue
        seen[id(item), phase] = item
        if item is value and packages.own_module(item):
            parts = list(_defined_in(item, packages))
        else:
            parts = list(named_children(item, packages.own_instance))
        pending.extend((part, phase_of(name, phase)) for name, part in parts)
        if packages.own_instance(item):
            pending.append((type(item), phase))
        if not parts:
            leaves[phase].append(item)
    beside = [leaf for phase in PHASES for leaf in leaves[phase]]
    for phase, items in leaves.items():
        for site in reachable_sites(items, packages, beside if phase is None else ()):
            yield dataclasses.replace(site, phase=phase)


def _defined_in(module: ModuleType, packages: Packages) -> Iterator[tuple[str, object]]:
    """What the packages' code has put into a module, but for other modules."""
    if isinstance(module, ModuleStandIn):
        module = original_module(module)
    for name, item in list(vars(module).items()):
        if not isinstance(item, ModuleType) and holds_code_of(item, packages):
            yield name, item


def reachable_sites(
    value: Any, packages: Packages, beside: Sequence[Any] = ()
) -> Iterator[Site]:
    """Every vmap in the packages' code that running `value` could reach.

    What is only reached through something in `beside` is left out.

    Somebody else's function is opened where it wraps one of the packages' functions;
    everything else that is not the packages' is passed over.
    """
    # With the values, so that no id is used twice.
    seen: dict[int, Any] = {id(item): item for item in beside}
    pending = [(value, False)]
    while pending:
        item, in_wrapper = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, FunctionType):
            own = packages.wrote(item)
            in_wrapper = not own and (in_wrapper or packages.wrapped(item))
            if own or in_wrapper:
                found, reached = _read(item, packages)
                yield from found
                pending.extend((x, in_wrapper) for x in reached)
        elif packages.own_class(item):
            pending.extend((x, False) for x in _class_members(item))
        else:
            pending.extend(
                (x, in_wrapper) for x in children(item, packages.own_instance)
            )
            if packages.own_instance(item):
                pending.append((type(item), False))
            if callable(item) and not isinstance(item, type):
                pending.append((wrapped_by(item), in_wrapper))


def site_of_call(
    code: CodeType, names: Mapping[str, Any], values: Mapping[str, Any], line: int
) -> Site:
    """The site at which running code calls a vmap.

    **Arguments:**

    - `code`, `names`: what is running, and its global names.
    - `values`: its local variables.
    - `line`: where it is now.
    """
    module = str(names["__name__"])
    found = [
        site
        for reference in own_references(code)
        for site, _ in _along(reference, names)
        if site is not None
    ]
    if found:  # a call over several lines ends after the line of the vmap
        return min(found, key=lambda site: (site.line > line, abs(site.line - line)))
    spelling = next((name for name, x in values.items() if _holds_vmap(x)), "vmap")
    return Site(module, code.co_qualname, code.co_firstlineno, spelling)


def _read(function: FunctionType, packages: Packages) -> tuple[list[Site], list[Any]]:
    """The sites in one function, and what it refers to."""
    sites: list[Site] = []
    reached: list[Any] = []
    own = packages.wrote(function)
    mapped = mapped_function(function)
    if mapped is not None and packages.hold(function.__module__):
        sites.append(mapped.site or site_of_decorator(function))
        reached.append(mapped.fun)
    if own:
        for reference in references(function.__code__):
            for site, value in _along(reference, function.__globals__):
                if site is not None:
                    sites.append(site)
                if not isinstance(value, ModuleType) and not is_vmap(value):
                    reached.append(value)
    for name, value in _given(function):
        if own and _holds_vmap(value):
            code = function.__code__
            sites.append(
                Site(
                    str(function.__globals__["__name__"]),
                    code.co_qualname,
                    code.co_firstlineno,
                    name,
                )
            )
        reached.append(value)
    reached.append(getattr(function, "__wrapped__", None))
    return sites, reached


def site_of_decorator(function: FunctionType) -> Site:
    """The site of `@jax.vmap` above a function of a module."""
    inner = getattr(function, "__wrapped__", function)
    line = getattr(inner, "__code__", function.__code__).co_firstlineno
    return Site(function.__module__, function.__qualname__, line, "@jax.vmap")


def _given(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The defaults and the closure of a function, with their names."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    yield from closure_contents(function)


def _along(
    reference: Reference, names: Mapping[str, Any]
) -> Iterator[tuple[Site | None, Any]]:
    """The values along `a.b.c`, as far as modules lead; with a site for each vmap."""
    for depth, value in enumerate(_resolve(reference, names), 1):
        site = None
        if _holds_vmap(value) and not reference.is_binding:
            spelling = ".".join(reference.path[:depth])
            if reference.is_decorator:
                spelling = f"@{spelling}"
            site = Site(
                str(names["__name__"]), reference.qualname, reference.line, spelling
            )
        yield site, value


def _resolve(reference: Reference, names: Mapping[str, Any]) -> Iterator[Any]:
    first, *rest = reference.path
    if reference.imported is None:
        found = names.get(first)
    else:
        found = _imported(reference.imported, names)
    yield found
    for name in rest:
        if not isinstance(found, ModuleType):
            return
        if found.__name__ == "jax" and name != "vmap":
            return  # nothing else in it is of interest
        found = attribute(found, name)
        yield found


def _imported(imported: Import, names: Mapping[str, Any]) -> Any:
    """What an `import` inside a function would bind; None if that is not known.

    A package's own modules are loaded to be read. Others are not: they may be optional.
    """
    package = str(names.get("__package__") or "")
    name = imported.module
    if imported.level > 0:
        name = importlib.util.resolve_name("." * imported.level + name, package)
    if imported.loads is not None:
        _loaded(imported.loads, package)
    module = _loaded(name, package)
    if module is None or imported.attribute is None:
        return module
    found = attribute(module, imported.attribute)
    if found is not None:
        return found
    return _loaded(f"{name}.{imported.attribute}", package)


def _loaded(name: str, package: str) -> ModuleType | None:
    if name not in sys.modules and name.split(".")[0] == package.split(".")[0]:
        try:
            return importlib.import_module(name)
        except Exception:  # whatever an optional module raises where it cannot run
            return None
    return sys.modules.get(name)


def _holds_vmap(value: Any) -> bool:
    """Whether it is a vmap, or something like a partial or a registry of one."""
    return holds(value, is_vmap, lambda _: False)


def closure_contents(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, by name."""
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            contents = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        yield name, contents


def _class_members(cls: type) -> Iterator[Any]:
    for member in vars(cls).values():
        if isinstance(member, staticmethod | classmethod):
            yield member.__func__
        elif isinstance(member, property):
            yield from (member.fget, member.fset, member.fdel)
        else:
            yield member
    yield from cls.__mro__[1:]
