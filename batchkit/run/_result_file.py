"""One result as one file: what is in it, and which files may be replaced by it.

The file is that of a checkpoint, see `_file.py`. Its header says what kind of result it
is, in which format, and with which versions it was written; under `values` stands the
structure of all values, see `_structure.py`, whose arrays are in the groups of
`arrays`.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from ._checkpoint import CheckpointError
from ._environment import versions
from ._file import read_file, understood, write_file
from ._structure import put_together, take_apart


FORMAT: Final = 1

# What errors say can be done without the file.
AGAIN: Final = "make the run again"
# `kind` in the header of a checkpoint names the run; here it is that of a result.
_KINDS: Final = {
    "NestedRun": "result of a nested run",
    "ChainRun": "result of chains",
    "ShardRun": "result of shards",
}
# The draws of shards become a result by functions of the user, which no file holds.
_CHECKPOINTS: Final = {"NestedRun": "nested run", "ChainRun": "run of chains"}


def write_result(
    path: str | os.PathLike[str], kind: str, values: Mapping[str, Any]
) -> None:
    """Writes a result; an older result at the path is replaced whole or not at all.

    **Arguments:**

    - `path`: the file.
    - `kind`: the name of its class.
    - `values`: pytrees by name; of numbers, text, None and arrays.

    **Raises:**

    `CheckpointError` if it cannot be written, or if there is another file;
    `TypeError` if something in it cannot be stored.
    """
    if os.path.exists(path):
        _check_replaceable(path)
    arrays: dict[str, Any] = {}
    structure = {name: take_apart(name, x, arrays) for name, x in values.items()}
    header = {
        "kind": _KINDS[kind],
        "result_format": FORMAT,
        "versions": versions(),
        "values": structure,
    }
    write_file(path, header, arrays)


def read_result(
    path: str | os.PathLike[str],
    kind: str,
    of_checkpoint: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
    | None = None,
) -> dict[str, Any]:
    """The values of a result, by name.

    **Arguments:**

    - `path`: the file.
    - `kind`: the name of its class.
    - `of_checkpoint`: makes the values from the header and the arrays of a checkpoint;
        None if that cannot be.

    **Raises:**

    `CheckpointError` if there is no file, if it cannot be read, is damaged, foreign,
    of another kind or in a newer format.
    """
    path = os.fspath(path)
    header, arrays = read_file(path, AGAIN)
    what = header.get("kind")
    with understood(path, AGAIN):
        if of_checkpoint is not None and what == _CHECKPOINTS[kind]:
            return of_checkpoint(header, arrays)
        if what != _KINDS[kind]:
            raise CheckpointError(*_other_kind(path, kind, what))
        if header["result_format"] > FORMAT:
            raise CheckpointError(
                f"{path!r} holds a result in format {header['result_format']}, and "
                f"this batchkit reads formats up to {FORMAT}.",
                f"Use the batchkit that wrote it, {header['versions']['batchkit']}, or "
                "a newer one.",
            )
        values = {
            str(name): put_together(x, arrays) for name, x in header["values"].items()
        }
        if arrays:
            raise ValueError(f"it has an array {min(arrays)!r} that is of no value")
        return values


def typed(values: Mapping[str, Any], name: str, *types: type) -> Any:
    """Return a value of a file if it is of one of some types, else raise `ValueError`.

    A boolean is no number here.
    """
    if type(values[name]) not in types:
        raise ValueError(f"its {name} is {values[name]!r}")
    return values[name]


def numbers(values: Mapping[str, Any], name: str, *counts: int) -> tuple[float, ...]:
    """Return a list of so many numbers of a file as a tuple, else raise `ValueError`.

    **Arguments:**

    - `values`: the values of the file.
    - `name`: the name of the list.
    - `counts`: the lengths that it may have.
    """
    found = typed(values, name, list)
    if len(found) not in counts or not {type(x) for x in found} <= {int, float}:
        raise ValueError(f"its {name} are {found!r}")
    return tuple(map(float, found))


def _other_kind(path: str, kind: str, what: Any) -> tuple[str, str]:
    for name in _KINDS:
        if what in (_KINDS[name], _CHECKPOINTS.get(name, _KINDS[name])):
            return (
                f"{path!r} holds a {what}, and not a {kind}.",
                f"Load it with `{name}.load`.",
            )
    return (
        f"{path!r} is a checkpoint, from which a run goes on, and no result.",
        "Go on with the run by `checkpoint=`, and keep what it returns.",
    )


def _check_replaceable(path: str | os.PathLike[str]) -> None:
    path = os.fspath(path)
    remedy = "Choose another path, or move this file away."
    try:
        header, _ = read_file(path, AGAIN)
    except CheckpointError as error:
        raise CheckpointError(
            f"Cannot replace what is there: {error.reason}", remedy, error.damaged
        ) from error
    if header.get("kind") not in _KINDS.values():
        raise CheckpointError(
            f"Cannot replace {path!r}: it is a checkpoint, from which a run goes on.",
            remedy,
        )
