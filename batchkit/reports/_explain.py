"""`explain`: which sites one trace of a function reaches, and how they are laid out."""

from collections.abc import Callable, Iterator
from typing import Any, final

from ..batchers._bytes import in_words
from ..rebuild._table import html_table, table
from ._memory import MemoryUse, memory_of
from ._program import trace_afresh
from ._reached import ReachedSite, records_of
from ._watch import watching


@final
class Explanation:
    """What one trace reached, and the memory of the compiled whole.

    Prints as a table, with what is nested indented.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    explanation = bk.explain(bk.Chunked(4)(jnp.sin), jnp.ones(10))
    assert [x.tasks for x in explanation.reached] == [10]
    assert explanation.memory.total > 0
    ```
    """

    def __init__(self, reached: tuple[ReachedSite, ...], memory: MemoryUse) -> None:
        """**Arguments:**

        - `reached`: the sites, in the order in which the trace reached them.
        - `memory`: what XLA will allocate.
        """
        self.reached = reached
        self.memory = memory

    def __repr__(self) -> str:
        rows = list(self._rows())
        head = table(_HEAD, rows) if rows else "no site was reached"
        return f"{head}\n\n{self.memory!r}"

    def _repr_html_(self) -> str:
        return html_table(_HEAD, list(self._rows())) + self.memory._repr_html_()

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for reached, depth in _in_order(self.reached, 0):
            site = reached.site
            yield (
                "  " * depth + str(site),
                site.spelling,
                site.phase or "",
                str(reached.tasks),
                reached.batcher,
                reached.layout,
                str(reached.at_once),
                in_words(reached.bytes_in),
                in_words(reached.bytes_out) if reached.batcher else "",
                ", ".join(reached.functions),
                reached.note,
            )


_HEAD = (
    "site",
    "spelling",
    "phase",
    "tasks",
    "batcher",
    "layout",
    "at once",
    "in/task",
    "out/task",
    "calls",
    "note",
)


def explain(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Tells which sites a function reaches, how each is laid out, and what it costs.

    The function is traced once and compiled, but not run. Functions that are jitted
    already are looked into as well. Listed are the sites of rebuilt samplers, batchers
    that you call yourself, and every `jax.vmap` that stays as it is: your own, and
    those of a sampler that has not been rebuilt. What is the same twice is listed once.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(16))
    algorithm = nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -2.0 * jnp.sum((x - 1.0) ** 2),
        num_inner_steps=5,
    )
    print(bk.explain(jax.jit(algorithm.init), jnp.zeros((150, 2))))
    ```

    **Arguments:**

    - `fun`: a function, jitted or not, such as `algorithm.step`.
    - `*args`, `**kwargs`: its arguments; `jax.ShapeDtypeStruct` may stand for an array.
        What is no array, such as a number of Python, is a constant of the program,
        unless `fun` is jitted.

    **Returns:**

    The sites in the order in which they were reached, nested as they are, and the
    memory of the compiled program.

    **Raises:**

    What tracing or compiling `fun` raises, and `NotImplementedError` on a platform
    where XLA does not tell the memory.
    """
    with watching() as root:
        traced = trace_afresh(fun, args, kwargs)
    return Explanation(records_of(root), memory_of(traced.lower().compile()))


def _in_order(
    reached: tuple[ReachedSite, ...], depth: int
) -> Iterator[tuple[ReachedSite, int]]:
    for each in reached:
        yield each, depth
        yield from _in_order(each.inside, depth + 1)
