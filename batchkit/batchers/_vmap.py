"""`Vmap`: all tasks at once, by `jax.vmap`."""

from typing import final

from jaxtyping import PyTree

from ._abstract import AbstractBatcher
from ._call import Call
from ._trace_log import current_entry, log_split, outer_lanes


@final
class Vmap(AbstractBatcher):
    """All tasks at once: exactly what `jax.vmap` does.

    Fastest if all tasks fit in memory. `cond` computes both branches, and a
    `while_loop` runs until its slowest task is done. `spmd_axis_name` is passed to
    `jax.vmap`.

    ```python
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    x = jnp.arange(3.0)
    assert (bk.Vmap()(jnp.sin)(x) == jax.vmap(jnp.sin)(x)).all()
    ```
    """

    def __init__(self) -> None:
        """**Arguments:** none."""

    def batch(self, call: Call) -> PyTree:
        # Without a log this spares the probe that finds the size.
        if current_entry() is not None:
            log_split(call.size, 1, 1, call.size, "chunk")
        with outer_lanes(call.size):
            return call.vmap()
