"""What one trace reached, as records that do not change any more."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, final

from ..batchers import AbstractBatcher, Site, Vmap
from ..batchers._watching import Cut, Reached


@final
@dataclass(frozen=True)
class ReachedSite:
    """One place that a trace reached where tasks are mapped.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    fun = bk.Chunked(4)(lambda x: jnp.sum(x**2))
    (reached,) = bk.explain(fun, jnp.ones((10, 3))).reached
    assert reached.batcher == "Chunked(4)"
    assert reached.layout == "3 chunks of 4 (2 repeated)"
    assert (reached.tasks, reached.at_once) == (10, 4)
    assert (reached.bytes_in, reached.bytes_out) == (12, 4)
    ```
    """

    site: Site
    batcher: str
    tasks: int
    layout: str
    at_once: int
    bytes_in: int
    bytes_out: int
    functions: tuple[str, ...]
    note: str
    inside: tuple["ReachedSite", ...]

    def __init__(
        self,
        site: Site,
        batcher: str,
        tasks: int,
        layout: str,
        at_once: int,
        bytes_in: int,
        bytes_out: int,
        functions: tuple[str, ...],
        note: str,
        inside: tuple["ReachedSite", ...],
    ) -> None:
        """**Arguments:**

        - `site`: where it is; in your own code as well.
        - `batcher`: the batcher that runs it, as you would write it; empty for a
            `jax.vmap` that is not rebuilt.
        - `tasks`: how many tasks are mapped.
        - `layout`: how the batcher cut them.
        - `at_once`: how many tasks of this site one device computes at the same time:
            its own lanes times those of every site around it.
        - `bytes_in`: bytes of the mapped arguments of one task.
        - `bytes_out`: bytes of the results of one task.
        - `functions`: the functions handed in by you that are called inside.
        - `note`: why something was left as it is.
        - `inside`: what is reached while this site's tasks are traced.
        """
        given = dict(locals())
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, given[field.name])


def records_of(reached: Reached, outer: int = 1) -> tuple[ReachedSite, ...]:
    """What lies inside `reached`; what was traced twice over is listed once."""
    records: list[ReachedSite] = []
    for inner in reached.inside:
        at_once = outer * (inner.cuts[-1].lanes if inner.cuts else inner.tasks)
        record = ReachedSite(
            site=inner.place,
            batcher=short_name(inner.batcher),
            tasks=inner.tasks,
            layout=_layout(inner.cuts),
            at_once=at_once,
            bytes_in=inner.bytes_in,
            bytes_out=inner.bytes_out,
            functions=tuple(inner.functions),
            note=inner.note,
            inside=records_of(inner, at_once),
        )
        if record not in records:
            records.append(record)
    return tuple(records)


def _layout(cuts: list[Cut]) -> str:
    """`2 devices of 25, 2 chunks of 13 (1 repeated)`."""
    parts: list[str] = []
    for cut in cuts:
        if cut.loop == "task":
            parts.append(f"{cut.rounds} one by one")
            continue
        if cut.loop == "lane":
            parts.append(f"{cut.lanes} lanes kept busy")
            continue
        text = f"{cut.devices} devices of {cut.lanes}" if cut.devices > 1 else ""
        if cut.rounds > 1:
            text = f"{cut.rounds} {cut.loop}s of {cut.lanes}"
        if cut.repeated > 0:
            text += f" ({cut.repeated} repeated)"
        if text:
            parts.append(text)
    return ", ".join(parts) or "all at once"


def short_name(value: Any) -> str:
    """A batcher as its user would write it: `Chunked(16)`."""
    if not isinstance(value, AbstractBatcher):
        return "" if value is None else repr(value)
    arguments: list[str] = []
    for name, parameter in inspect.signature(type(value)).parameters.items():
        given = getattr(value, name, parameter.default)
        if given == parameter.default or (
            parameter.default is None and given == Vmap()
        ):
            continue
        text = short_name(given)
        is_short = type(given) is int and not arguments
        arguments.append(text if is_short else f"{name}={text}")
    return f"{type(value).__name__}({', '.join(arguments)})"
