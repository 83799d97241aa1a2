"""Marks on functions: what a copy was made from, what stands behind an entry point.

`functools.wraps` hands the attributes of a function on to whatever wraps it, so a mark
says whom it belongs to, and on anybody else it means nothing.
"""

import weakref
from types import FunctionType
from typing import Any


ORIGINAL = "__batchkit_original__"
BEHIND_ENTRY = "__batchkit_behind_entry__"
ENTRY = "__batchkit_entry__"
MAPPED = "__batchkit_mapped__"
MARKS = (ORIGINAL, BEHIND_ENTRY, ENTRY, MAPPED)

# Under these names a rebuilt namespace keeps whose it is and what it was made from.
REBUILT = "__batchkit_copier__"
SOURCE = "__batchkit_source__"


def mark(function: Any, name: str, target: Any) -> None:
    """Marks a function; a copy does not keep its original alive."""
    keep = weakref.ref(target) if name == ORIGINAL else lambda: target
    function.__dict__[name] = (weakref.ref(function), keep)


def marked(function: Any, name: str) -> Any:
    """The target of a mark that belongs to this very function, if it still exists."""
    if not isinstance(function, FunctionType) or name not in function.__dict__:
        return None
    owner, target = function.__dict__[name]
    return target() if owner() is function else None
