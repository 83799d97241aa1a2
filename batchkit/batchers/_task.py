"""One task as a jaxpr: how it is run, and where its results belong.

Because the jaxpr is run in place of the user's function, that function is traced
exactly once, and what it closes over is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.extend as jex
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
    out_axes: PyTree  # a prefix of it, as `jax.vmap` takes them
    is_mapped: list[bool]  # for each output leaf

    @property
    def closure(self) -> list[Any]:
        """The arrays that the function closes over; they are the same for all tasks."""
        return list(self.jaxpr.consts)

    @property
    def lane_out_axes(self) -> list[int | None]:
        """`out_axes` of `run` under a batcher: mapped outputs in front, or `None`."""
        return self.with_bytes(self._leaf_axes)

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
        leaves = [
            next(remaining)
            if keep
            else np.zeros((*[self.size] * is_mapped, *aval.shape), jax.dtypes.float0)
            for aval, is_mapped, keep in zip(
                self.jaxpr.out_avals, self.is_mapped, self._has_bytes, strict=True
            )
        ]

        # `jax.vmap` puts them together: a type may have rules of its own.
        def result(leaves: list[Any]) -> PyTree:
            return jax.tree.unflatten(self.out_tree, leaves)

        axes = (self._leaf_axes,)
        return jax.vmap(result, axes, self.out_axes, axis_size=self.size)(leaves)

    @property
    def _leaf_axes(self) -> list[int | None]:
        return [0 if is_mapped else None for is_mapped in self.is_mapped]

    @property
    def _has_bytes(self) -> list[bool]:
        """Which outputs are real arrays: float0 has no values to compute."""
        return [aval.dtype != jax.dtypes.float0 for aval in self.jaxpr.out_avals]
