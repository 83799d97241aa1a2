"""`Auto`: a batcher that chooses another batcher to fit a memory budget."""

import collections
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Final, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._util._digest import digest
from ..batchers import AbstractBatcher, Vmap
from ..batchers._around import num_outer_lanes
from ..batchers._call import Call, TracedTask
from ..batchers._marks import in_task
from ..batchers._trace_log import log_note, logging_disabled
from ._budget import budget_or_free, parse_budget
from ._select import Selection, select


# Beyond this number the oldest choices are dropped.
_MAX_CHOICES: Final = 1024
_CHOICES: collections.OrderedDict[Hashable, Selection] = collections.OrderedDict()


@final
class Auto(AbstractBatcher):
    """As many tasks at once as fit a memory budget, or `Continuous` if it is faster.

    While it is traced, the task is compiled for a few numbers of lanes to find the
    memory that XLA would allocate; nothing runs. `Auto` then chooses `Continuous`, if
    tasks loop a different number of times around an expensive function; `Vmap`, if all
    tasks fit the budget; else the largest `Chunked` that fits. `select` and
    `batchkit.explain` show the choice and the reason. If the sizes of all arrays
    together are far below the budget, nothing is compiled. Choices are cached by the
    computation and the shapes of a task.

    The budget is for the lanes on one device: temporaries, and the rows and results of
    as many tasks. Arrays that the function closes over are shared by all lanes and not
    counted, nor is the program around the site; `batchkit.plan` chooses for a whole
    program. Also not counted are allocations of callbacks and of libraries outside
    XLA, the lanes of a `jax.vmap` of your own around it, and the intermediate values
    that reverse-mode differentiation *through* the batch stores for the backward pass.
    Inside a batcher that runs several lanes, the budget is divided by their number. A
    `Continuous` inside its tasks runs as `Vmap()`.

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

    uses_expensive_marks: ClassVar[bool] = True
    uses_outer_lanes: ClassVar[bool] = True

    def __init__(self, budget: int | str | None = None) -> None:
        """**Arguments:**

        - `budget`: bytes on each device, as an int or as a text such as `"512 MB"`
            (powers of 1000) or `"8 GiB"` (powers of 1024). By default half of the
            free memory of the device, or on CPU of the machine, at the time of tracing.

        **Raises:**

        `TypeError` if `budget` is neither an int nor a string, `ValueError` if it
        cannot be parsed or is below one byte.
        """
        self.budget = budget

    def __check_init__(self) -> None:
        if self.budget is not None:
            parse_budget(self.budget, str(self))

    def batch(self, call: Call) -> PyTree:
        if call.size == 0:
            return call.vmap()
        task, selection = self._choose(call)
        if task is None:
            out = selection.batcher.batch(call)
        else:
            outs = task.run_rows(
                selection.batcher,
                task.rows,
                task.size,
                axis_name=call.axis_name,
                spmd_axis_name=call.spmd_axis_name,
            )
            out = task.finish(outs)
        log_note(selection.reason)
        return out

    def select(
        self,
        fun: Callable[..., Any],
        *args: Any,
        in_axes: Any = 0,
        axis_size: int | None = None,
    ) -> Selection:
        """Choose the batcher for `fun` and these arguments, without running it.

        ```python
        import jax.numpy as jnp
        import batchkit as bk

        auto = bk.Auto("1 MB")
        chosen = auto.select(lambda x: jnp.outer(x, x) @ x, jnp.ones((100, 90)))
        assert isinstance(chosen.batcher, bk.Chunked)
        assert chosen.bytes <= chosen.budget == 1_000_000
        print(chosen.reason)
        ```

        **Arguments:**

        - `fun`: the function of one task.
        - `*args`: its arguments for all tasks; `jax.ShapeDtypeStruct` may stand for an
            array.
        - `in_axes`: the mapped axes, as for `jax.vmap`.
        - `axis_size`: the number of tasks. It is needed only if no argument is mapped.

        **Returns:**

        A [`Selection`][batchkit.auto.Selection]: the batcher, the reason and the bytes.

        **Raises:**

        The errors of calling the batcher.
        """
        chosen: list[Selection] = []

        def choose(*args: Any) -> tuple[()]:
            call = Call(fun, args, {}, in_axes, 0, None, axis_size, None)
            chosen.append(self._choose(call)[1])
            return ()

        jax.eval_shape(choose, *args)
        return chosen[0]

    def _choose(self, call: Call) -> tuple[TracedTask | None, Selection]:
        """Trace the task of a call, unless it maps a `Ref`, and choose a batcher."""
        budget = budget_or_free(self.budget, str(self))
        if call.maps_refs:
            reason = "a mutable array is mapped, which cannot be cut into chunks"
            return None, Selection(Vmap(), reason, None, budget // num_outer_lanes())
        # The number of lanes is not known before the trace. `lanes=2` gives an Auto
        # inside the task half of the budget, which leaves the other half for the rest.
        task = call.trace(self, lanes=2, splits=False)
        around = num_outer_lanes()
        if call.stays_vmap(task):
            reason = "only moves data, kept as vmap"
            return None, Selection(Vmap(), reason, None, budget // around)
        # All that the choice depends on. The dtype of zeros shows whether x64 is on,
        # and the batcher is in the key because it is named in messages.
        key = (
            digest(task.jaxpr, values=False),
            tuple((x.shape, str(x.dtype)) for x in task.rows),
            tuple(task.is_mapped),
            (task.size, budget, around, self, call.axis_name, call.spmd_axis_name),
            (in_task(), jax.default_backend(), str(jnp.zeros(()).dtype)),
        )
        selection = _CHOICES.get(key)
        if selection is None:
            with logging_disabled():
                selection = select(task, call, self, budget, around)
            # Without a lock: two threads may make the same choice twice.
            _CHOICES[key] = selection
            if len(_CHOICES) > _MAX_CHOICES:
                _CHOICES.popitem(last=False)
        return task, selection
