"""Call sites of `jax.vmap`: finding all that a value can reach, without running it.

The code of each function is read for the names that it uses, and what they refer to is
read in turn. A vmap can be exchanged where every object on the way to it is copied. A
class, a compiled function, or an object of a kind that is not opened is shared with the
original instead: then the site is unreachable, and that object is its holder.
"""

import contextlib
import dataclasses
import enum
import functools
import gc
import importlib.util
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, SupportsIndex, final, overload

import jax

from .._util._formats import format_value, html_table, table
from ..batchers import Site
from ._code import Import, Reference, references
from ._values import (
    Packages,
    attribute,
    attributes_of,
    closure_contents,
    flatten,
    holds_vmap,
    is_vmap,
    mapped_by_jax,
    original_module,
    parts,
    record_of,
    shared_functions,
    walk,
)


PHASES: Final = ("init", "step")

_PHASE_OF_NAME: Final = {"init": "init", "step": "step", "build_kernel": "step"}
# Modules of types that may hold functions, and are opened wherever they are found.
_STANDARD: Final = ("builtins", "collections", "functools", "types")
# The type of what `jax.jit` returns, and the attributes that it has from the start.
_JITTED: Final = type(jax.jit(lambda x: x))
_WRAPPER_NAMES: Final = frozenset(vars(jax.jit(lambda x: x)))
# Types of values that hold nothing; half of what code refers to is one of them.
_LEAVES: Final = frozenset({bool, bytes, complex, float, int, str, type(None)})


def phase_of(name: str | None, outer: str | None) -> str | None:
    """Return the phase of what goes by `name` inside something of a phase."""
    return _PHASE_OF_NAME.get(name or "", outer)


@final
class UnreachableSiteError(ValueError):
    """A vmap stands where rebuilding cannot reach it.

    Raised by `rebuild_sampler`, or while tracing a rebuilt function, for a vmap behind
    an object that is shared with the original and never changed: an already jitted
    function, a class, or a container of an uncommon kind.

    ```python
    import blackjax
    import jax
    import pytest
    import batchkit as bk

    algorithm = blackjax.nss(
        logprior_fn=lambda x: -(x**2).sum(),
        loglikelihood_fn=lambda x: -(x**2).sum(),
        num_inner_steps=5,
    )
    with pytest.raises(bk.UnreachableSiteError, match="jax.vmap in blackjax.ns.nss"):
        bk.rebuild_sampler(jax.jit(algorithm.init), batcher=bk.Chunked(16))
    ```
    """

    def __init__(self, holder: str, site: Site) -> None:
        """**Arguments:**

        - `holder`: a description of the object that hides the vmap.
        - `site`: where the vmap stands; its `str` names module, function and line.
        """
        self.holder = holder
        self.site = site
        super().__init__(
            f"{holder} holds a vmap that cannot be rebuilt: {site.spelling} in "
            f"{site.name}, line {site.line}. It is shared with the original and is "
            "never changed, so this vmap would silently stay as it is. If you made "
            "the object, hand in a plain function or a list (for `jax.jit(f)`, pass "
            "`f` and jit the rebuilt result; for `@jax.vmap`, call `jax.vmap` inside "
            "the function that uses it); if a package made it, that package has to "
            "change, or be left out of `packages` with all its vmaps. To leave just "
            f'this one as it is, give it `Vmap()`: BySite({{"{site.name}": Vmap()}}, '
            "default=...)."
        )


def description_of(holder: Any) -> str:
    """Describe an object that holds an unreachable vmap, to begin a message."""
    if isinstance(holder, type):
        return f"The class {holder.__module__}.{holder.__qualname__}"
    name = getattr(attribute(holder, "__wrapped__"), "__qualname__", None)
    of = "" if name is None else f" of {name}"
    if mapped_by_jax(holder) is not None:
        return f"The result of jax.vmap{of}, made at the top of its module,"
    return f"The {type(holder).__name__}{of}"


@final
class Origin(enum.Enum):
    """The place where a value was found, which says who owns the functions in it."""

    MODULE = enum.auto()  # the top level of a module, or a default: the packages'
    CLOSURE = enum.auto()  # the packages' as well, but for functions of the user
    WRAPPER = enum.auto()  # the closure of a foreign wrapper: its vmap is its own
    ARGUMENT = enum.auto()  # the user's
    BOUND = enum.auto()  # an argument that is bound in a partial

    @property
    def opens_foreign(self) -> bool:
        """True if foreign functions and objects are looked into."""
        return self in (Origin.MODULE, Origin.WRAPPER)


