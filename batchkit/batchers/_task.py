"""One task as a jaxpr: what may be split, what may not, and how results are put back.

A layout that runs tasks apart from each other needs to know three things that only the
traced program tells: whether tasks talk to each other, whether their random numbers
depend on who runs beside them, and whether an output is the same for all of them. The
jaxpr answers all three, and because it is then run instead of the user's function,
that function is traced exactly once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


# Under `jax.vmap` the rbg generators draw one block for the whole batch, from the first
# key; with "unsafe_rbg" so do `split` and `fold_in`.
# https://docs.jax.dev/en/latest/jax.random.html#more-prng-implementations
_LAYOUT_DEPENDENT = {
    "key<rbg>": {"random_bits"},
    "key<unsafe_rbg>": {"random_bits", "random_split", "random_fold_in"},
}


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

    def run(self, *row: Array, closure: Sequence[Any] | None = None) -> list[Array]:
        """The output leaves of one task from its row of the mapped leaves."""
        jaxpr = self.jaxpr
        if closure is not None:
            jaxpr = jex.core.ClosedJaxpr(jaxpr.jaxpr, list(closure))
        outs = jex.core.jaxpr_as_fun(jaxpr)(*row)
        return [out for out, keep in zip(outs, self._has_bytes, strict=True) if keep]

    def finish(self, outs: Sequence[Array]) -> PyTree:
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

    def refuse_collectives(self, axis_name: Any, batcher: object) -> None:
        """Raises if the task communicates over `axis_name`."""
        used = {getattr(effect, "name", None) for effect in self.jaxpr.effects}
        if axis_name is not None and axis_name in used:
            raise ValueError(
                f"The function uses a collective or `axis_index` over "
                f"axis_name={axis_name!r}, but {batcher} does not run its "
                f"{self.size} tasks together, so they cannot communicate. Use "
                "`Vmap()` (or a chunk size of at least the number of tasks), or pass "
                "what the tasks need from each other as an argument, for example "
                "`jnp.arange(n)` for `axis_index`."
            )

    def refuse_layout_dependent_draws(self, batcher: object) -> None:
        """Raises if a task draws random bits that depend on its neighbours."""
        if self.size <= 1:
            return
        jaxpr = self.jaxpr.jaxpr
        drawn = _layout_dependent_draw(jaxpr, set(jaxpr.invars))
        if drawn is not None:
            raise ValueError(
                f"The function draws from PRNG keys of type {drawn} that differ "
                "between tasks. `jax.vmap` draws the bits of a whole batch from the "
                f"first key of such a batch, so the draws under {batcher} would not "
                "be those of `jax.vmap`. Use threefry keys "
                "(`jax.random.key(seed, impl='threefry2x32')`), or `Vmap()`."
            )

    def refuse_varying_outputs(self) -> None:
        """Raises `jax.vmap`'s error if an `out_axes=None` output varies."""
        if None not in self.lane_out_axes or self.size == 0:
            return
        rows = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.rows]
        mapped = jax.vmap(self.run, 0, self.lane_out_axes, axis_size=self.size)
        try:
            jax.eval_shape(mapped, *rows)
        except ValueError as error:
            error.add_note(
                "An output with out_axes=None must not depend on a mapped argument; "
                "give it an axis and reduce over it afterwards."
            )
            raise

    @property
    def _has_bytes(self) -> list[bool]:
        """Which outputs are real arrays: float0 has no values to compute."""
        return [aval.dtype != jax.dtypes.float0 for aval in self.jaxpr.out_avals]


def _layout_dependent_draw(jaxpr: jex.core.Jaxpr, varying: set[Any]) -> str | None:
    """The key type of the first draw that depends on the layout, if there is one.

    Inside a nested jaxpr every value counts as varying once one of its operands does,
    so that nothing is missed.
    """
    for eqn in jaxpr.eqns:
        operands = [x for x in eqn.invars if not isinstance(x, jex.core.Literal)]
        if not any(x in varying for x in operands):
            continue
        varying.update(eqn.outvars)
        if eqn.primitive.name == "rng_bit_generator":
            return "rng_bit_generator"
        key_type = str(getattr(eqn.invars[0].aval, "dtype", ""))
        if eqn.primitive.name in _LAYOUT_DEPENDENT.get(key_type, ()):
            return key_type
        for inner in _nested_jaxprs(eqn.params):
            drawn = _layout_dependent_draw(inner, {*inner.invars, *inner.constvars})
            if drawn is not None:
                return drawn
    return None


def _nested_jaxprs(params: dict[str, Any]) -> Iterator[jex.core.Jaxpr]:
    for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr):
        if isinstance(leaf, jex.core.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, jex.core.Jaxpr):
            yield leaf


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)
