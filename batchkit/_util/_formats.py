"""Values, byte counts and tables in texts that people read.

Arrays print as dtype and shape. Swapped arguments would otherwise print thousands of
numbers, and a traced array has no values to print.
"""

import html
import inspect
from collections.abc import Sequence
from typing import Any, Final, final

import equinox as eqx
import jax
import numpy as np


# A longer repr hides the sentence around it.
_MAX_CHARACTERS: Final = 200


def format_bytes(size: int) -> str:
    """Format a number of bytes with a decimal unit: `27.6 GB`."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{value:.3g} {units[0]}"


def format_value(value: object) -> str:
    """Format a value like `repr`, with arrays elided: `{'a': float32[60,2]}`."""
    if isinstance(value, type):
        return value.__name__
    try:
        text = repr(jax.tree.map(_elide_array, value))
    except Exception:  # a user's own repr or pytree may raise any exception
        return f"<{type(value).__name__}>"
    return f"{text[:_MAX_CHARACTERS]}..." if len(text) > _MAX_CHARACTERS else text


def format_type(value: object) -> str:
    """Name the type of a value; for a class, also say how to make an instance."""
    if not isinstance(value, type):
        return type(value).__name__
    name = value.__name__
    if not issubclass(value, eqx.Module) or inspect.isabstract(value):
        return f"the class {name}"
    required = [
        x
        for x in inspect.signature(value).parameters.values()
        if x.default is x.empty and x.kind is x.POSITIONAL_OR_KEYWORD
    ]
    is_count = len(required) == 1 and required[0].annotation is int
    arguments = "16" if is_count else "..." if required else ""
    return f"the class {name}; make one: `{name}({arguments})`"


@final
class _ArrayLabel:
    """A stand-in for an array that prints as its dtype and shape."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _elide_array(x: Any) -> Any:
    if isinstance(x, np.generic):
        return x
    dtype, shape = getattr(x, "dtype", None), getattr(x, "shape", None)
    if dtype is None or not isinstance(shape, tuple):
        return x
    return _ArrayLabel(f"{dtype}[{','.join(map(str, shape))}]")


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], most: int | None = None
) -> str:
    """Format rows, or the first of them, under their heads, in aligned columns."""
    lines = [list(head), *map(list, rows[:most])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    hidden = 0 if most is None else len(rows) - most
    return f"{text}\n... and {hidden:,} more" if hidden > 0 else text


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows for a notebook. Spaces in front of a cell's text indent it."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f"<table><thead><tr>{line(head, 'th')}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _escaped(cell: str) -> str:
    text = cell.lstrip(" ")
    return "&nbsp;" * (len(cell) - len(text)) + html.escape(text)
