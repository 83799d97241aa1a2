"""What `fit` has found."""

from dataclasses import dataclass
from typing import final

from ..batchers import AbstractBatcher
from ..batchers._bytes import in_words
from ..rebuild import ByPhase
from ..rebuild._table import html_table, table
from ..reports import MemoryUse
from ..reports._reached import short_name


@final
@dataclass(frozen=True)
class Fitted:
    """The batchers with which the programs of a sampler fit a budget, and their bytes.

    Prints as a table.

    ```python
    import blackjax
    import jax.numpy as jnp
    import batchkit as bk

    fitted = bk.fit(
        blackjax.nss,
        "1 MB",
        jnp.zeros((100, 2)),
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -jnp.sum(jnp.outer(x, jnp.ones(2000)) ** 2),
        num_inner_steps=5,
        num_delete=20,
    )
    assert fitted.init_memory.total <= fitted.budget
    assert fitted.step_memory.total <= fitted.budget
    nss = bk.rebuild_sampler(blackjax.nss, batcher=fitted.batcher)
    ```
    """

    init: AbstractBatcher
    step: AbstractBatcher
    init_memory: MemoryUse
    step_memory: MemoryUse
    budget: int

    def __init__(
        self,
        init: AbstractBatcher,
        step: AbstractBatcher,
        init_memory: MemoryUse,
        step_memory: MemoryUse,
        budget: int,
    ) -> None:
        """**Arguments:**

        - `init`, `step`: the batcher of each phase.
        - `init_memory`, `step_memory`: what XLA allocates for each of the two programs
            as a whole.
        - `budget`: the bytes that there were to use, on each device.
        """
        for name, value in (
            ("init", init),
            ("step", step),
            ("init_memory", init_memory),
            ("step_memory", step_memory),
            ("budget", budget),
        ):
            object.__setattr__(self, name, value)

    @property
    def batcher(self) -> ByPhase:
        """Both, as `rebuild_sampler` takes them."""
        return ByPhase(init=self.init, step=self.step)

    def __repr__(self) -> str:
        return table(_HEAD, self._rows())

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, str, str, str]]:
        both = (
            ("init", self.init, self.init_memory.total),
            ("step", self.step, self.step_memory.total),
        )
        return [
            (phase, short_name(batcher), in_words(total), in_words(self.budget))
            for phase, batcher, total in both
        ]


_HEAD = ("phase", "batcher", "memory", "budget")