@final
class Node(NamedTuple):
    """A value that can be reached."""

    value: Any
    origin: Origin
    holder: Any = None  # the shared object on the way to it

    def to(
        self, values: Iterable[Any], origin: Origin, holder: Any = None
    ) -> "list[Node]":
        """Return nodes of what this one leads to, leaving out plain data."""
        holder = holder if self.holder is None else self.holder
        return [Node(x, origin, holder) for x in values if type(x) not in _LEAVES]

    def key(self) -> tuple[int, str, bool]:
        """Identity of the node: a value is read again where more is read of it."""
        # The name, since a member of an enumeration is hashed by a Python function.
        return id(self.value), self.origin._name_, self.holder is None


_Found = tuple[Site, Any]  # a site, and the shared object that holds it or None


def opened(node: Node, packages: Packages) -> list[Node]:
    """Return what is copied with a value: its parts, or what a function wraps."""
    value, origin, _ = node
    if not isinstance(value, FunctionType):
        return node.to(parts(value, packages.opens), origin)
    opens = origin.opens_foreign or packages.wrapped(value)
    made = record_of(value)
    is_shared = shared_functions(value) or (made and made.original is None)
    if packages.own(value) or not opens or is_shared:
        return []
    return node.to((x for _, x in closure_contents(value)), Origin.WRAPPER)


def reachable(
    nodes: Iterable[Node],
    packages: Packages,
    seen: dict[Any, Any] | None = None,
    *,
    follow_imports: bool = True,
) -> list[_Found]:
    """Return every vmap that running some values could reach, each with its holder.

    Nodes whose keys are in `seen` are left out, and those that are read are added.
    Following imports inside functions loads modules of the packages.
    """
    found: list[_Found] = []

    def inside(node: Node) -> Iterator[Node]:
        if not isinstance(node.value, FunctionType):
            return _read_object(node, packages)
        if packages.own(node.value):
            return _read_function(node, found, follow_imports)
        return _read_foreign_function(node, found, packages)

    _ = [*walk(nodes, inside, Node.key, seen)]
    return found


def _read_object(node: Node, packages: Packages) -> Iterator[Node]:
    """Yield what an object leads to that is no function."""
    value, origin, _ = node
    if isinstance(value, ModuleType):
        return
    own = packages.own(value)
    if isinstance(value, type):
        if own:
            # Annotations are read by type checkers, and never called.
            members = (x for k, x in vars(value).items() if k != "__annotations__")
            inner = (*members, *value.__mro__[1:])
            yield from node.to(inner, Origin.MODULE, value)
        return
    inner = opened(node, packages)
    yield from inner
    if not inner:  # an object that is not opened, and therefore shared
        wrapped = attribute(value, "__wrapped__") if callable(value) else None
        if _is_plain_jax(value, wrapped) and not packages.own(wrapped):
            return
        yield from node.to([wrapped], Origin.CLOSURE, value)
        standard = type(value).__module__ in _STANDARD
        if own or standard or origin.opens_foreign:
            yield from node.to(gc.get_referents(value), Origin.CLOSURE, value)
    if own:
        yield from node.to([type(value)], origin)


def _is_plain_jax(value: Any, wrapped: Any) -> bool:
    """Return True for a function of JAX that JAX has jitted and that wraps no other."""
    if type(value) is not _JITTED or not isinstance(wrapped, FunctionType):
        return False
    name = str(wrapped.__globals__.get("__name__"))
    has_others = wrapped.__closure__ or vars(value).keys() - _WRAPPER_NAMES
    return name.startswith("jax.") and not has_others


def _read_function(
    node: Node, sites: list[_Found], follow_imports: bool
) -> Iterator[Node]:
    """Note the sites in a function of the packages, and yield what it leads to."""
    function: FunctionType = node.value
    code, closure = function.__code__, dict(closure_contents(function))
    yield from node.to(closure.values(), Origin.CLOSURE)
    yield from node.to(attributes_of(function).values(), Origin.CLOSURE)
    for reference in references(code):
        if reference.imported is not None and not follow_imports:
            continue
        for site, value in _along(reference, function.__globals__, closure):
            if site is not None:
                sites.append((site, node.holder))
            is_contents = value is closure.get(reference.path[0])  # which is above
            if not (is_contents or isinstance(value, ModuleType) or is_vmap(value)):
                yield from node.to([value], Origin.MODULE)
    defaults = function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount][-len(defaults) :]
    by_name = dict(zip(positional, defaults, strict=False))
    for name, value in {**by_name, **(function.__kwdefaults__ or {})}.items():
        if holds_vmap(value):
            module = str(function.__globals__["__name__"])
            site = Site(module, code.co_qualname, code.co_firstlineno, name)
            sites.append((site, node.holder))
        yield from node.to([value], Origin.MODULE)


