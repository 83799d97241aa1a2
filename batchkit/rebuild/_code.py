"""Reading code objects: the outside names that a function uses, without running it.

Such a name is global, bound by an `import` inside the function, or free: a variable of
the closure.
"""

import dis
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import CodeType
from typing import Literal, final


@final
@dataclass(frozen=True)
class Import:
    """An `import` statement, and what it binds a name to: an attribute of a module."""

    module: str  # as it is written
    level: int  # the number of dots in front
    is_from: bool  # without `from`, the module is the outermost package
    path: tuple[str, ...]


@final
@dataclass(frozen=True)
class Reference:
    """A name from outside that code reads, with the attributes it reads off it."""

    path: tuple[str, ...]  # ("jax", "vmap") for `jax.vmap`
    qualname: str  # of the function, possibly a nested one, that reads it
    line: int
    imported: Import | None = None  # what an import in the function bound it to
    is_free: bool = False  # a variable of the closure
    is_binding: bool = False  # the import itself, not a use of what it binds
    is_decorator: bool = False


@functools.cache
def references(code: CodeType) -> tuple[Reference, ...]:
    """Return the references of `code` and of the functions defined inside it."""
    return tuple(_references(code, {}, frozenset(code.co_freevars)))


@functools.cache
def global_names(code: CodeType) -> tuple[str, ...]:
    """Return the global names that `code` reads, each once."""
    found = references(code)
    return tuple(
        dict.fromkeys(x.path[0] for x in found if not (x.imported or x.is_free))
    )


@functools.cache
def nonlocal_names(code: CodeType) -> frozenset[str]:
    """Return the variables of surrounding functions that `code` assigns."""
    if not code.co_freevars:
        return frozenset()
    stored = {x.argval for x in _instructions(code) if x.opname == "STORE_DEREF"}
    inner = (nonlocal_names(x) for x in code.co_consts if isinstance(x, CodeType))
    return frozenset(code.co_freevars) & stored.union(*inner)


def _references(
    code: CodeType, outer: Mapping[str, Import], free: frozenset[str]
) -> Iterator[Reference]:
    imports = dict(outer)
    instructions = list(_instructions(code))
    kinds = [_loaded_kind(instruction, code) for instruction in instructions]
    line = code.co_firstlineno
    importing: Import | None = None
    for i, instruction in enumerate(instructions):
        positions = instruction.positions
        if positions is not None and positions.lineno is not None:
            line = positions.lineno
        place = code.co_qualname, line
        opname, argument = instruction.opname, instruction.argval
        if opname == "IMPORT_NAME":
            level, names = (instructions[i - k].argval for k in (2, 1))
            importing = Import(argument, level, bool(names), ())
        elif importing is not None and opname == "IMPORT_FROM":
            # `import a.b as c` imports `a`, and then reads `b` off it.
            outer_path = () if importing.is_from else importing.path
            importing = replace(importing, path=(*outer_path, argument))
        elif importing is not None and opname.startswith("STORE_"):
            imports[argument] = importing
            yield Reference((argument,), *place, importing, is_binding=True)
        elif opname not in ("SWAP", "POP_TOP"):
            importing = None
        if kinds[i] not in ("global", "variable"):
            continue
        end = i + 1
        while end < len(kinds) and kinds[end] == "attribute":
            end += 1
        name, *_ = path = tuple(x.argval for x in instructions[i:end])
        imported = imports.get(name)
        is_free = kinds[i] == "variable" and imported is None and name in free
        if kinds[i] == "global" or is_free or imported is not None:
            decorates = _defines_function(instructions[end:])
            yield Reference(path, *place, imported, is_free, is_decorator=decorates)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names = frozenset(constant.co_freevars)
            shared = {name: imports[name] for name in names & imports.keys()}
            still_free = (free & names).difference(code.co_cellvars)
            yield from _references(constant, shared, still_free)


# Opcodes come, go and merge with every version of Python: 3.12 dropped LOAD_METHOD, and
# 3.13 joins a store and the load after it on the same line into STORE_FAST_LOAD_FAST.
# So they are recognised by the words in their names and by the tables of `dis`, neither
# of which has changed since 3.11.

_JOINT = re.compile("_(?=LOAD_|STORE_)")


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Yield the instructions of `code`, joined ones split and fillers left out."""
    for instruction in dis.get_instructions(code):
        # EXTENDED_ARG stands between a name and its attribute in long functions.
        if instruction.opname in ("CACHE", "EXTENDED_ARG", "NOP"):
            continue
        parts = _JOINT.split(instruction.opname)
        if len(parts) == 1:
            yield instruction
            continue
        for opname, operand in zip(parts, instruction.argval, strict=True):
            opcode = dis.opmap[opname]
            yield instruction._replace(opname=opname, opcode=opcode, argval=operand)


def _loaded_kind(
    instruction: dis.Instruction, code: CodeType
) -> Literal["global", "attribute", "variable"] | None:
    """Return what an instruction loads, or None if it loads none of these."""
    name, opcode = instruction.opname, instruction.opcode
    if not name.startswith("LOAD_") or name == "LOAD_CLOSURE":
        return None
    if opcode in dis.hasname:
        return "attribute" if name.endswith(("ATTR", "METHOD")) else "global"
    # Since Python 3.13 LOAD_FAST is also how a cell is loaded for a nested function.
    cells = (*code.co_cellvars, *code.co_freevars)
    is_local = opcode in dis.haslocal and instruction.argval not in cells
    return "variable" if is_local or opcode in dis.hasfree else None


def _defines_function(following: list[dis.Instruction]) -> bool:
    """Return True if the value loaded before `following` decorates a `def`."""
    for instruction in following:
        if isinstance(instruction.argval, CodeType):
            return not instruction.argval.co_name.startswith("<")
        if instruction.opname.startswith(("CALL", "PRECALL", "STORE", "RETURN", "POP")):
            return False
    return False
