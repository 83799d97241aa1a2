"""Reading code objects: which global names a function uses, without running it."""

import dis
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import final


@final
@dataclass(frozen=True)
class Reference:
    """A global name that code reads, with the attributes that it reads off it."""

    path: tuple[str, ...]  # ("jax", "vmap") for `jax.vmap`
    qualname: str  # of the function, possibly a nested one, that reads it
    line: int


@functools.cache
def global_references(code: CodeType) -> tuple[Reference, ...]:
    """The global names read by `code` and by the functions defined inside it."""
    return tuple(_references(code))


def looks_up_names_at_run_time(code: CodeType) -> bool:
    """Whether `code` can read globals by names that no reading of it tells."""
    dynamic = {"globals", "eval", "exec", "vars"}
    return any(x.path[0] in dynamic for x in global_references(code))


def _references(code: CodeType) -> Iterator[Reference]:
    path: tuple[str, ...] = ()
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        if path and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path = (*path, instruction.argval)
            continue
        if path:
            yield Reference(path, code.co_qualname, line)
            path = ()
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            path = (instruction.argval,)
            positions = instruction.positions
            if positions is not None and positions.lineno is not None:
                line = positions.lineno
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _references(constant)
