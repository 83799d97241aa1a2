"""Files of results: their kinds, what they may replace, and checks of their values.

The file is that of a checkpoint, see `_file.py`. Its header has the kind of the result,
the format, and the versions that wrote it. `values` in the header is the structure of
all values, see `_structure.py`; their arrays are in the groups of `arrays`.
"""

import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from ._checkpoint import CheckpointError
from ._environment import versions
from ._file import read_file, understood, write_file
from ._trees import tree_from_json, tree_to_json


FORMAT: Final = 1

# For errors: the remedy that needs no file.
AGAIN: Final = "make the run again"
# `kind` in the headers of a result and of a checkpoint that is read as one, by class.
_KINDS: Final = {
    "NestedRun": ("result of a nested run", "nested run"),
    "ChainRun": ("result of chains", "run of chains"),
    "ShardRun": ("result of shards", None),
}

Header = dict[str, Any]
Arrays = dict[str, Any]


def write_result(
    path: str | os.PathLike[str], kind: str, values: Mapping[str, Any]
) -> None:
    """Write pytrees of numbers, text, None and arrays by name.

    `kind` is the name of the class of the result. An older result at the path is
    replaced whole or not at all; any other file is refused.
    """
    if os.path.exists(path):
        _check_replaceable(os.fspath(path))
    arrays: dict[str, Any] = {}
    structure = {name: tree_to_json(name, x, arrays) for name, x in values.items()}
    header = {
        "kind": _KINDS[kind][0],
        "result_format": FORMAT,
        "versions": versions(),
        "values": structure,
    }
    write_file(path, header, arrays)


def read_result(
    path: str,
    kind: str,
    read_checkpoint: Callable[[Header, Arrays], dict[str, Any] | None],
) -> dict[str, Any]:
    """Return the values of a result by name.

    `read_checkpoint` makes them from a checkpoint of such a run, and returns None of
    any other file.
    """
    header, arrays = read_file(path, AGAIN)
    what = header.get("kind")
    with understood(path, AGAIN):
        if (values := read_checkpoint(header, arrays)) is not None:
            return values
        if what != _KINDS[kind][0]:
            raise CheckpointError(*_other_kind(path, kind, what))
        if header["result_format"] > FORMAT:
            raise CheckpointError(
                f"{path!r} holds a result in format {header['result_format']}, and "
                f"this batchkit reads formats up to {FORMAT}.",
                f"Use the batchkit that wrote it, {header['versions']['batchkit']}, or "
                "a newer one.",
            )
        values = {
            str(name): tree_from_json(x, arrays) for name, x in header["values"].items()
        }
        if arrays:
            raise ValueError(f"it has an array {min(arrays)!r} that is of no value")
        return values


def typed(values: Mapping[str, Any], name: str, *types: type) -> Any:
    """Return a value of a file if its type is one of `types`, else raise `ValueError`.

    Subclasses do not count, so a boolean is no number.
    """
    if type(values[name]) not in types:
        raise ValueError(f"its {name} is {values[name]!r}")
    return values[name]


def numbers(values: Mapping[str, Any], name: str, *counts: int) -> tuple[float, ...]:
    """Return a list of numbers of a file, of one of some lengths, as a tuple.

    Anything else raises `ValueError`.
    """
    found = typed(values, name, list)
    if len(found) not in counts or not {type(x) for x in found} <= {int, float}:
        raise ValueError(f"its {name} are {found!r}")
    return tuple(map(float, found))


def record_from(values: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return a value of a file as a type says, else raise `ValueError`.

    A dataclass or a named tuple is made from a dict or a list of its fields, whose
    types are its annotations. Further types are `tuple[kind, ...]`, `list[kind]`,
    `kind | None`, and those of `typed`; a `float` may be an `int`.
    """
    value = values[name]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (tuple, list):
        items = typed(values, name, origin)
        return origin(record_from({name: item}, name, inner[0]) for item in items)
    if origin is types.UnionType:
        return None if value is None else record_from(values, name, inner[0])
    if fields := typing.get_type_hints(kind):
        found = typed(values, name, dict, list)
        if type(found) is list:
            found = dict(zip(fields, found, strict=True))
        return kind(**{x: record_from(found, x, hint) for x, hint in fields.items()})
    return typed(values, name, *((int, float) if kind is float else (kind,)))


def _other_kind(path: str, kind: str, what: Any) -> tuple[str, str]:
    for name, kinds in _KINDS.items():
        if what is not None and what in kinds:
            return (
                f"{path!r} holds a {what}, and not a {kind}.",
                f"Load it with `{name}.load`.",
            )
    return (
        f"{path!r} is a checkpoint, from which a run goes on, and no result.",
        "Go on with the run by `checkpoint=`, and keep what it returns.",
    )


def _check_replaceable(path: str) -> None:
    remedy = "Choose another path, or move this file away."
    try:
        header, _ = read_file(path, AGAIN)
    except CheckpointError as error:
        raise CheckpointError(
            f"Cannot replace what is there: {error.reason}", remedy, error.damaged
        ) from error
    if header.get("kind") not in {kind for kind, _ in _KINDS.values()}:
        raise CheckpointError(
            f"Cannot replace {path!r}: it is a checkpoint, from which a run goes on.",
            remedy,
        )
