"""Reading code objects: the outside names that a function uses, without running it.

Such a name is global, bound by an `import` inside the function, or free: a variable of
the closure.
"""

import dis
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Literal, final


@final
@dataclass(frozen=True)
class Import:
    """The object that an `import` statement binds a name to."""

    module: str  # as it is written
    level: int  # the number of dots in front
    attribute: str | None  # of the module; None for the module itself
    loads: str | None = None  # the module that `import a.b` loads besides `a`


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
def own_references(code: CodeType) -> tuple[Reference, ...]:
    """Return the references of `code` alone, without functions defined inside it.

    A name that a surrounding function imports is free in it.
    """
    return tuple(_read(code, {}, frozenset(code.co_freevars)))


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
    stored = {x.argval for x in _instructions(code) if x.opname == "STORE_DEREF"}
    inner = (nonlocal_names(x) for x in code.co_consts if isinstance(x, CodeType))
    return frozenset(code.co_freevars) & stored.union(*inner)


def _references(
    code: CodeType, outer: Mapping[str, Import], free: frozenset[str]
) -> Iterator[Reference]:
    imports = dict(outer)
    yield from _read(code, imports, free)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names = frozenset(constant.co_freevars)
            shared = {name: imports[name] for name in names & imports.keys()}
            yield from _references(
                constant, shared, (free & names).difference(code.co_cellvars)
            )


def _read(
    code: CodeType, imports: dict[str, Import], free: frozenset[str]
) -> Iterator[Reference]:
    """Yield the references in one code object, and add to `imports` what it imports."""
    instructions = list(_instructions(code))
    line = code.co_firstlineno
    i = 0
    while i < len(instructions):
        instruction = instructions[i]
        positions = instruction.positions
        if positions is not None and positions.lineno is not None:
            line = positions.lineno
        if instruction.opname == "IMPORT_NAME":
            for name, imported in _bindings(instructions, i):
                imports[name] = imported
                yield Reference(
                    (name,), code.co_qualname, line, imported, is_binding=True
                )
        loaded = _loaded_kind(instruction, code)
        if loaded in ("global", "variable"):
            path = [instruction.argval]
            while (
                i + 1 < len(instructions)
                and _loaded_kind(instructions[i + 1], code) == "attribute"
            ):
                i += 1
                path.append(instructions[i].argval)
            imported = imports.get(path[0])
            is_free = loaded == "variable" and imported is None and path[0] in free
            if loaded == "global" or is_free or imported is not None:
                yield Reference(
                    tuple(path),
                    code.co_qualname,
                    line,
                    imported,
                    is_free,
                    is_decorator=_defines_function(instructions[i + 1 :]),
                )
        i += 1


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
        operands = instruction.argval if len(parts) > 1 else (instruction.argval,)
        for opname, operand in zip(parts, operands, strict=True):
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


def _bindings(
    instructions: list[dis.Instruction], start: int
) -> Iterator[tuple[str, Import]]:
    """Yield the names that the `import` at `start` binds."""
    module = instructions[start].argval
    level, names = (instructions[start - k].argval for k in (2, 1))
    attribute: str | None = None
    for instruction in instructions[start + 1 :]:
        if instruction.opname == "IMPORT_FROM":
            attribute = instruction.argval
        elif instruction.opname.startswith("STORE_"):
            name = instruction.argval
            if names:  # from a import b, c
                yield name, Import(module, level, attribute)
            else:  # `import a.b` binds `a`, and `import a.b as c` binds `a.b`
                whole = module if attribute else module.split(".")[0]
                yield name, Import(whole, level, None, module)
                return
        elif instruction.opname not in ("SWAP", "POP_TOP"):
            return


def _defines_function(following: list[dis.Instruction]) -> bool:
    """Return True if the value loaded before `following` decorates a `def`."""
    for instruction in following:
        if isinstance(instruction.argval, CodeType):
            return not instruction.argval.co_name.startswith("<")
        if instruction.opname.startswith(("CALL", "PRECALL", "STORE", "RETURN", "POP")):
            return False
    return False
