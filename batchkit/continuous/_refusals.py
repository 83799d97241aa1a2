"""What lanes that run apart from each other cannot do."""

from collections.abc import Iterator
from typing import Any, Final

from ._equations import inner_jaxprs
from ._pauses import AbstractPauses


# They only tell the type of a value inside `jax.shard_map`.
_SILENT: Final = {"pcast", "pvary"}


def refuse_effects(jaxpr: Any, pauses: AbstractPauses, batcher: object) -> None:
    """Raises if a task has effects anywhere but in the expensive function."""
    for eqn, is_expensive in _innermost(jaxpr, pauses, False):
        named = any(hasattr(effect, "name") for effect in eqn.effects)
        if named or _axis_names(eqn):
            raise ValueError(
                f"The function uses the collective {eqn.primitive.name!r}, but under "
                f"{batcher} lanes go their own ways, on every device in another order, "
                "so they cannot meet for it. Use `Vmap()`, or communicate outside of "
                "the mapped function."
            )
        if eqn.effects and not is_expensive:
            raise ValueError(
                f"The function has a side effect ({eqn.primitive.name}) outside of its "
                f"expensive function. Under {batcher} all lanes execute all of it, "
                "also when they have no business there, so the effect would happen "
                "too often. Move it into the function marked by "
                "`batchkit.expensive`, or use `Vmap()` or `Chunked`."
            )


def _innermost(
    jaxpr: Any, pauses: AbstractPauses, is_expensive: bool
) -> Iterator[tuple[Any, bool]]:
    for eqn in jaxpr.eqns:
        inside = is_expensive or pauses.at(eqn)
        inner = list(inner_jaxprs(eqn))
        if not inner:
            yield eqn, inside
        for each in inner:
            yield from _innermost(each, pauses, inside)


def _axis_names(eqn: Any) -> bool:
    """Whether an equation communicates over the axis of a map around it."""
    if eqn.primitive.name in _SILENT:
        return False
    names = eqn.params.get("axis_name", eqn.params.get("axes", ()))
    names = names if isinstance(names, tuple | list) else (names,)
    return any(isinstance(name, str) for name in names)
