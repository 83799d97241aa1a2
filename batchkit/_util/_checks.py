"""Checks of the types of arguments, and of the ranges of numbers."""

import math
from typing import Any

from ._formats import format_type, format_value


def check_type(
    is_right: bool, owner: str, name: str, value: object, rule: str, remedy: str = ""
) -> None:
    """Raise `TypeError` unless the type of a value is right, by a rule in words."""
    if not is_right:
        text = f"{owner}({name}={format_value(value)}): {name} must be {rule}; got "
        raise TypeError(f"{text}{format_type(value)}. {remedy}".rstrip())


def check_number(
    owner: str,
    name: str,
    value: Any,
    meaning: str = "",
    *,
    kind: type[int] | type[float] = int,
    above: int = 0,
    below: int | float = math.inf,
    remedy: str = "",
) -> None:
    """Raise unless a number is between two limits, and of its kind.

    Ints are floats too, as for a type checker; bools are neither. Messages continue the
    rule by the `meaning` of the number; a `remedy` follows if it is out of range.
    """
    if kind is int:
        rule = f"an int, at least {above + 1}"
    elif below < math.inf:
        rule = f"a number between 0 and {below:g}"
    else:
        rule = "a number above 0 and finite"
    rule = f"{rule}, {meaning}" if meaning else rule
    is_number = isinstance(value, int | kind) and not isinstance(value, bool)
    check_type(is_number, owner, name, value, rule)
    if not above < value < below:  # so written, NaN is refused
        text = f"{owner}({name}={value}): {name} must be {rule}. {remedy}"
        raise ValueError(text.rstrip())


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise `TypeError` unless a value is True or False."""
    check_type(isinstance(value, bool), owner, name, value, "True or False")
