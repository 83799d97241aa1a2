"""`plan`: batchers with which the `init` and `step` of a sampler fit a budget.

`Auto` sees the lanes of one site only, but a program may have several sites, and hold
data outside of them. So here each phase is compiled as a whole.
"""

import html
import inspect
import itertools
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import jax
import jax.numpy as jnp

from .._util._checks import check_flag, check_number, check_type
from .._util._formats import format_bytes, format_value, html_table, table
from .._util._multihost import is_multiprocess
from ..batchers import AbstractBatcher
from ..devices._target import Device, check_device, device_of, is_described
from ..explain._explain import UNSEEN, format_batcher
from ..rebuild import ByPhase, rebuild_sampler
from ._lane_memory import budget_on
from ._phase_layout import PhaseLayout, cache_folder
from ._phase_program import Measuring, PhaseProgram


# Measuring `init`, which a run calls once, ends after this share of the time.
_TIME_FOR_INIT: Final = 0.25

_WRAPPED: Final[Any] = {"width": 96, "subsequent_indent": "  "}
_COLUMNS: Final = (
    "phase",
    "batcher",
    "temporaries",
    "total",
    "of budget",
    "next size",
)


@final
@dataclass(frozen=True, repr=False)
class LayoutPlan:
    """Batchers with which `init` and `step` of a sampler fit a budget, and why.

    It is the result of [`plan`][batchkit.plan], and prints as a table.

    **Arguments:**

    - `device`: the kind of the device, such as `"NVIDIA H100 80GB HBM3"`.
    - `budget`: the bytes available on each device.
    - `source`: what the budget is of the memory of the device, as text; may be empty.
    - `init`, `step`: the [`PhaseLayout`][batchkit.auto.PhaseLayout] of each phase.
    """

    device: str
    budget: int
    source: str
    init: PhaseLayout
    step: PhaseLayout

    @property
    def batcher(self) -> ByPhase:
        """The batchers of both phases as a policy for `rebuild_sampler`."""
        return ByPhase(init=self.init.batcher, step=self.step.batcher)

    def __repr__(self) -> str:
        lines = [self._title, table(_COLUMNS, self._rows()), *self._reasons]
        return "\n".join([*lines, *self._unseen])

    def _repr_html_(self) -> str:
        lines = [self._title, html_table(_COLUMNS, self._rows())]
        lines += [html.escape(line) for line in (*self._reasons, *self._unseen)]
        return "".join(f"<div>{line}</div>" for line in lines)

    @property
    def _title(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return f"{self.device}, budget {format_bytes(self.budget)}{source}"

    @property
    def _reasons(self) -> list[str]:
        return [
            *textwrap.wrap(f"init: {self.init.reason}", **_WRAPPED),
            *textwrap.wrap(f"step: {self.step.reason}", **_WRAPPED),
        ]

    @property
    def _unseen(self) -> list[str]:
        return [] if self.device == "cpu" else textwrap.wrap(UNSEEN, **_WRAPPED)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                phase,
                format_batcher(layout.batcher),
                format_bytes(layout.memory.temporary),
                format_bytes(layout.memory.total),
                f"{100 * layout.memory.total / self.budget:.1f} %",
                _next_size(layout),
            )
            for phase, layout in (("init", self.init), ("step", self.step))
        ]


def _next_size(layout: PhaseLayout) -> str:
    if layout.larger is None:
        return "-"
    batcher, needed = layout.larger
    return f"{format_batcher(batcher)}: {format_bytes(needed)}"


