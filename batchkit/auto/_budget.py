"""Budgets: bytes as people write them, and what a device has left."""

import re
from pathlib import Path
from typing import Any, Final

import jax


# Of what is free, the share that `Auto()` takes. The rest is for the arguments and
# results of the program around it, and for whoever else needs memory.
FREE_SHARE: Final = 0.5

_UNITS: Final = {
    **{prefix.lower() + "b": 1000**i for i, prefix in enumerate(("", *"kMGT"))},
    **{prefix.lower() + "ib": 1024**i for i, prefix in enumerate("KMGT", 1)},
}
_WRITTEN: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*")

_MEMINFO: Final = Path("/proc/meminfo")
_GROUP: Final = Path("/sys/fs/cgroup")


def bytes_of_budget(budget: Any, argument: str) -> int:
    """A budget in bytes.

    **Arguments:**

    - `budget`: a positive int of bytes, or a text such as `"512 MB"` (powers of 1000)
        or `"8 GiB"` (powers of 1024).
    - `argument`: how the caller's user wrote it, for the message.

    **Raises:**

    `TypeError` if it is neither, `ValueError` if it cannot be read or is below one.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise TypeError(
            f"{argument}: a budget is an int of bytes or a text such as '8 GiB'; got "
            f"{type(budget).__name__}."
        )
    if isinstance(budget, str):
        match = _WRITTEN.fullmatch(budget)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(
                f"{argument}: a budget is written as a number and a unit, such as "
                "'512 MB' or '8 GiB'; the units are B, kB, MB, GB, TB (powers of 1000) "
                "and KiB, MiB, GiB, TiB (powers of 1024)."
            )
        budget = int(float(match[1]) * unit)
    if budget < 1:
        raise ValueError(f"{argument}: a budget is at least one byte.")
    return budget


def budget_or_free(budget: Any, argument: str) -> int:
    """A budget in bytes; without one, the share of what is free that one takes."""
    if budget is None:
        share = int(free_bytes() * FREE_SHARE)
        # The free memory is never the same twice, but the same program should be.
        unit = 1 << max(0, share.bit_length() - 3)
        return max(1, share // unit * unit)
    return bytes_of_budget(budget, argument)


def free_bytes() -> int:
    """What one device could still allocate, or the machine's memory on CPU.

    **Raises:**

    `RuntimeError` if nobody tells, or if several processes would each be told
    something else and then run different programs.
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
    left = [x for x in (_free_of_machine(), _free_of_group()) if x is not None]
    if jax.default_backend() != "cpu" or not left:
        raise RuntimeError(
            f"Auto() cannot tell how much memory is free on "
            f"{jax.default_backend()!r}. Give a budget, such as `Auto('8 GiB')`."
        )
    return min(left)


def _free_of_machine() -> int | None:
    if not _MEMINFO.exists():
        return None
    match = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    return int(match[1]) * 1024 if match else None


def _free_of_group() -> int | None:
    """What the control group of a container leaves, where there is a limit."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = (_GROUP / "memory.current").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
