"""What an algorithm that is built already has been given, and the same with another.

An algorithm is functions that close over what its API was called with: the user's
functions, a number of steps, a `functools.partial` of both. To exchange one of these,
the functions that lead to it are made anew with other cells. Code and namespaces stay,
so this works for rebuilt algorithms as it does for upstream's, and neither is changed.
"""

from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any, final

from ._finder import closure_contents
from ._inside import children, with_changed
from ._ownership import Packages


def bound_names(algorithm: Any, packages: Packages) -> Iterator[tuple[str, Any]]:
    """Everything that functions of the packages close over, by its name there.

    What is bound under one name in several places appears several times.
    """
    seen: set[int] = set()
    pending = [algorithm]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        pending.extend(_inside(item, packages))
        if isinstance(item, FunctionType) and packages.wrote(item):
            yield from closure_contents(item)
        elif isinstance(keywords := getattr(item, "keywords", None), dict):
            yield from keywords.items()


def exchanged(
    algorithm: Any, change: Callable[[Any], Any], packages: Packages
) -> tuple[Any, int]:
    """The algorithm with some of what it was given exchanged.

    **Arguments:**

    - `algorithm`: an algorithm, rebuilt or not; it is not changed.
    - `change`: called with each thing that is found; returns it, or another.
    - `packages`: whose instances are looked into.

    **Returns:**

    The new algorithm, and how many things were exchanged. Without any, it is the same
    object.
    """
    exchange = _Exchange(change, packages)
    return exchange.visit(algorithm), exchange.count


@final
class _Exchange:
    """One walk through an algorithm, which makes each thing anew once."""

    def __init__(self, change: Callable[[Any], Any], packages: Packages) -> None:
        self.count = 0
        self._change = change
        self._packages = packages
        # The old things are kept alive with the new: an id is only theirs meanwhile.
        self._made: dict[int, tuple[Any, Any]] = {}

    def visit(self, item: Any) -> Any:
        if id(item) in self._made:
            return self._made[id(item)][1]
        new = self._change(item)
        if new is not item:
            self.count += 1
            return self._remember(item, new)
        if not self._leads_to_change(item):
            return self._remember(item, item)
        if isinstance(item, FunctionType):
            return self._function(item)
        made = with_changed(item, lambda part, _: self.visit(part), self._remember)
        return self._remember(item, made)

    def _function(self, function: FunctionType) -> FunctionType:
        cells = function.__closure__ or ()
        made = tuple(self._cell(cell) for cell in cells)
        new = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            made or None,
        )
        self._remember(function, new)
        new.__kwdefaults__ = function.__kwdefaults__
        new.__dict__.update(function.__dict__)
        new.__annotations__ = function.__annotations__
        new.__module__ = function.__module__
        new.__qualname__ = function.__qualname__
        new.__doc__ = function.__doc__
        for cell, other in zip(cells, made, strict=True):
            if cell is not other and not _is_filled(other):
                other.cell_contents = self.visit(cell.cell_contents)
        return new

    def _cell(self, cell: CellType) -> CellType:
        if id(cell) in self._made:
            return self._made[id(cell)][1]
        if not _is_filled(cell) or not self._leads_to_change(cell.cell_contents, True):
            return self._remember(cell, cell)
        return self._remember(cell, CellType())

    def _leads_to_change(self, value: Any, itself: bool = False) -> bool:
        seen = {id(value)} if not itself else set[int]()
        pending = [value] if itself else list(_inside(value, self._packages))
        while pending:
            item = pending.pop()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if self._change(item) is not item:
                return True
            pending.extend(_inside(item, self._packages))
        return False

    def _remember(self, item: Any, new: Any) -> Any:
        self._made[id(item)] = (item, new)
        return new


def _inside(item: Any, packages: Packages) -> list[Any]:
    if isinstance(item, FunctionType):
        return [contents for _, contents in closure_contents(item)]
    return list(children(item, packages.own_instance))


def _is_filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
