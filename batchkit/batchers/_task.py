"""One task as a jaxpr: how it is run, and where its results belong.

Because the jaxpr is run in place of the user's function, that function is traced
exactly once, and what it closes over is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


@final
@dataclass(frozen=True)
class Task:
    """The jaxpr of one task, the rows of all tasks, and the place of the outputs."""

    jaxpr: jex.core.ClosedJaxpr
    rows: list[Array]  # mapped leaves, mapped axis in front
    size: int
    out_tree: Any  # a PyTreeDef
    out_axes: list[int | None]  # one for each output leaf

    @property
    def closure(self) -> list[Any]:
        """The arrays that the function closes over; they are the same for all tasks."""
        return list(self.jaxpr.consts)

    @property
    def lane_out_axes(self) -> list[int | None]:
        """`out_axes` of `run` under a batcher: mapped outputs in front, or `None`."""
        axes = zip(self.out_axes, self._has_bytes, strict=True)
        return [None if axis is None else 0 for axis, keep in axes if keep]

    def run(self, *row: Any, closure: Sequence[Any] | None = None) -> list[Any]:
        """The output leaves of one task from its row of the mapped leaves."""
        jaxpr = self.jaxpr
        if closure is not None:
            jaxpr = jex.core.ClosedJaxpr(jaxpr.jaxpr, list(closure))
        outs = jex.core.jaxpr_as_fun(jaxpr)(*row)
        return self.with_bytes(outs)

    def with_bytes(self, outs: Sequence[Any]) -> list[Any]:
        """Of one thing for each output those that are of real arrays."""
        return [out for out, keep in zip(outs, self._has_bytes, strict=True) if keep]

    def finish(self, outs: Sequence[Any]) -> PyTree:
        """The outputs of all tasks in the caller's structure.

        **Arguments:**

        - `outs`: the leaves of `run`, with the mapped axis in front where
            `lane_out_axes` is 0.
        """
        remaining = iter(outs)
        leaves = []
        avals = self.jaxpr.out_avals
        for aval, axis, keep in zip(avals, self.out_axes, self._has_bytes, strict=True):
            if keep:
                out = next(remaining)
                leaves.append(out if axis is None else jnp.moveaxis(out, 0, axis))
            else:
                shape = list(aval.shape)
                if axis is not None:
                    shape.insert(axis % (len(shape) + 1), self.size)
                leaves.append(np.zeros(shape, jax.dtypes.float0))
        return jax.tree.unflatten(self.out_tree, leaves)

    @property
    def _has_bytes(self) -> list[bool]:
        """Which outputs are real arrays: float0 has no values to compute."""
        return [aval.dtype != jax.dtypes.float0 for aval in self.jaxpr.out_avals]
