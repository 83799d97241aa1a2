"""What every batcher is: a value that lays out the tasks of a mapped function."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import PyTree

from ._call import Call, function_of_calls, watched_call
from ._site import Site
from ._watching import caller_outside, innermost


class AbstractBatcher(eqx.Module):
    """A value that turns a function of one task into a function of many tasks.

    A batcher is immutable, hashable and a pytree without array leaves, so it can be
    closed over, passed through `jax.jit`, compared and used as a dictionary key.
    Subclasses implement one method, `batch`; calling a batcher is the same for all.
    What `batch` is given may still change between releases.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    batchers: list[bk.AbstractBatcher] = [bk.Vmap(), bk.Sequential(), bk.Chunked(2)]
    for batcher in batchers:
        assert batcher(jnp.sum)(jnp.ones((3, 4))).tolist() == [4.0, 4.0, 4.0]
    ```
    """

    # Whether the functions marked by `expensive` are to be seen in a task.
    looks_for_marks: ClassVar[bool] = False
    # Whether it matters how many lanes there are around a task.
    looks_around: ClassVar[bool] = False

    @abc.abstractmethod
    def batch(self, call: Call) -> PyTree:
        """Computes every task of one call.

        **Arguments:**

        - `call`: the function, its arguments and axes, and the number of tasks
            (`call.size`). `call.vmap()` runs it as `jax.vmap` would; `call.trace(...)`
            traces one task, once, for a layout that splits the tasks.

        **Returns:**

        What `jax.vmap` would return for the same call.
        """

    def __call__(
        self,
        fun: Callable[..., Any],
        in_axes: Any = 0,
        out_axes: Any = 0,
        *,
        axis_name: Any = None,
        axis_size: int | None = None,
        spmd_axis_name: Any = None,
    ) -> Callable[..., Any]:
        """Maps `fun` over an axis of its arguments, as `jax.vmap` does.

        **Arguments:**

        - `fun`: the function of one task. It is traced, as under `jax.jit`.
        - `in_axes`: an int, `None` (not mapped), or a tuple with one pytree prefix of
            them per positional argument. Keyword arguments are mapped over axis 0.
        - `out_axes`: where the mapped axis stands in each output; `None` for an output
            that is the same for every task.
        - `axis_name`: a name for the mapped axis. A layout that splits the tasks
            refuses collectives and `axis_index` over it.
        - `axis_size`: the number of tasks, if no argument tells.
        - `spmd_axis_name`: the mesh axis over which the mapped axis is sharded, with
            `jax.vmap`'s meaning for the lanes that run at once. `Sequential` and
            `Sharded` refuse it.

        **Returns:**

        A function with the arguments of `fun`, each with the mapped axis added.

        **Raises:**

        `jax.vmap`'s own errors for arguments that it would refuse, when the
        arguments are known: `ValueError` for sizes that disagree, for nothing to map
        and for an `out_axes=None` output that varies.
        """
        return function_of_calls(
            self._run,
            fun,
            in_axes,
            out_axes,
            axis_name=axis_name,
            axis_size=axis_size,
            spmd_axis_name=spmd_axis_name,
        )

    def _run(self, call: Call) -> PyTree:
        if innermost() is None:
            return self.batch(call)
        code, names, line = caller_outside()
        site = Site(str(names["__name__"]), code.co_qualname, line, type(self).__name__)
        return watched_call(call, site, self, self.batch)