def _read_foreign_function(
    node: Node, sites: list[_Found], packages: Packages
) -> Iterator[Node]:
    """Read a function of another package, as far as it wraps code of the packages."""
    function, origin, _ = node
    made = record_of(function)
    wrapped = packages.wrapped(function)
    if is_vmap(function):
        return  # it leads to the batcher, not to code of the packages
    if made is not None and made.behind is not None:
        yield from node.to([made.behind], origin)
    elif made is not None and made.mapped is not None:
        sites.append((made.mapped.site, node.holder))
        yield from node.to([made.mapped.fun], origin)
    elif wrapped or origin.opens_foreign:
        if (fun := mapped_by_jax(function)) is not None:
            if origin is Origin.ARGUMENT or (origin is Origin.WRAPPER and not wrapped):
                return  # it is the user's own vmap
            code = getattr(fun, "__code__", function.__code__)
            place = function.__module__, function.__qualname__, code.co_firstlineno
            sites.append((Site(*place, "@jax.vmap"), function))
        shared = shared_functions(function)
        yield from node.to(shared, Origin.WRAPPER, function)
        if not shared:
            yield from opened(node, packages)
            yield from node.to(attributes_of(function).values(), Origin.WRAPPER)


# Resolving names


def _along(
    reference: Reference, names: Mapping[str, Any], variables: Mapping[str, Any]
) -> Iterator[tuple[Site | None, Any]]:
    """Yield the values along `a.b.c`, as far as modules lead, and a site for a vmap."""
    if reference.imported is not None:
        found = _imported(reference.imported, names)
    else:
        found = (variables if reference.is_free else names).get(reference.path[0])
    for depth, name in enumerate(reference.path, 1):
        if depth > 1:
            if not isinstance(found, ModuleType):
                return
            if found.__name__ == "jax" and name != "vmap":
                return  # its other names lead to no code of the packages
            found = attribute(found, name)
        site = None
        if holds_vmap(found) and not reference.is_binding:
            prefix = "@" if reference.is_decorator else ""
            spelling = prefix + ".".join(reference.path[:depth])
            module = str(names["__name__"])
            site = Site(module, reference.qualname, reference.line, spelling)
        yield site, found


def _imported(imported: Import, names: Mapping[str, Any]) -> Any:
    """Return what an `import` inside a function would bind, or None.

    A package's own modules are loaded to be read. Others are not: they may be optional.
    """
    package = str(names.get("__package__") or "")
    name = imported.module
    if imported.level > 0:
        name = importlib.util.resolve_name("." * imported.level + name, package)
    root = name.partition(".")[0]
    found = None if imported.is_from else sys.modules.get(root)
    if name in sys.modules or root == package.partition(".")[0]:
        with contextlib.suppress(Exception):  # an optional module may raise anything
            found = __import__(name, fromlist=imported.path if imported.is_from else ())
    return functools.reduce(attribute, imported.path, found)


def site_of_call(
    code: CodeType, names: Mapping[str, Any], variables: Mapping[str, Any], line: int
) -> Site:
    """Return the site of the vmap that running code calls on a line.

    `names` are the global names of the code, `variables` its local and free ones.
    """
    found = [
        site
        for reference in references(code)
        if reference.qualname == code.co_qualname  # not of a function inside
        for site, _ in _along(reference, names, variables)
        if site is not None
    ]
    if found:  # a call over several lines ends after the line of the vmap
        return min(found, key=lambda site: (site.line > line, abs(site.line - line)))
    spelling = next((name for name, x in variables.items() if holds_vmap(x)), "vmap")
    return Site(str(names["__name__"]), code.co_qualname, code.co_firstlineno, spelling)


# All sites of an API


def packages_in(
    api: Any, packages: object, caller: str, *, accepts_classes: bool = False
) -> Packages:
    """Check the arguments `api` and `packages` of the function `caller`."""
    if not isinstance(packages, list | tuple) or not all(
        isinstance(name, str) for name in packages
    ):
        raise TypeError(
            f"{caller}(packages={packages!r}): packages must be a tuple of "
            'names such as ("blackjax",).'
        )
    owners = Packages(tuple(packages))
    refused = isinstance(api, type) and not accepts_classes
    if refused or not _holds_code_of(api, owners):
        raise ValueError(
            f"{caller}(api={format_value(api)}): there is no function of the packages "
            f"{owners.names} in it, so there is nothing to rebuild. Pass an API such "
            "as `blackjax.nss`, or name your own package in `packages`; `explain` "
            "shows what a function of yours reaches."
        )
    return owners


