"""`plan`: batchers with which the `init` and `step` of a sampler fit a budget.

`Auto` sees the lanes of one site only, but a program may have several sites, and hold
data outside of them. So here each program is compiled as a whole at every size that is
tried, and the bytes that XLA reports for it must fit the budget.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import jax

from .._util._formats import format_bytes, html_table, table
from ..batchers import AbstractBatcher, Chunked, Vmap
from ..batchers._trace_log import LogEntry
from ..continuous import Continuous
from ..explain import MemoryUse
from ..explain._explain import format_batcher, memory_of, recording, trace_uncached
from ..rebuild import ByPhase, rebuild_sampler
from ._auto import Auto
from ._lane_memory import (
    BudgetError,
    budget_or_free,
    fast_compile_options,
    largest_arrays,
    largest_that_fits,
)


# A budget that everything fits, so that `Auto` chooses the kind of batcher only.
_UNLIMITED: Final = 1 << 62

_COLUMNS: Final = ("phase", "batcher", "memory", "budget")


@final
@dataclass(frozen=True)
class LayoutPlan:
    """Batchers with which the programs of a sampler fit a budget, and their bytes.

    It is the result of [`plan`][batchkit.plan], and prints as a table.

    **Arguments:**

    - `init`, `step`: the batcher of each phase.
    - `init_memory`, `step_memory`: the bytes that XLA allocates for each of the two
        programs as a whole.
    - `budget`: the bytes available on each device.
    """

    init: AbstractBatcher
    step: AbstractBatcher
    init_memory: MemoryUse
    step_memory: MemoryUse
    budget: int

    @property
    def batcher(self) -> ByPhase:
        """The batchers of both phases as a policy for `rebuild_sampler`."""
        return ByPhase(init=self.init, step=self.step)

    def __repr__(self) -> str:
        return table(_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows())

    def _rows(self) -> list[tuple[str, str, str, str]]:
        budget = format_bytes(self.budget)
        return [
            (phase, format_batcher(batcher), format_bytes(memory.total), budget)
            for phase, batcher, memory in (
                ("init", self.init, self.init_memory),
                ("step", self.step, self.step_memory),
            )
        ]


def plan(
    api: Any,
    budget: int | str | None,
    positions: Any,
    *,
    measure: bool = False,
    **settings: Any,
) -> LayoutPlan:
    """Find batchers for `init` and `step` with which each, as a whole, fits a budget.

    Each program is traced and compiled at a few sizes, to find the memory that XLA
    would allocate: arguments, results and temporaries together. Nothing runs unless
    `measure=True`. A program gets `Continuous` by the rule of `Auto`, else `Vmap` if
    that fits, else the largest `Chunked` that fits.

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
    assert plan.init_memory.total <= plan.budget == 500_000
    nss = bk.rebuild_sampler(blackjax.nss, batcher=plan.batcher)
    state = jax.jit(nss(**settings).init)(positions)
    print(plan)
    ```

    **Arguments:**

    - `api`: a blackjax API that makes an algorithm with `init` and `step`, such as
        `blackjax.nss`.
    - `budget`: the bytes on each device, as for [`Auto`][batchkit.Auto]; `None` for
        half of the free memory.
    - `positions`: the argument of `init`; `jax.ShapeDtypeStruct` may stand for an
        array.
    - `measure`: whether to choose the lanes of a `Continuous` by running the expensive
        function, as for [`Auto`][batchkit.Auto].
    - `**settings`: the arguments of the API.

    **Returns:**

    A [`LayoutPlan`][batchkit.auto.LayoutPlan]: the batchers, ready for
    `rebuild_sampler`, and the bytes of both programs.

    **Raises:**

    `BudgetError` if a program does not fit with one lane at a time, `TypeError` if the
    API does not make an algorithm with `init` and `step`, and the errors of `api`, of
    tracing and of compiling.
    """
    allowed = budget_or_free(budget, f"plan(budget={budget!r})")
    algorithm = api(**settings)
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise TypeError(
            f"plan(api={api!r}): the API must make an algorithm with `init` and "
            f"`step`; it makes a {type(algorithm).__name__}. For other programs give "
            "the budget to `Auto`, and measure their memory with `batchkit.memory`."
        )
    # Of the original algorithm: states have the same types and shapes in any layout.
    state = jax.eval_shape(algorithm.init, positions)
    key = jax.eval_shape(jax.random.key, 0)

    def init(batcher: AbstractBatcher) -> jax.stages.Traced:
        rebuilt = rebuild_sampler(api, batcher=ByPhase(init=batcher))
        return trace_uncached(rebuilt(**settings).init, (positions,), {})

    def step(batcher: AbstractBatcher) -> jax.stages.Traced:
        rebuilt = rebuild_sampler(api, batcher=ByPhase(step=batcher))
        return trace_uncached(rebuilt(**settings).step, (key, state), {})

    init_batcher, init_memory = _choose("init", init, allowed, measure)
    step_batcher, step_memory = _choose("step", step, allowed, measure)
    return LayoutPlan(init_batcher, step_batcher, init_memory, step_memory, allowed)


def _choose(
    phase: str,
    program: Callable[[AbstractBatcher], jax.stages.Traced],
    budget: int,
    measure_calls: bool,
) -> tuple[AbstractBatcher, MemoryUse]:
    """Find the batcher with which a program fits, and the memory of the program."""
    with recording() as root:
        program(Auto(_UNLIMITED, measure_calls))
    mapped = [x for x in _descendants(root) if isinstance(x.batcher, Auto)]
    lanes = [split.lanes for x in mapped for split in x.splits if split.kind == "lane"]
    tasks = max((x.tasks for x in mapped), default=1)

    @functools.cache
    def measure(batcher: AbstractBatcher) -> MemoryUse:
        compiled = program(batcher).lower().compile(fast_compile_options())
        return memory_of(compiled)

    if lanes:
        found = largest_that_fits(
            lambda size: measure(Continuous(size)).total, budget, max(lanes)
        )
        if found.size > 0:
            return Continuous(found.size), measure(Continuous(found.size))
    # A `Continuous` that does not fit is replaced by `Chunked`, as under `Auto`.
    found = largest_that_fits(lambda size: measure(Chunked(size)).total, budget, tasks)
    if found.size == 0:
        largest = largest_arrays(program(Chunked(1)).jaxpr.jaxpr)
        raise BudgetError(f"plan({phase})", found.bytes, budget, 1, largest)
    batcher = Vmap() if found.size == tasks else Chunked(found.size)
    return batcher, measure(Chunked(found.size))


def _descendants(entry: LogEntry) -> Iterator[LogEntry]:
    """Iterate over the entries inside of an entry, at any depth."""
    for inner in entry.inside:
        yield inner
        yield from _descendants(inner)
