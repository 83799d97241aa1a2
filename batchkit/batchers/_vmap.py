"""All tasks at once."""

from typing import final

from jaxtyping import PyTree

from ._abstract import AbstractBatcher
from ._around import divided
from ._call import Call
from ._watching import innermost, note_cut


@final
class Vmap(AbstractBatcher):
    """All tasks at once: exactly what `jax.vmap` does.

    Fastest where everything fits in memory. `cond` computes both branches, and a
    `while_loop` runs until its slowest task is done. `spmd_axis_name` is passed on.

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
        if innermost() is not None:
            note_cut(call.size, 1, 1, call.size, "chunk")
        with divided(call.size):
            return call.vmap()
