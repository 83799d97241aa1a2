"""The batcher that chooses another, from a budget."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Final, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Vmap
from ..batchers._around import parts_around
from ..batchers._call import Call
from ..batchers._digest import digest
from ..batchers._marks import in_task
from ..batchers._task import Task
from ..batchers._watching import note, unwatched
from ._budget import budget_or_free, bytes_of_budget
from ._select import run_task, select
from ._selection import Selection


# How many choices are remembered, the latest ones.
_REMEMBERED: Final = 1024
_CHOICES: collections.OrderedDict[Hashable, Selection] = collections.OrderedDict()
_LOCK: Final = threading.Lock()


@final
class Auto(AbstractBatcher):
    """As many tasks at once as fit a budget of memory; or lanes that never wait.

    While it is traced, the task is compiled for a few numbers of lanes and XLA tells
    what it would allocate; nothing runs. From that follows the batcher that computes
    the tasks: `Continuous` where lanes take different ways through loops around an
    expensive function, `Vmap` where everything fits, else `Chunked` with the largest
    number that does. `select` and `batchkit.explain` tell which, and why. Where the
    sizes of all arrays together are far below the budget, nothing is compiled. What
    was chosen for a task is remembered, by what it computes and by its shapes.

    The budget is for the lanes on one device: temporaries, and the rows and results of
    as many tasks. What the function closes over is there once and is not counted, and
    neither is what stands around the site; `batchkit.fit` chooses for a program as a
    whole. Not seen are what callbacks and libraries outside XLA allocate, a `jax.vmap`
    of your own around it, and what reverse-mode differentiation *through* the batch
    keeps for the backward pass. Inside a batcher that runs several lanes, each of them
    gets its part of the budget. A `Continuous` inside its tasks runs as `Vmap()`.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    @bk.Auto("1 MB")
    def total(x):
        return jnp.sum(jnp.outer(x, x) @ jnp.outer(x, x))

    assert total(jnp.ones((100, 90))).tolist() == [90.0**3] * 100
    ```
    """

    budget: int | str | None = eqx.field(static=True)

    looks_for_marks: ClassVar[bool] = True
    looks_around: ClassVar[bool] = True

    def __init__(self, budget: int | str | None = None) -> None:
        """**Arguments:**

        - `budget`: bytes on each device, as an int or as a text such as `"512 MB"`
            (powers of 1000) or `"8 GiB"` (powers of 1024). By default half of what the
            device reports free, or of the free memory of the machine on CPU, at the
            time of tracing.

        **Raises:**

        `TypeError` if `budget` is neither an int nor a string, `ValueError` if it
        cannot be read or is below one byte.
        """
        self.budget = budget

    def __check_init__(self) -> None:
        if self.budget is not None:
            bytes_of_budget(self.budget, str(self))

    def batch(self, call: Call) -> PyTree:
        if call.size == 0:
            return call.vmap()
        task, selection = self._choose(call)
        if task is None:
            out = selection.batcher.batch(call)
        else:
            axes = call.axis_name, call.spmd_axis_name
            run = run_task(selection.batcher, task, *axes)
            out = task.finish(run(task.closure, task.rows))
        note(selection.reason)
        return out

    def select(
        self,
        fun: Callable[..., Any],
        *args: Any,
        in_axes: Any = 0,
        axis_size: int | None = None,
    ) -> Selection:
        """The batcher that would compute `fun` for all these arguments, and why.

        ```python
        import jax.numpy as jnp
        import batchkit as bk

        chosen = bk.Auto("1 GB").select(jnp.sum, jnp.ones((10, 3)))
        assert chosen.batcher == bk.Vmap()
        ```

        **Arguments:**

        - `fun`: the function of one task.
        - `*args`: its arguments for all tasks; `jax.ShapeDtypeStruct` may stand for an
            array.
        - `in_axes`: which axes are mapped, as for `jax.vmap`.
        - `axis_size`: the number of tasks, if no argument tells.

        **Returns:**

        The choice.

        **Raises:**

        What calling the batcher would raise.
        """
        chosen: list[Selection] = []

        def choose(*args: Any) -> tuple[()]:
            call = Call(fun, args, {}, in_axes, 0, None, axis_size, None)
            chosen.append(self._choose(call)[1])
            return ()

        jax.eval_shape(choose, *args)
        return chosen[0]

    def _choose(self, call: Call) -> tuple[Task | None, Selection]:
        """The task of a call, if it can be told apart, and what computes it."""
        budget = budget_or_free(self.budget, str(self))
        if call.maps_refs:
            reason = "a mutable array is mapped, which cannot be cut into chunks"
            return None, Selection(Vmap(), reason, None, budget // parts_around())
        # An Auto inside the task gets half, which leaves room for what is around it.
        task = call.trace(self, parts=2, splits=False)
        around = parts_around()
        key = (
            digest(task.jaxpr, values=False),
            tuple((x.shape, str(x.dtype)) for x in task.rows),
            tuple(task.is_mapped),
            (task.size, budget, around, self, call.axis_name, call.spmd_axis_name),
            (in_task(), jax.default_backend(), str(jnp.zeros(()).dtype)),
        )
        with _LOCK:
            selection = _CHOICES.get(key)
        if selection is None:
            with unwatched():
                selection = select(task, call, self, budget, around)
            with _LOCK:
                _CHOICES[key] = selection
                while len(_CHOICES) > _REMEMBERED:
                    _CHOICES.popitem(last=False)
        return task, selection
