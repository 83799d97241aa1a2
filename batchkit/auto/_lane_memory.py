"""Memory: budgets, the bytes of a number of lanes, and the most lanes that fit.

To measure lanes, the task is compiled; nothing runs. Arrays that it closes over are
arguments of the program, so that they are allocated once for any number of lanes. XLA
assigns buffers before it generates machine code, so the latter is not optimised.

Memory grows linearly with the number of lanes, plus a constant. So the line through two
measurements predicts the size at which the budget is used up. The prediction is then
measured. Where it is wrong, because of rounding or because XLA chooses another
algorithm, the search continues between the largest size that fits and the smallest that
does not.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import jax
import jax.numpy as jnp

from .._util._formats import format_bytes
from .._util._jaxprs import axis_names, equations, inner_jaxprs
from ..batchers import AbstractBatcher, Vmap
from ..batchers._call import TracedTask, size_of
from ..devices._target import (
    Target,
    compile_for,
    device_of,
    is_described,
    memory_of_device,
    platform_of,
    shapes_on,
)


# The share of the free memory that `Auto()` uses. The rest is for the arguments and
# results of the program around it, and for other programs.
FREE_SHARE: Final = 0.5
# The share of a GPU's memory that JAX takes, unless the user sets another one.
_TAKEN_BY_JAX: Final = 0.75

_UNITS: Final = {
    **{prefix.lower() + "b": 1000**i for i, prefix in enumerate(("", *"kMGT"))},
    **{prefix.lower() + "ib": 1024**i for i, prefix in enumerate("KMGT", 1)},
}
_PATTERN: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*")

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
# The intermediates of a program are never all live at once. The factor leaves room for
# buffers that are in no jaxpr: workspaces of linear algebra, two copies of a loop's
# carry.
SAFETY_FACTOR: Final = 8
# If a prediction was within this relative error, the next one needs no measurement.
_TOLERANCE: Final = 0.01


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
    """Return the bytes of a budget: a positive int, or a text such as `"512 MB"`."""
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


def budget_on(
    budget: int | str | None, device: Target, argument: str
) -> tuple[int, str]:
    """Return a budget in bytes, and what it is of the memory of the device."""
    kind = device_of(device).device_kind
    memory = memory_of_device(device)
    if budget is None:
        if not is_described(device):
            return budget_or_free(None, argument), "half of the free memory"
        if memory is None:
            raise ValueError(
                f"{argument}: the memory of {kind!r} is not known. Give a budget, such "
                "as '70 GB'."
            )
        return int(FREE_SHARE * memory), f"half of its {format_bytes(memory)}"
    allowed = parse_budget(budget, argument)
    if memory is None:
        return allowed, ""
    if allowed > memory:
        raise ValueError(
            f"{argument}: {kind!r} has {format_bytes(memory)}. Give a budget within "
            "it, or None."
        )
    source = f"{100 * allowed / memory:.2g} % of its {format_bytes(memory)}"
    if is_described(device) and allowed > _TAKEN_BY_JAX * memory:
        source += "; JAX takes 75 %, unless XLA_PYTHON_CLIENT_MEM_FRACTION is more"
    return allowed, source


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


def bytes_of_lanes(
    task: TracedTask, axis_name: Any, lanes: int, device: Target = None
) -> int:
    """Measure the bytes of some lanes of a task under `jax.vmap`.

    These are XLA's temporaries, and the rows and results of as many tasks, which are
    temporaries of a loop over chunks.
    """
    stats = _compiled(task, Vmap(), lanes, axis_name, device)
    made = stats.temp_size_in_bytes + stats.output_size_in_bytes
    return made + sum(map(size_of, task.row_types(lanes)))


def bytes_of_batcher(
    task: TracedTask, batcher: AbstractBatcher, device: Target = None
) -> int:
    """Measure XLA's temporaries of all tasks as a batcher runs them."""
    return _compiled(task, batcher, task.size, device=device).temp_size_in_bytes


def bound_of_lane(task: TracedTask) -> int:
    """Bound the bytes of one lane from above: all arrays, times `SAFETY_FACTOR`."""
    made = [x.aval for eqn in equations(task.jaxpr.jaxpr) for x in eqn.outvars]
    return SAFETY_FACTOR * sum(map(size_of, [*made, *task.row_types()]))


