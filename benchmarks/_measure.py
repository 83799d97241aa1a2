"""Measuring side by side: interleaved repeats, medians, ratios, and the noise."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def print_machine() -> None:
    """What the figures below were measured on."""
    device = jax.devices()[0]
    print(
        f"{os.cpu_count()} CPU cores, {device.device_kind}, Python "
        f"{platform.python_version()}, JAX {jax.__version__}\n"
    )


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every candidate, measured in turn so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(candidate())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def print_ratios(title: str, seconds: Mapping[str, Sequence[float]], base: str) -> None:
    """Medians with their range, and the median of the ratios within each round."""
    print(f"{title:34}{'median':>10}{'range':>20}{'/ ' + base:>12}")
    for name, values in seconds.items():
        ratios = [x / y for x, y in zip(values, seconds[base], strict=True)]
        low, high = min(values), max(values)
        print(
            f"  {name:32}{statistics.median(values):9.3f}s"
            f"{low:9.3f} to {high:6.3f}s{statistics.median(ratios):12.2f}"
        )
    print()


def temporary_bytes(fun: Callable[..., Any], *shapes: Any) -> int:
    """The bytes of temporary memory that XLA allocates to run `fun`."""
    return bytes_of(jax.jit(fun).lower(*shapes).compile())


def bytes_of(program: jax.stages.Compiled) -> int:
    """The bytes of temporary memory that XLA allocates to run a program."""
    analysis = program.memory_analysis()
    assert analysis is not None, "this backend has no memory analysis"
    return analysis.temp_size_in_bytes


def readable(size: float) -> str:
    """Bytes in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
