"""Checks of numbers and flags: the value, the rule and the remedy in each message."""

from math import inf, nan
from typing import Any

import pytest

from batchkit._util._checks import check_flag, check_number

from ..helpers import assert_refuses


INT: Any = {}, "an int, at least 1"
RATE: Any = {"kind": float, "below": 1}, "a number between 0 and 1"
POSITIVE: Any = {"kind": float}, "a number above 0 and finite"


@pytest.mark.parametrize(
    ("options", "rule", "good", "no_number", "out_of_range"),
    [
        (*INT, (1, 10**400), (True, 2.0, "16", None), (0, -3)),
        (*RATE, (1e-9, 0.5), (True, "high"), (0, 1, 1.0, nan)),
        (*POSITIVE, (1e-9, 3, 10**400), (False, "1"), (0, -1.0, inf, nan)),
    ],
)
def test_numbers_out_of_range_and_of_other_types_are_refused(
    options: Any, rule: str, good: Any, no_number: Any, out_of_range: Any
) -> None:
    def check(x: Any) -> None:
        check_number("f", "x", x, "such as 3", **options, remedy="Do so.")

    for x in good:
        check(x)
    for x in no_number:
        words = f"f(x={x!r}): x must be {rule}, such as 3; got {type(x).__name__}."
        assert_refuses(lambda x=x: check(x), TypeError, (words,))
    for x in out_of_range:
        words = f"f(x={x}): x must be {rule}, such as 3. Do so."
        assert_refuses(lambda x=x: check(x), ValueError, (words,))


def test_flags_are_bools() -> None:
    check_flag("f", "x", False)
    words = "f(x=1): x must be True or False; got int."
    assert_refuses(lambda: check_flag("f", "x", 1), TypeError, (words,))
