"""Reading code objects: which names from outside a function uses, without running it.

Such a name is a global one, or one that an `import` inside the function binds.
"""

import dis
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import final


@final
@dataclass(frozen=True)
class Import:
    """What an `import` statement binds a name to."""

    module: str  # as it is written
    level: int  # how many dots stood in front
    attribute: str | None  # of the module; None for the module itself
    loads: str | None = None  # the module that `import a.b` loads besides `a`


@final
@dataclass(frozen=True)
class Reference:
    """A name from outside that code reads, with the attributes it reads off it."""

    path: tuple[str, ...]  # ("jax", "vmap") for `jax.vmap`
    qualname: str  # of the function, possibly a nested one, that reads it
    line: int
    imported: Import | None = None  # what the first name is, if it is not global
    is_binding: bool = False  # the import itself, not a use of what it binds
    is_decorator: bool = False


@functools.cache
def references(code: CodeType) -> tuple[Reference, ...]:
    """The names from outside read by `code` and by the functions defined inside it."""
    return tuple(_references(code, {}))


def own_references(code: CodeType) -> tuple[Reference, ...]:
    """Those of them that `code` reads itself, not a function inside it.

    A nested function is told what the functions around it import, if they are known.
    """
    if code not in _OWN:
        references(code)
    return _OWN[code]


@functools.cache
def global_names(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """The paths of the global names among them, each once."""
    found = (ref.path for ref in references(code) if ref.imported is None)
    return tuple(dict.fromkeys(found))


def looks_up_names_at_run_time(code: CodeType) -> bool:
    """Whether `code` can read globals by names that no reading of it tells."""
    dynamic = {"globals", "eval", "exec", "vars"}
    return any(path[0] in dynamic for path in global_names(code))


# A function inside another one is first read as a part of that.
_OWN: dict[CodeType, tuple[Reference, ...]] = {}


def _references(code: CodeType, outer: dict[str, Import]) -> Iterator[Reference]:
    imports = dict(outer)
    own = tuple(_read(code, imports))
    if outer or code not in _OWN:
        _OWN[code] = own
    yield from own
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            shared = (name for name in constant.co_freevars if name in imports)
            yield from _references(constant, {name: imports[name] for name in shared})


def _read(code: CodeType, imports: dict[str, Import]) -> Iterator[Reference]:
    """The references in one code object; what it imports is added to `imports`."""
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
                yield Reference((name,), code.co_qualname, line, imported, True)
        is_global = _loads_global(instruction)
        if is_global or _loads_variable(instruction, code):
            path = [instruction.argval]
            while i + 1 < len(instructions) and _loads_attribute(instructions[i + 1]):
                i += 1
                path.append(instructions[i].argval)
            meanings: list[Import | None] = [None] if is_global else []
            if path[0] in imports:  # also where it is declared global
                meanings.append(imports[path[0]])
            for imported in meanings:
                yield Reference(
                    tuple(path),
                    code.co_qualname,
                    line,
                    imported,
                    is_decorator=_defines_function(instructions[i + 1 :]),
                )
        i += 1


# Opcodes come, go and merge with every version of Python: 3.12 dropped LOAD_METHOD, and
# 3.13 joins a store and the load after it on the same line into STORE_FAST_LOAD_FAST.
# Their words and the tables of `dis` in which they stand have not changed.

_JOINT = re.compile("_(?=LOAD_|STORE_)")


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """The instructions of `code`, with joined ones split and fillers left out."""
    for instruction in dis.get_instructions(code):
        # EXTENDED_ARG stands between a name and its attribute in long functions.
        if instruction.opname in ("CACHE", "EXTENDED_ARG", "NOP"):
            continue
        parts = _JOINT.split(instruction.opname)
        operands = instruction.argval if len(parts) > 1 else (instruction.argval,)
        for opname, operand in zip(parts, operands, strict=True):
            opcode = dis.opmap[opname]
            yield instruction._replace(opname=opname, opcode=opcode, argval=operand)


def _loads_attribute(instruction: dis.Instruction) -> bool:
    return (
        instruction.opcode in dis.hasname
        and instruction.opname.startswith("LOAD_")
        and instruction.opname.endswith(("ATTR", "METHOD"))
    )


def _loads_global(instruction: dis.Instruction) -> bool:
    """Return True if an instruction loads a global variable, or one of a class."""
    return (
        instruction.opcode in dis.hasname
        and instruction.opname.startswith("LOAD_")
        and not _loads_attribute(instruction)
    )


def _loads_variable(instruction: dis.Instruction, code: CodeType) -> bool:
    """Return True if an instruction loads the value of a local or free variable."""
    name, opcode = instruction.opname, instruction.opcode
    if not name.startswith("LOAD_") or name == "LOAD_CLOSURE":
        return False
    if opcode in dis.haslocal:
        # Since Python 3.13 this is also how a cell is loaded for a nested function.
        return instruction.argval not in (*code.co_cellvars, *code.co_freevars)
    return opcode in dis.hasfree


def _bindings(
    instructions: list[dis.Instruction], start: int
) -> Iterator[tuple[str, Import]]:
    """The names that the `import` at `start` binds."""
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
    """Whether what was read is about to decorate a `def`."""
    for instruction in following:
        if isinstance(instruction.argval, CodeType):
            return not instruction.argval.co_name.startswith("<")
        if instruction.opname.startswith(("CALL", "PRECALL", "STORE", "RETURN", "POP")):
            return False
    return False
