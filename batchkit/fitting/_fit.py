"""`fit`: batchers with which a whole program fits a budget.

A site sees its own lanes and nothing of the program around it, which may hold the same
likelihood several times over. So here the whole is compiled, at each size that is
tried, and XLA's figure for the whole is what has to fit.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import jax

from ..auto import Auto, BudgetError
from ..auto._budget import budget_or_free
from ..auto._probe import largest_arrays, quick_options
from ..auto._search import Found, largest_that_fits
from ..batchers import AbstractBatcher, Chunked, Vmap
from ..batchers._watching import Reached
from ..continuous import Continuous
from ..rebuild import ByPhase, rebuild_sampler
from ..reports import MemoryUse
from ..reports._memory import memory_of
from ..reports._program import trace_afresh
from ..reports._watch import watching
from ._fitted import Fitted


# Only the kind of batcher is asked for, not the size.
_PLENTY: Final = 1 << 62


def fit(api: Any, budget: int | str | None, positions: Any, **settings: Any) -> Fitted:
    """Finds batchers for `init` and `step` with which each, as a whole, fits a budget.

    Each program is traced and compiled at a few sizes and XLA tells what it would
    allocate: arguments, results and temporaries together. Nothing runs. `init` gets
    `Vmap` if that fits, else the largest `Chunked` that does; `step` also `Continuous`,
    by the rule of `Auto`.

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
    fitted = bk.fit(blackjax.nss, "500 kB", positions, **settings)
    nss = bk.rebuild_sampler(blackjax.nss, batcher=fitted.batcher)
    state = jax.jit(nss(**settings).init)(positions)
    print(fitted)
    ```

    **Arguments:**

    - `api`: a blackjax API that makes an algorithm with `init` and `step`, such as
        `blackjax.nss`.
    - `budget`: the bytes on each device, as for [`Auto`][batchkit.Auto]; `None` for
        half of what is free.
    - `positions`: what `init` is given; `jax.ShapeDtypeStruct` may stand for an array.
    - `**settings`: what the API is given.

    **Returns:**

    The batchers, ready for `rebuild_sampler`, and the bytes of both programs.

    **Raises:**

    `BudgetError` if a program does not fit with one lane at a time, `TypeError` if the
    API makes something else, and what `api`, tracing or compiling raise.
    """
    allowed = budget_or_free(budget, f"fit(budget={budget!r})")
    algorithm = api(**settings)
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise TypeError(
            f"fit(api={api!r}): the API must make an algorithm with `init` and `step`; "
            f"it makes a {type(algorithm).__name__}. For other programs give the "
            "budget to `Auto`, and see what they need with `batchkit.memory`."
        )
    state = jax.eval_shape(algorithm.init, positions)
    key = jax.eval_shape(jax.random.key, 0)

    def init(batcher: AbstractBatcher) -> jax.stages.Traced:
        rebuilt = rebuild_sampler(api, batcher=ByPhase(init=batcher))
        return trace_afresh(rebuilt(**settings).init, (positions,), {})

    def step(batcher: AbstractBatcher) -> jax.stages.Traced:
        rebuilt = rebuild_sampler(api, batcher=ByPhase(step=batcher))
        return trace_afresh(rebuilt(**settings).step, (key, state), {})

    of_init = _choose("init", init, allowed)
    of_step = _choose("step", step, allowed)
    return Fitted(of_init[0], of_step[0], of_init[1], of_step[1], allowed)


def _choose(
    phase: str,
    program: Callable[[AbstractBatcher], jax.stages.Traced],
    budget: int,
) -> tuple[AbstractBatcher, MemoryUse]:
    """The batcher with which a program fits, and what XLA allocates for it."""
    with watching() as root:
        program(Auto(_PLENTY))
    mapped = [x for x in _inside(root) if isinstance(x.batcher, Auto)]
    lanes = [cut.lanes for x in mapped for cut in x.cuts if cut.loop == "lane"]
    tasks = max((x.tasks for x in mapped), default=1)
    tried: list[Found] = []
    for kind, most in ((Continuous, max(lanes, default=0)), (Chunked, tasks)):
        if most == 0:
            continue
        memory: dict[int, MemoryUse] = {}

        def total(size: int, kind: Any = kind, memory: Any = memory) -> int:
            compiled = program(kind(size)).lower().compile(quick_options())
            memory[size] = memory_of(compiled)
            return memory[size].total

        found = largest_that_fits(total, budget, most)
        if found.size > 0:
            whole = kind is Chunked and found.size == tasks
            return Vmap() if whole else kind(found.size), memory[found.size]
        tried.append(found)
    largest = largest_arrays(program(Chunked(1)).jaxpr.jaxpr)
    raise BudgetError(f"fit({phase})", tried[-1].bytes, budget, 1, largest)


def _inside(reached: Reached) -> Iterator[Reached]:
    for inner in reached.inside:
        yield inner
        yield from _inside(inner)
