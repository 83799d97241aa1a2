"""Formats of records as a table, in text and in HTML."""

import html
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows under their heads, in columns aligned to the left."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


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
