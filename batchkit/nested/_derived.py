"""More quantities, computed from draws of the posterior."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher


def with_derived(
    draws: PyTree, derived_fn: Callable[[PyTree], PyTree], batcher: AbstractBatcher
) -> Any:
    """Positions and what is derived from them; see `NestedRun.posterior`."""
    derived = jax.jit(batcher(derived_fn))(draws)
    if not (isinstance(draws, dict) and isinstance(derived, dict)):
        return draws, derived
    if twice := sorted(str(name) for name in draws.keys() & derived.keys()):
        raise ValueError(
            f"posterior(derived_fn=...): {', '.join(twice)} would replace the "
            "parameters of that name. Return the derived quantities under other "
            "names."
        )
    return {**draws, **derived}
