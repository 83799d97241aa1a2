"""One reason to doubt the result of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Diagnostic:
    """A reason to doubt the result of a run, and what to do about it.

    - `name`: the quantity that was checked.
    - `value`: its value.
    - `threshold`: the last value without a warning.
    - `message`: what it means and what to do.

    ```python
    import batchkit as bk

    found = bk.Diagnostic("R-hat", 1.2, 1.01, "the chains disagree. Run them longer.")
    assert found.value > found.threshold
    assert str(found) == "R-hat: the chains disagree. Run them longer."
    ```
    """

    name: str
    value: float
    threshold: float
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def diagnostics_as_saved(warnings: Iterable[Diagnostic]) -> list[list[Any]]:
    """Return warnings in the form that a result file holds."""
    return [[x.name, float(x.value), float(x.threshold), x.message] for x in warnings]


def diagnostics_from(saved: Iterable[Any]) -> tuple[Diagnostic, ...]:
    """Return the warnings of a result file; raise `ValueError` if they are none."""
    found = []
    for name, value, threshold, message in saved:
        if type(name) is not str or type(message) is not str:
            raise ValueError(f"it has a warning {[name, value, threshold, message]!r}")
        found.append(Diagnostic(name, float(value), float(threshold), message))
    return tuple(found)