def plan(
    api: Any,
    budget: int | str | None,
    positions: Any,
    *,
    device: Device = None,
    measure: bool = False,
    max_seconds: float = 300.0,
    remember: bool | str | os.PathLike[str] = True,
    progress: bool = True,
    **settings: Any,
) -> LayoutPlan:
    """Find batchers for `init` and `step` with which each, as a whole, fits a budget.

    Each program is traced and compiled at a few sizes, to find the memory that XLA
    would allocate: arguments, results and temporaries together. Nothing runs unless
    `measure=True`. A program gets the kind of batcher that `Auto` gives to its sites,
    with the largest number of tasks at once that fits.

    With `measure=True` the layouts that fit run for a few steps of the sampler from
    your positions, and the fastest wins: `Vmap`, `Chunked` and `Continuous` of several
    sizes, `Sequential`. It takes minutes where a step takes long to compile. So the
    result is kept in a file, and the next call for the same program, device and
    versions compiles nothing.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    settings = dict(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -jnp.sum(jnp.outer(x, jnp.ones(1000)) ** 2),
        num_inner_steps=5,
    )
    positions = jax.random.normal(jax.random.key(0), (100, 2))
    plan = bk.plan(blackjax.nss, "500 kB", positions, **settings)
    assert plan.init.memory.total <= plan.budget == 500_000
    nss = bk.rebuild_sampler(blackjax.nss, batcher=plan.batcher)
    state = jax.jit(nss(**settings).init)(positions)
    print(plan)
    ```

    **Arguments:**

    - `api`: a blackjax API that makes an algorithm with `init(positions)` and
        `step(rng_key, state)`, such as `blackjax.nss`.
    - `budget`: the bytes on each device, as for [`Auto`][batchkit.Auto]; `None` for
        half of the free memory, or half of the memory of a described device.
    - `positions`: the argument of `init`; `jax.ShapeDtypeStruct` may stand for an
        array, unless `measure=True`.
    - `device`: the device of JAX to compile for, present or
        [described][batchkit.described_device]. By default the process's own.
    - `measure`: whether to choose by running the layouts that fit. Several processes
        (`jax.distributed`) get a `RuntimeError`: they would choose differently.
    - `max_seconds`: the time after which nothing more is measured, and what has been
        decides; 300 by default. A compilation or a call is not begun if it is expected
        to end later, by what was compiled and called before; the first call of `step`
        may take longer than expected. Finding the sizes that fit counts, and is not
        cut short.
    - `remember`: whether what was measured is kept in, and taken from, a file in
        `$XDG_CACHE_HOME/batchkit`, which is `~/.cache/batchkit` by default; or another
        folder.
    - `progress`: whether to show a bar while layouts are measured, in terminals and
        notebooks, or lines in the log of `batchkit` elsewhere.
    - `**settings`: the arguments of the API.

    **Returns:**

    A [`LayoutPlan`][batchkit.auto.LayoutPlan]: the batchers, ready for
    `rebuild_sampler`, the bytes of both programs, and the reasons.

    **Raises:**

    `BudgetError` if a program does not fit with one lane at a time; `TypeError` if the
    API does not make an algorithm with `init` and `step`, or if shapes were to be
    measured; `ValueError` if the device has less memory than the budget, or is
    described and were to be measured; and the errors of `api`, of tracing and of
    compiling.
    """
    started = time.perf_counter()
    _check_options(device, measure, max_seconds, remember, progress)
    if measure:
        check_measurable(device, positions)
        positions = jax.device_put(jax.tree.map(jnp.asarray, positions), device)
    allowed, source = budget_on(budget, device, f"plan(budget={format_value(budget)})")
    check_replaced(positions, settings.get("num_delete"))
    algorithm = api(**settings)
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise TypeError(
            f"plan(api={api!r}): the API must make an algorithm with `init` and "
            f"`step`; it makes a {type(algorithm).__name__}. For other programs give "
            "the budget to `Auto`, and measure their memory with `batchkit.memory`."
        )

    def program(phase: str, *args: Any) -> PhaseProgram:
        def make(batcher: AbstractBatcher) -> Callable[..., Any]:
            rebuilt = rebuild_sampler(api, batcher=ByPhase(**{phase: batcher}))
            return getattr(rebuilt(**settings), phase)

        return PhaseProgram(phase, make, args, allowed, device)

    _check_calls(api, algorithm)
    # Of the original algorithm: states have the same types and shapes in any layout.
    state = jax.eval_shape(algorithm.init, positions)
    init = program("init", positions)
    step = program("step", jax.eval_shape(jax.random.key, 0), state)
    if measure:
        folder = cache_folder() if remember is True else None
        if not isinstance(remember, bool):
            folder = Path(remember).expanduser()
        options = Measuring(started, max_seconds, folder, progress)
        layouts = _fastest(init, step, positions, device, options)
    else:
        layouts = init.fitting(), step.fitting()
    return LayoutPlan(device_of(device).device_kind, allowed, source, *layouts)


