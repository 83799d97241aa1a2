"""Counts of compilations, by the events that JAX records."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import jax.monitoring


_COMPILED: Final = "/jax/core/compile/backend_compile_duration"
_LOWERED: Final = "/jax/core/compile/jaxpr_to_mlir_module_duration"

_counts: list[list[str]] = []


def _listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    if event in (_COMPILED, _LOWERED):
        for names in _counts:
            names.append(str(kwargs.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Yield the names of programs that are lowered or compiled in the body.

    Programs from JAX's cache on disk are counted, too.
    """
    names: list[str] = []
    _counts.append(names)
    try:
        yield names
    finally:
        _counts.remove(names)
