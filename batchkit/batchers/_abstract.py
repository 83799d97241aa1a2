"""The interface of a batcher: a value that lays out the tasks of a mapped function."""

import abc
from collections.abc import Callable, Hashable, Sequence
from types import UnionType
from typing import Any, ClassVar, TypeVar

import equinox as eqx
from jaxtyping import PyTree

from .._util._checks import check_type
from ._call import Call, logged_call, mapped_function
from ._trace_log import calling_site, current_entry


_Fun = TypeVar("_Fun", bound=Callable[..., Any])


class AbstractBatcher(eqx.Module):
    """A value that turns a function of one task into a function of many tasks.

    A batcher is immutable, hashable and a pytree without array leaves, so it can be
    closed over, passed through `jax.jit`, compared and used as a dictionary key.
    Subclasses implement one method, `batch`; calling a batcher is the same for all.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    batchers: list[bk.AbstractBatcher] = [bk.Vmap(), bk.Sequential(), bk.Chunked(2)]
    for batcher in batchers:
        assert batcher(jnp.sum)(jnp.ones((3, 4))).tolist() == [4.0, 4.0, 4.0]
    ```
    """

    # True if calls of functions marked by `expensive` become equations of a task.
    uses_expensive_marks: ClassVar[bool] = False
    # True if the layout depends on the number of lanes around a task.
    uses_outer_lanes: ClassVar[bool] = False

    @abc.abstractmethod
    def batch(self, call: Call) -> PyTree:
        """Compute every task of one call.

        "Write a batcher" in the documentation shows how. `call` may still change
        between releases.

        **Arguments:**

        - `call`: the function, its arguments and axes, and the number of tasks
            (`call.size`). `call.vmap()` runs it as `jax.vmap` would; `call.trace(...)`
            traces one task, once, for a layout that splits the tasks. If then
            `call.stays_vmap(task)`, return `Vmap().batch(call)`.

        **Returns:**

        The result of `jax.vmap` for the same call.
        """

    def __call__(
        self,
        fun: _Fun,
        in_axes: int | Sequence[Any] | None = 0,
        out_axes: Any = 0,
        axis_name: Hashable | None = None,
        axis_size: int | None = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
        sum_match: bool = False,
    ) -> _Fun:
        """Map `fun` over an axis of its arguments, as `jax.vmap` does.

        **Arguments:**

        - `fun`: the function of one task. It is traced, as under `jax.jit`.
        - `in_axes`: an int, `None` (not mapped), or a tuple with one pytree prefix of
            them per positional argument. Keyword arguments are mapped over axis 0.
        - `out_axes`: the position of the mapped axis in each output; `None` for an
            output that is the same for every task.
        - `axis_name`: a name for the mapped axis. A layout that splits the tasks
            refuses collectives and `axis_index` over it.
        - `axis_size`: the number of tasks. It is needed only if no argument is mapped.
        - `spmd_axis_name`: the mesh axis over which the mapped axis is sharded, with
            `jax.vmap`'s meaning for the lanes that run at once. `Sequential`, `Sharded`
            and `Continuous` refuse it.
        - `sum_match`: whether an output that varies over the tasks, but for which
            `out_axes` is `None`, is summed over them instead of refused. Until the sum
            is made, the results of all tasks are in memory.

        **Returns:**

        A function with the arguments of `fun`, each with the mapped axis added.

        **Raises:**

        `jax.vmap`'s own errors for arguments that it would refuse, once the
        arguments are known: `ValueError` if their sizes disagree, if none is mapped,
        or if an output varies for which `out_axes` is `None`, without `sum_match`.
        """
        return mapped_function(
            self._run,
            fun,
            in_axes,
            out_axes,
            axis_name=axis_name,
            axis_size=axis_size,
            spmd_axis_name=spmd_axis_name,
            sum_match=sum_match,
        )

    def _run(self, call: Call) -> PyTree:
        if current_entry() is None:
            return self.batch(call)
        site = calling_site(type(self).__name__)
        return logged_call(call, site, self, self.batch)


def check_batcher(
    owner: str,
    batcher: object,
    name: str = "batcher",
    *,
    rule: str = "a batcher such as `Vmap()` or `Continuous(8)`",
    kinds: type | UnionType = AbstractBatcher,
) -> None:
    """Raise `TypeError` unless a value is of `kinds`, which `rule` describes."""
    check_type(isinstance(batcher, kinds), owner, name, batcher, rule)