def _holds_code_of(value: Any, packages: Packages) -> bool:
    """Return True if something of the packages is in a value, be it jitted."""

    def inside(item: Any) -> list[Any]:
        return [*parts(item, packages.opens), attribute(item, "__wrapped__")]

    return any(
        packages.own(item) or packages.hold(attribute(item, "__module__"))
        for item in walk([value], inside)
    )


def sites_by_phase(api: Any, packages: Packages) -> Iterator[Site]:
    """Yield every reachable vmap, with the phase that reaches it where a name tells.

    A value without a phase of its own (an API as a whole, which builds both) counts for
    the sites that it reaches beside the functions that have one.
    """
    leaves: dict[str | None, list[Node]] = {phase: [] for phase in (*PHASES, None)}

    def inside(named: tuple[Any, str | None]) -> list[tuple[Any, str | None]]:
        item, phase = named
        inner, names, _ = flatten(item, packages.opens)
        if not inner:
            leaves[phase].append(Node(item, Origin.CLOSURE))
        elif packages.own(item):
            leaves[phase].append(Node(type(item), Origin.CLOSURE))
        pairs = zip(inner, names, strict=True)
        return [(part, phase_of(name, phase)) for part, name in pairs]

    roots = [(api, None)]
    if isinstance(api, ModuleType):
        # What the packages' code has put into it, but for other modules.
        defined = vars(original_module(api)).items()
        defined = [(x, y) for x, y in defined if not isinstance(y, ModuleType)]
        held = [(x, y) for x, y in defined if _holds_code_of(y, packages)]
        roots = [(part, phase_of(name, None)) for name, part in held]
    _ = [*walk(roots, inside, key=lambda named: (id(named[0]), named[1]))]
    for phase, nodes in leaves.items():
        others = PHASES if phase is None else ()
        read = [x._replace(origin=y) for o in others for x in leaves[o] for y in Origin]
        beside = {node.key(): node for node in read}
        for site, _ in reachable(nodes, packages, beside):
            yield dataclasses.replace(site, phase=phase)


_HEAD: Final = tuple(field.name for field in dataclasses.fields(Site))


@final
class Sites(tuple[Site, ...]):
    """The sites of an API: a sequence that prints as a table.

    ```python
    import blackjax
    import batchkit as bk

    found = bk.sites(blackjax.orbital_hmc)
    assert len(found) == 1
    assert found[0].spelling == "jax.vmap"
    print(found)
    ```
    """

    __slots__ = ()

    @overload
    def __getitem__(self, index: SupportsIndex) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> "Sites": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Site | Sites":
        found = super().__getitem__(index)
        return found if isinstance(found, Site) else Sites(found)

    def __repr__(self) -> str:
        return table(_HEAD, self._rows()) if self else "no sites"

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [tuple(str(x or "") for x in dataclasses.astuple(site)) for site in self]


def sites(api: Any, *, packages: tuple[str, ...] | list[str] = ("blackjax",)) -> Sites:
    """Find every vmap that an API can reach, by reading its code.

    Nothing is run, so the list is complete rather than exact: a site may lie in a
    branch that your settings never take. `batchkit.explain` shows what one trace did
    reach.

    ```python
    import blackjax
    import batchkit as bk

    print(bk.sites(blackjax.nss))
    ```

    **Arguments:**

    - `api`: what `rebuild_sampler` takes: an API such as `blackjax.nss`, one of its
        functions, an algorithm's module, an algorithm already built or rebuilt.
    - `packages`: the packages whose code is read, by name.

    **Returns:**

    The sites, in the order of their modules and lines. A site that both `init` and
    `step` reach is listed for each of them. For an API that is not built yet, what its
    own factory hands to either has no phase; for the algorithm that it builds it has.

    **Raises:**

    `TypeError` for `packages` of the wrong type, `ValueError` if nothing in `api`
    belongs to them.
    """
    owners = packages_in(api, packages, "sites", accepts_classes=True)
    found = set(sites_by_phase(api, owners))
    key = operator.attrgetter("module", "line", "qualname")
    return Sites(sorted(found, key=lambda site: (key(site), site.phase or "")))
