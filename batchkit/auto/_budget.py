"""Memory budgets: parsing them, measuring free memory, and `BudgetError`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import jax

from .._util._formats import format_bytes


# The share of the free memory that `Auto()` uses. The rest is for the arguments and
# results of the program around it, and for other programs.
FREE_SHARE: Final = 0.5

_UNITS: Final = {
    **{prefix.lower() + "b": 1000**i for i, prefix in enumerate(("", *"kMGT"))},
    **{prefix.lower() + "ib": 1024**i for i, prefix in enumerate("KMGT", 1)},
}
_PATTERN: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*")

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


@final
class BudgetError(ValueError):
    """Error for a budget that is too small for a single lane.

    ```python
    import jax.numpy as jnp
    import pytest
    import batchkit as bk

    def squares(x):
        return jnp.linalg.slogdet(jnp.sin(jnp.outer(x, x)))[1]

    with pytest.raises(bk.BudgetError, match="one lane needs"):
        bk.Auto("1 MB")(squares)(jnp.ones((10, 1000)))
    ```

    It has the bytes of one lane as `needed`, and those available for it as `budget`.
    """

    def __init__(
        self,
        owner: str,
        needed: int,
        budget: int,
        outer_lanes: int,
        largest: Sequence[str],
    ) -> None:
        self.needed = needed
        self.budget = budget
        each = f", for each of the {outer_lanes} lanes around it"
        each = each if outer_lanes > 1 else ""
        super().__init__(
            f"{owner}: one lane needs {format_bytes(needed)}, the budget is "
            f"{format_bytes(budget)}{each}. The largest arrays in it are "
            f"{', '.join(largest)}. Give a larger budget, or make a lane smaller: work "
            "through its data in blocks, or compute in float32."
        )


def parse_budget(budget: Any, argument: str) -> int:
    """Return in bytes what is a positive int, or a text such as `"512 MB"`.

    `argument` is the call as the user wrote it, for messages.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise TypeError(
            f"{argument}: budget must be an int of bytes or a text such as '8 GiB'; "
            f"got {type(budget).__name__}."
        )
    if isinstance(budget, str):
        match = _PATTERN.fullmatch(budget)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(
                f"{argument}: budget must be a number and a unit, such as "
                "'512 MB' or '8 GiB'; the units are B, kB, MB, GB, TB (powers of 1000) "
                "and KiB, MiB, GiB, TiB (powers of 1024)."
            )
        budget = int(float(match[1]) * unit)
    if budget < 1:
        raise ValueError(f"{argument}: budget must be at least one byte.")
    return budget


def budget_or_free(budget: Any, argument: str) -> int:
    """Return a budget in bytes; for None, a share of the free memory."""
    if budget is not None:
        return parse_budget(budget, argument)
    share = int(free_bytes() * FREE_SHARE)
    # Free memory fluctuates. Rounded down to three significant bits, the share is the
    # same in most runs, and so is the layout.
    unit = 1 << max(0, share.bit_length() - 3)
    return max(1, share // unit * unit)


def free_bytes() -> int:
    """Return the bytes that one device can still allocate, on CPU the free memory.

    **Raises:**

    `RuntimeError` if the device does not report them, or in a multi-process program,
    whose processes would measure different figures and then run different programs.
    """
    if jax.process_count() > 1:
        raise RuntimeError(
            f"Auto() measures free memory, and {jax.process_count()} processes would "
            "measure different figures and run different programs. Give a budget, such "
            "as `Auto('8 GiB')`."
        )
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    left = [x for x in (_free_on_machine(), _free_in_cgroup()) if x is not None]
    if jax.default_backend() != "cpu" or not left:
        raise RuntimeError(
            f"Auto() cannot measure the free memory of {jax.default_backend()!r}. Give "
            "a budget, such as `Auto('8 GiB')`."
        )
    return min(left)


def _free_on_machine() -> int | None:
    if not _MEMINFO.exists():
        return None
    match = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    return int(match[1]) * 1024 if match else None


def _free_in_cgroup() -> int | None:
    """Return the bytes left in the container's control group, if it has a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
