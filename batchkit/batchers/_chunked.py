"""`Chunked`: a bounded number of tasks at once, in equal chunks, one compiled body.

`jax.lax.map(batch_size=k)` compiles its function twice, once for the full chunks and
once for the remainder, and holds the memory of both. Here the chunks are balanced and
the last one is padded with copies of real rows, so one body serves all.
"""

from typing import Any, final

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._util._checks import check_flag, check_number
from ._abstract import AbstractBatcher, check_batcher
from ._call import Call, TracedTask
from ._splitting import pad_rows
from ._trace_log import log_split
from ._vmap import Vmap


@final
class Chunked(AbstractBatcher):
    """At most `size` tasks at once, in chunks that run one after the other.

    Temporary memory is that of `size` tasks instead of all. Chunks are balanced: 50
    tasks at size 16 run as four chunks of 13. The last chunk is padded by repeating
    real tasks, whose results are dropped; their side effects (callbacks,
    `jax.debug.print`) happen again. With `size` at or above the number of tasks it is
    exactly its `inner` batcher. `spmd_axis_name` is passed to `inner` and applies to
    the lanes of one chunk.

    In reverse mode JAX keeps the intermediate values of every chunk for the backward
    pass, which can take more memory than `jax.vmap` does; `remat=True` recomputes them
    chunk by chunk instead, at the cost of a second forward pass. The cotangent of a
    repeated task is split over its copies, which changes the result of a
    `jax.custom_vjp` whose backward pass is not linear, such as gradient clipping.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    @bk.Chunked(16)
    def norm(x):
        return jnp.sqrt(jnp.sum(x**2))

    assert norm(jnp.ones((50, 4))).tolist() == [2.0] * 50
    ```
    """

    size: int = eqx.field(static=True)
    inner: AbstractBatcher
    remat: bool = eqx.field(static=True)

    def __init__(
        self, size: int, inner: AbstractBatcher | None = None, remat: bool = False
    ) -> None:
        """**Arguments:**

        - `size`: the largest number of tasks that run at once; at least 1.
        - `inner`: the batcher for the tasks of one chunk. `Vmap()` by default.
        - `remat`: whether the backward pass recomputes each chunk instead of storing
            its intermediate values.

        **Raises:**

        `TypeError` if `size` is not an int, `inner` not a batcher or `remat` not a
        bool; `ValueError` if `size` is below 1.
        """
        self.size = size
        self.inner = Vmap() if inner is None else inner
        self.remat = remat

    def __check_init__(self) -> None:
        check_number(
            "Chunked",
            "size",
            self.size,
            "the largest number of tasks that run at once",
            remedy="For one at a time, without a batch axis, use `Sequential()`.",
        )
        check_flag("Chunked", "remat", self.remat)
        check_batcher("Chunked", self.inner, "inner", rule="a batcher such as `Vmap()`")

    def batch(self, call: Call) -> PyTree:
        if call.size <= self.size:
            return self.inner.batch(call)
        # The balanced size, since that many lanes share the memory.
        lanes = balanced_chunks(call.size, self.size)[1]
        task = call.trace(self, lanes=lanes)
        if call.stays_vmap(task):
            return Vmap().batch(call)
        return run_in_chunks(
            task, self.size, self.inner, call.spmd_axis_name, self.remat
        )


def balanced_chunks(tasks: int, size: int) -> tuple[int, int]:
    """Return the number of chunks, and the number of tasks in each of them."""
    chunks = -(-tasks // size)
    return chunks, -(-tasks // chunks)


def run_in_chunks(
    task: TracedTask,
    size: int,
    inner: AbstractBatcher,
    spmd_axis_name: Any = None,
    remat: bool = False,
) -> PyTree:
    """Run a task for all its rows, at most `size` at a time, as `Chunked` does."""
    chunks, lanes = balanced_chunks(task.size, size)
    log_split(task.size, chunks, 1, lanes, "chunk")

    def body(carry: None, rows: list[Any]) -> tuple[None, list[Any]]:
        outs = task.run_rows(inner, rows, lanes, spmd_axis_name=spmd_axis_name)
        return carry, outs

    if remat:
        # Inside a scan XLA cannot merge the two forward passes. The barriers that
        # `prevent_cse` adds would only block fusion.
        body = jax.checkpoint(body, prevent_cse=False)
    rows = [
        pad_rows(x, chunks * lanes).reshape(chunks, lanes, *x.shape[1:])
        for x in task.rows
    ]
    _, outs = jax.lax.scan(body, None, rows, length=chunks)
    pairs = zip(outs, task.lane_out_axes, strict=True)
    return task.finish(
        [
            out[0] if axis is None else out.reshape(chunks * lanes, *out.shape[2:])
            for out, axis in pairs
        ]
    )