def check_replaced(positions: Any, num_delete: Any) -> None:
    """Raise `ValueError` if a step would replace more points than there are."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(positions)]
    count = min((x[0] for x in shapes if x), default=0)
    if isinstance(num_delete, int) and num_delete > count:
        raise ValueError(
            f"plan(num_delete={num_delete}): a step replaces {num_delete} points at "
            f"once, and `positions` has {count}; some must stay, from which new ones "
            "begin. Use more live points, or a `num_delete` of at most half of them."
        )


def _check_calls(api: Any, algorithm: Any) -> None:
    """Raise `TypeError` unless `init` takes positions, and `step` a key and a state."""
    for phase, given in (("init", ("positions",)), ("step", ("rng_key", "state"))):
        signature = inspect.signature(getattr(algorithm, phase))
        try:
            signature.bind(*given)
        except TypeError as error:
            raise TypeError(
                f"plan(api={api!r}): plan calls `{phase}({', '.join(given)})`, but "
                f"here it is `{phase}{signature}` ({error}). For other programs give "
                "the budget to `Auto`, and measure their memory with `batchkit.memory`."
            ) from error


def _fastest(
    init: PhaseProgram,
    step: PhaseProgram,
    positions: Any,
    device: Device,
    options: Measuring,
) -> tuple[PhaseLayout, PhaseLayout]:
    """Measure both phases from the user's positions, or recall their layouts."""
    keys = (jax.device_put(jax.random.key(i), device) for i in itertools.count())
    first = init.fastest(options, lambda: (positions,), share=_TIME_FOR_INIT)
    # A first step is expected to take as long as `init`, which makes its state.
    of_init = min(first.seconds.values(), default=0.0)
    second = step.fastest(
        options,
        lambda: (next(keys), init.run(first.batcher, positions)),
        lambda out: (next(keys), out[0]),
        before=init.longest + 2 * of_init,
    )
    return first, second


def _check_options(
    device: object,
    measure: object,
    max_seconds: object,
    remember: object,
    progress: object,
) -> None:
    """Raise an error for arguments that do not depend on the sampler."""
    check_device("plan", device, or_mesh=False)
    check_flag("plan", "measure", measure)
    check_number("plan", "max_seconds", max_seconds, kind=float)
    is_place = isinstance(remember, bool | str | os.PathLike)
    rule = "True, False or the path of a folder"
    check_type(is_place, "plan", "remember", remember, rule)
    check_flag("plan", "progress", progress)


def check_measurable(device: Device, positions: Any) -> None:
    """Raise an error if no layout can run from these positions, or in this process."""
    if is_multiprocess():
        raise RuntimeError(
            f"plan(measure=True): {jax.process_count()} processes would measure "
            "different times and run different programs. Use `measure=False`, or "
            "measure in one process and write down the batchers that it chose."
        )
    if is_described(device):
        raise ValueError(
            f"plan(measure=True, device={device}): a described device cannot run "
            "anything. Use `measure=False`, or measure on a machine that has one."
        )
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(positions)):
        raise TypeError(
            "plan(measure=True): positions are shapes, from which nothing can run. "
            "Give arrays, or use `measure=False`."
        )
