"""More quantities, computed from draws of the posterior."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from ..batchers import AbstractBatcher
from ..run._kept import kept_for
from ..run._program import Program


def with_derived(
    draws: PyTree, derived_fn: Callable[[PyTree], PyTree], batcher: AbstractBatcher
) -> Any:
    """Positions and what is derived from them; see `NestedRun.posterior`."""
    kept = kept_for("posterior", derived_fn, batcher)
    derived = Program(batcher(derived_fn), kept)(draws)
    if not (isinstance(draws, dict) and isinstance(derived, dict)):
        return draws, derived
    if twice := sorted(str(name) for name in draws.keys() & derived.keys()):
        raise ValueError(
            f"posterior(derived_fn=...): {', '.join(twice)} would replace the "
            "parameters of that name. Return the derived quantities under other "
            "names."
        )
    return {**draws, **derived}
