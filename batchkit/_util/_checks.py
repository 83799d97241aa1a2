"""Checks of arguments that are numbers or flags, for all that take arguments."""

import math
from typing import Any

from ._formats import format_type, format_value


def check_number(
    owner: str,
    name: str,
    value: Any,
    meaning: str = "",
    *,
    kind: type[int] | type[float] = int,
    below: float = math.inf,
    remedy: str = "",
) -> None:
    """Raise unless a number is above 0 and below a limit, and of its kind.

    Ints are floats too, as for a type checker; bools are neither. Messages continue the
    rule by the `meaning` of the number; a `remedy` follows if it is out of range.
    """
    if kind is int:
        rule = "an int, at least 1"
    elif below < math.inf:
        rule = f"a number between 0 and {below:g}"
    else:
        rule = "a number above 0 and finite"
    rule = f"{rule}, {meaning}" if meaning else rule
    text = f"{owner}({name}={format_value(value)}): {name} must be {rule}"
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise TypeError(f"{text}; got {format_type(value)}.")
    if not 0 < value < below:  # so written, NaN is refused
        raise ValueError(f"{text}. {remedy}".rstrip())


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise `TypeError` unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{owner}({name}={format_value(value)}): {name} must be True or False; got "
            f"{format_type(value)}."
        )
