"""What `Auto` has chosen, and why."""

from dataclasses import dataclass
from typing import final

from ..batchers import AbstractBatcher


@final
@dataclass(frozen=True)
class Selection:
    """The batcher that `Auto` uses for one call, with the reason.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    chosen = bk.Auto("1 MB").select(lambda x: jnp.outer(x, x) @ x, jnp.ones((100, 90)))
    assert isinstance(chosen.batcher, bk.Chunked)
    assert chosen.bytes <= chosen.budget == 1_000_000
    print(chosen.reason)
    ```
    """

    batcher: AbstractBatcher
    reason: str
    bytes: int | None
    budget: int

    def __init__(
        self, batcher: AbstractBatcher, reason: str, bytes: int | None, budget: int
    ) -> None:
        """**Arguments:**

        - `batcher`: the batcher.
        - `reason`: why, in words and figures.
        - `bytes`: what XLA allocates for the lanes that run at once, where it had to be
            asked; `None` where the sizes of the arrays tell that all fit by far.
        - `budget`: the bytes that there were to use, on each device.
        """
        for name, value in (
            ("batcher", batcher),
            ("reason", reason),
            ("bytes", bytes),
            ("budget", budget),
        ):
            object.__setattr__(self, name, value)
