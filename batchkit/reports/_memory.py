"""`memory`: what XLA will allocate for a function, without running it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import jax

from ..batchers._bytes import in_words
from ..rebuild._table import html_table, table
from ._program import trace


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
    """

    argument: int
    output: int
    temporary: int
    alias: int

    def __init__(self, argument: int, output: int, temporary: int, alias: int) -> None:
        """**Arguments:**

        - `argument`: bytes of the arguments.
        - `output`: bytes of the results.
        - `temporary`: bytes that are needed in between.
        - `alias`: bytes of results that are written over donated arguments, and are
            counted in both.
        """
        for name, value in (
            ("argument", argument),
            ("output", output),
            ("temporary", temporary),
            ("alias", alias),
        ):
            object.__setattr__(self, name, value)

    @property
    def total(self) -> int:
        """Arguments, outputs and temporaries together, aliased bytes counted once."""
        return self.argument + self.output + self.temporary - self.alias

    def __repr__(self) -> str:
        return table(_HEAD, self._rows())

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, str, str]]:
        names = ("argument", "output", "temporary", "alias", "total")
        sizes = [(name, getattr(self, name)) for name in names]
        return [(name, in_words(size), f"{size:,}") for name, size in sizes]


_HEAD = ("memory", "size", "bytes")


def memory(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> MemoryUse:
    """Tells what XLA will allocate for `fun(*args, **kwargs)`, without running it.

    The function is compiled as under `jax.jit`, from nothing but the shapes of its
    arguments. XLA's own figure for the peak is not used: on CPU it leaves out
    the temporaries. Not seen are host callbacks and what libraries allocate outside
    XLA, such as workspaces of linear algebra on a GPU.

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

    - `fun`: a function, jitted or not. What `jax.jit(fun)` donates is respected.
    - `*args`, `**kwargs`: its arguments; `jax.ShapeDtypeStruct` may stand for an array.
        What is no array, such as a number of Python, is a constant of the program,
        unless `fun` is jitted.

    **Returns:**

    The bytes on each device.

    **Raises:**

    What tracing or compiling `fun` raises, and `NotImplementedError` on a platform
    where XLA does not tell.
    """
    return memory_of(trace(fun, args, kwargs).lower().compile())


def memory_of(compiled: jax.stages.Compiled) -> MemoryUse:
    """The figures of a compiled program."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise NotImplementedError(
            f"XLA does not tell the memory of programs on {jax.default_backend()!r}."
        )
    return MemoryUse(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.alias_size_in_bytes,
    )
