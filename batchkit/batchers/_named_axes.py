"""Named axes of size one, as flags of a trace.

The key of JAX's cache of traces has the names of the enclosing axes. So a trace under a
flag reuses no cached trace without it, as it would under a context variable.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import jax


_T = TypeVar("_T")


def under_axis(name: Hashable, fun: Callable[[], _T]) -> _T:
    """Call a function while an axis of size one is bound under a name."""
    results: list[_T] = []

    def probe() -> tuple[()]:
        results.append(fun())
        return ()

    jax.vmap(probe, axis_name=name, axis_size=1)()
    return results[0]


def is_bound(name: Hashable) -> bool:
    """Return True while an axis of this name is bound."""
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True
