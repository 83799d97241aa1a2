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
    from batchkit.run import Diagnostic

    found = Diagnostic("R-hat", 1.2, 1.01, "the chains disagree. Run them longer.")
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
    """Return warnings as lists of their fields, the form in result files."""
    return [[x.name, float(x.value), float(x.threshold), x.message] for x in warnings]