def largest_arrays(jaxpr: Any, count: int = 3) -> list[str]:
    """List the largest arrays in a jaxpr, each with the operation that computes it."""
    made = {
        f"{x.aval.str_short()} of {eqn.primitive.name}": size_of(x.aval)
        for eqn in equations(jaxpr)
        if not any(inner_jaxprs(eqn))  # a call returns what an equation inside makes
        for x in eqn.outvars
    }
    return sorted(made, key=lambda text: -made[text])[:count]


def _compiled(
    task: TracedTask,
    batcher: AbstractBatcher,
    tasks: int,
    axis_name: Any = None,
    device: Target = None,
) -> Any:
    """Compile a number of tasks, and return XLA's figures of the memory."""

    is_ref = [isinstance(x, jax.Ref) for x in task.closure]

    def run(closure: list[Any], rows: list[Any]) -> list[Any]:
        # A `jax.ShapeDtypeStruct` is the type of a mutable array's value only.
        pairs = zip(closure, is_ref, strict=True)
        arrays = [jax.new_ref(x) if each else x for x, each in pairs]
        return task.run_rows(batcher, rows, tasks, arrays, axis_name)

    # The program is compiled outside of the current trace, so bind again the outer axes
    # that the task uses by name.
    for name in sorted(axis_names(task.jaxpr.jaxpr) - {axis_name}, key=str):
        size = jax.lax.axis_size(name)
        run = jax.vmap(run, in_axes=None, axis_name=name, axis_size=size)
    # Shapes instead of arrays: nothing is allocated, and the rows may be tracers.
    closure = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in task.closure]
    shapes = shapes_on(device, (closure, task.row_types(tasks)))
    compiled = compile_for(jax.jit(run).trace(*shapes), device)
    stats = compiled.memory_analysis()
    if stats is None:
        raise NotImplementedError(
            "Auto needs the memory that XLA allocates, and XLA does not report it on "
            f"{platform_of(device)!r}. Use `Chunked(size)`."
        )
    return stats


@final
@dataclass(frozen=True)
class SearchResult:
    """The largest size that fits, and the bytes of all sizes that were measured."""

    size: int  # 0 if nothing fits
    measured: dict[int, int]

    @property
    def bytes(self) -> int:
        """The bytes of `size`, or the smallest measured bytes if nothing fits."""
        return self.measured[self.size] if self.size else min(self.measured.values())

    def bytes_at(self, size: int) -> int:
        """Return the bytes of any size: measured, or interpolated."""
        if size in self.measured:
            return self.measured[size]
        return round(_line(self.measured, size))


def largest_that_fits(
    bytes_at: Callable[[int], int], budget: int, most: int
) -> SearchResult:
    """Search for the largest size up to `most` whose bytes are at most the budget."""
    measured = {most: bytes_at(most)}
    if measured[most] <= budget:
        return SearchResult(most, measured)
    fits, over, is_linear = 0, most, False
    while over - fits > 1:
        if fits in measured and is_linear and _line(measured, fits + 1) > budget:
            break  # `fits` is measured, and the next size is predicted to be over
        size = min(max(_guess(measured, budget), fits + 1), over - 1)
        expected = _line(measured, size)
        measured[size] = bytes_at(size)
        is_linear = abs(measured[size] - expected) <= _TOLERANCE * expected
        if measured[size] <= budget:
            fits = size
        else:
            over = size
    return SearchResult(fits, measured)


def _guess(measured: dict[int, int], budget: int) -> int:
    """Solve for the size at the budget, on the line through the nearest two points."""
    if len(measured) == 1:
        ((size, needed),) = measured.items()
        return size * budget // needed  # without a constant
    (x, f), (y, g) = sorted(measured.items(), key=lambda each: abs(each[1] - budget))[
        :2
    ]
    if f == g:
        return (x + y) // 2
    return int(x + (budget - f) * (y - x) // (g - f))


def _line(measured: dict[int, int], size: int) -> float:
    """Interpolate the bytes of a size from the two measurements nearest to it."""
    if len(measured) == 1:
        ((other, needed),) = measured.items()
        return needed * size / other
    (x, f), (y, g) = sorted(measured.items(), key=lambda each: abs(each[0] - size))[:2]
    return f + (g - f) * (size - x) / (y - x)
