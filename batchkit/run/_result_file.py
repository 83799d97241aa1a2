"""One result as one file: what is in it, and which files may be replaced by it.

The file is that of a checkpoint, see `_file.py`. Its header says what kind of result it
is, in which format, and with which versions it was written; under `values` stands the
structure of all values, see `_structure.py`, whose arrays are in the groups of
`arrays`.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

from ._checkpoint import CheckpointError
from ._environment import versions
from ._file import read_file, write_file
from ._structure import put_together, take_apart


FORMAT: Final = 1

_AGAIN: Final = "make the run again"
# `kind` in the header of a checkpoint names the run; here it is that of a result.
_KINDS: Final = {"NestedRun": "result of a nested run", "ChainRun": "result of chains"}


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


def read_result(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The values of a result, by name.

    **Arguments:**

    - `path`: the file.
    - `kind`: the name of its class.

    **Raises:**

    `CheckpointError` if there is no file, if it cannot be read, is damaged, foreign,
    of another kind or in a newer format.
    """
    path = os.fspath(path)
    header, arrays = read_file(path, _AGAIN)
    what = header.get("kind")
    if what != _KINDS[kind]:
        raise CheckpointError(*_other_kind(path, kind, what))
    if header["result_format"] > FORMAT:
        raise CheckpointError(
            f"{path!r} holds a result in format {header['result_format']}, and this "
            f"batchkit reads formats up to {FORMAT}.",
            f"Use the batchkit that wrote it, {header['versions']['batchkit']}, or a "
            "newer one.",
        )
    return {name: put_together(x, arrays) for name, x in header["values"].items()}


def _other_kind(path: str, kind: str, what: Any) -> tuple[str, str]:
    for name, known in _KINDS.items():
        if known == what:
            return (
                f"{path!r} holds the {what}, and not that of {kind}.",
                f"Load it with `{name}.load`.",
            )
    return (
        f"{path!r} is a checkpoint, from which a run goes on, and no result.",
        "Go on with the run by `checkpoint=`, and save what it returns under another "
        "path.",
    )


def _check_replaceable(path: str | os.PathLike[str]) -> None:
    path = os.fspath(path)
    remedy = "Choose another path, or move this file away."
    try:
        header, _ = read_file(path, _AGAIN)
    except CheckpointError as error:
        raise CheckpointError(
            f"Cannot replace what is there: {error.reason}", remedy, error.damaged
        ) from error
    if header.get("kind") not in _KINDS.values():
        raise CheckpointError(
            f"Cannot replace {path!r}: it is a checkpoint, from which a run goes on.",
            remedy,
        )
