"""`Sequential`: one task at a time, by `jax.lax.scan`."""

from typing import Any, final

import jax
from jaxtyping import PyTree

from ._abstract import AbstractBatcher
from ._call import Call
from ._trace_log import log_split
from ._vmap import Vmap


@final
class Sequential(AbstractBatcher):
    """One task at a time, in order, without a batch dimension.

    Needs the memory of one task. `cond` stays a branch, a `while_loop` stops when its
    own task is done, and callbacks that cannot be vectorised work. There is no mapped
    axis that could be sharded, so `spmd_axis_name` is refused.

    ```python
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    def half_or_triple(x):
        return jax.lax.cond(x % 2 == 0, lambda: x // 2, lambda: 3 * x + 1)

    assert bk.Sequential()(half_or_triple)(jnp.arange(4)).tolist() == [0, 4, 1, 10]
    ```
    """

    def __init__(self) -> None:
        """**Arguments:** none."""

    def batch(self, call: Call) -> PyTree:
        if call.spmd_axis_name is not None:
            raise ValueError(
                f"Sequential() got spmd_axis_name={call.spmd_axis_name!r}, but it runs "
                "tasks one by one and has no mapped axis that could be sharded. Leave "
                "spmd_axis_name out, or use `Vmap()` or `Chunked(size)`."
            )
        task = call.trace(self, lanes=1)
        if call.stays_vmap(task):
            return Vmap().batch(call)
        # There is no row to compute an unmapped output from.
        if task.size == 0 and None in task.lane_out_axes:
            return call.vmap()
        log_split(task.size, task.size, 1, 1, "task")

        def body(carry: None, row: list[Any]) -> tuple[None, list[Any]]:
            return carry, task.run(*row)

        _, outs = jax.lax.scan(body, None, task.rows, length=task.size)
        axes = zip(outs, task.lane_out_axes, strict=True)
        return task.finish([out[0] if axis is None else out for out, axis in axes])
