"""The lanes in the middle of a sweep, and writing to some of them."""

from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._program import Value


@final
class Lanes:
    """Where each lane is, what it works on, and what it remembers."""

    def __init__(
        self,
        pc: Array,
        task: Array,
        next_task: Array,
        credit: Array,
        cells: dict[Value, Array],
    ) -> None:
        """**Arguments:**

        - `pc`: for each lane the number of the block that it is about to enter, or of
            what it waits for.
        - `task`: for each lane the index of its task.
        - `next_task`: the first task that no lane has taken yet.
        - `credit`: for each kind of call how many lanes have waited for it, added up
            over the evaluations of other kinds since its own last one.
        - `cells`: values, one for each lane.
        """
        self.pc = pc
        self.task = task
        self.next_task = next_task
        self.credit = credit
        self.cells = cells


def put(cells: dict[Value, Array], value: Value, new: Any, where: Any) -> None:
    """Gives a value to some lanes; to others too, if nobody has it yet."""
    old = cells.get(value)
    new = as_value(value, new)
    cells[value] = new if old is None else select(where, new, old)


def as_value(value: Value, array: Any) -> Array:
    """An array in the type of a value: loops do not keep weak types."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return array
    return jax.lax.convert_element_type(array, value.dtype)


def select(where: Any, new: Any, old: Any) -> Array:
    """The rows of `new` where it says so, those of `old` elsewhere."""
    return jnp.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)
