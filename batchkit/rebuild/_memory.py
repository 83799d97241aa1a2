"""What a copier remembers, for how long, and how it forgets what failed.

Copying is done in operations that succeed as a whole or leave nothing behind: a copy
whose parts are missing must not be found again. Within an operation, whatever could
lead back to itself is put into a queue.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any, final


@final
class SharedCells:
    """The cells of closures that hold data, which several copiers share for a while.

    Functions for `init` and for `step` may remember something together. Outside the
    body of `shared`, a cell is nobody's but its copier's.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._cells: dict[int, tuple[CellType, CellType]] = {}

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._cells.clear()

    def new(self, cell: CellType) -> CellType:
        """A cell with the contents of `cell`, the same one for all who ask."""
        new = CellType(cell.cell_contents)
        if self._depth == 0:
            return new
        return self._cells.setdefault(id(cell), (cell, new))[1]


@final
class Memory:
    """Copies by their originals, under a lock, since traces run in several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._queue: deque[Callable[[], None]] = deque()
        self._undo: list[Callable[[], Any]] = []
        # Functions are remembered for as long as they live, what stands in a module for
        # ever, and all else until the end of the operation: a user's arguments must
        # neither be kept alive nor be out of date. Ids come with their originals.
        self._functions: weakref.WeakKeyDictionary[FunctionType, Any]
        self._functions = weakref.WeakKeyDictionary()
        self._lasting: dict[int, tuple[Any, Any]] = {}
        self._passing: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Runs its body and then the queue; undoes everything if one of them fails."""
        with self._lock:
            self._depth += 1
            try:
                yield
                while self._queue:
                    self._queue.popleft()()
            except BaseException:
                if self._depth == 1:
                    for undo in reversed(self._undo):
                        undo()
                raise
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._undo.clear()
                    self._queue.clear()
                    self._passing.clear()

    def later(self, step: Callable[[], None]) -> None:
        """Puts a step of the operation into the queue."""
        self._queue.append(step)

    def on_failure(self, undo: Callable[[], Any]) -> None:
        """Says how to undo what has just been done."""
        self._undo.append(undo)

    def recall(self, value: Any) -> Any:
        """The copy of `value`, or None."""
        if isinstance(value, FunctionType):
            return self._functions.get(value)
        for known in (self._lasting, self._passing):
            if id(value) in known:
                return known[id(value)][1]
        return None

    def remember(self, value: Any, new: Any, lasting: bool) -> Any:
        """Remembers and returns the copy `new` of `value`."""
        if isinstance(value, FunctionType):
            self._functions[value] = new
            self.on_failure(lambda: self._functions.pop(value, None))
        else:
            known = self._lasting if lasting else self._passing
            known[id(value)] = (value, new)
            self.on_failure(lambda: known.pop(id(value), None))
        return new
