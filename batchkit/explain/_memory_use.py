"""`memory`: the bytes that XLA allocates for a function, without running it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import jax

from .._util._formats import format_bytes
from .._util._table import html_table, table
from ._tracing import trace


@final
@dataclass(frozen=True)
class MemoryUse:
    """The bytes that XLA allocates on each device for one call of a function.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    use = bk.memory(lambda x: x @ x.T, jnp.ones((100, 3)))
    assert use.argument == 100 * 3 * 4
    assert use.output == 100 * 100 * 4
    assert use.total == use.argument + use.output + use.temporary - use.alias
    ```

    **Arguments:**

    - `argument`: bytes of the arguments.
    - `output`: bytes of the results.
    - `temporary`: bytes of temporaries, needed while the program runs.
    - `alias`: bytes of results that overwrite donated arguments, and are counted in
        both.
    """

    argument: int
    output: int
    temporary: int
    alias: int

    @property
    def total(self) -> int:
        """Arguments, outputs and temporaries together, aliased bytes counted once."""
        return self.argument + self.output + self.temporary - self.alias

    def __repr__(self) -> str:
        return table(_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows())

    def _rows(self) -> list[tuple[str, str, str]]:
        names = ("argument", "output", "temporary", "alias", "total")
        sizes = [(name, getattr(self, name)) for name in names]
        return [(name, format_bytes(size), f"{size:,}") for name, size in sizes]


_COLUMNS = ("memory", "size", "bytes")


def memory(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> MemoryUse:
    """Compute the bytes that XLA allocates for `fun(*args, **kwargs)`.

    The function is compiled as under `jax.jit`, from the shapes of its arguments, and
    does not run. XLA's own figure for the peak is not used: on CPU it leaves out the
    temporaries. Allocations outside of XLA are not counted, such as those of host
    callbacks and workspaces of linear algebra on a GPU.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(4))
    algorithm = nss(
        logprior_fn=lambda x: -0.5 * jnp.sum(x**2),
        loglikelihood_fn=lambda x: -jnp.sum(jnp.outer(x, jnp.ones(1000)) ** 2),
        num_inner_steps=5,
    )
    positions = jax.ShapeDtypeStruct((100, 2), jnp.float32)
    assert bk.memory(algorithm.init, positions).temporary < 100 * 2 * 1000 * 4
    ```

    **Arguments:**

    - `fun`: a function, jitted or not. Donated arguments of `jax.jit(fun)` count once.
    - `*args`, `**kwargs`: its arguments; `jax.ShapeDtypeStruct` may stand for an array.
        A value that is not an array, such as a Python number, is a constant of the
        program, unless `fun` is jitted.

    **Returns:**

    A [`MemoryUse`][batchkit.explain.MemoryUse]: the bytes on each device.

    **Raises:**

    The errors of tracing or compiling `fun`, and `NotImplementedError` on a platform
    where XLA does not report the memory.
    """
    return memory_of(trace(fun, args, kwargs).lower().compile())


def memory_of(compiled: jax.stages.Compiled) -> MemoryUse:
    """Read the figures of a compiled program."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise NotImplementedError(
            f"XLA does not report the memory of programs on {jax.default_backend()!r}."
        )
    return MemoryUse(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.alias_size_in_bytes,
    )
