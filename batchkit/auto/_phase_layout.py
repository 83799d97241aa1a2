"""The layout of one phase of a sampler, and the file that remembers it.

Measuring layouts takes minutes, so that the result is kept in the user's folder of
caches: a small JSON file for each program, named by a digest of all that the result
depends on. What cannot be read is measured again.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import jax

from .._util._jaxprs import digest
from ..batchers import AbstractBatcher, Chunked, Sequential, Vmap
from ..continuous import Continuous
from ..explain import MemoryUse
from ..explain._explain import format_batcher
from ..run._file import remove
from ..run._packages import versions


_BATCHERS: Final[dict[str, Callable[..., AbstractBatcher]]] = {
    x.__name__: x for x in (Vmap, Sequential, Chunked, Continuous)
}
# Limits that differ by less are the same: `step` has what `init` has left.
_AS_LONG: Final = 0.8
# The user's line, of warnings about a file.
_USER: Final = 6
_WRITTEN: Final = re.compile(r"(\w+)\((\d*)\)")


@final
@dataclass(frozen=True)
class PhaseLayout:
    """The batcher of one phase of a sampler, its memory, and the reason.

    **Arguments:**

    - `batcher`: the batcher.
    - `memory`: the bytes that XLA allocates for the program as a whole.
    - `reason`: why it was chosen, as text with the numbers.
    - `larger`: the next size, which does not fit the budget, and its bytes; `None` if
        it is not memory that limits the size.
    - `seconds`: the median time of a call with each layout that was measured, by the
        batcher as it is written; empty unless `measure=True`.
    """

    batcher: AbstractBatcher
    memory: MemoryUse
    reason: str
    larger: tuple[AbstractBatcher, int] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@final
class LayoutFile(NamedTuple):
    """The file of one program on one device; it need not exist."""

    path: Path
    depends_on: dict[str, Any]

    def layout(
        self, seconds: float, measure: Callable[[], tuple[PhaseLayout, bool]]
    ) -> PhaseLayout:
        """Return the layout in the file, or measure it and write the file.

        `seconds` are left for it. A layout is measured again if a limit ended its
        measurement and there is more time now, and not written if nothing was compared.
        """
        found = self._read()
        if found is not None and (found[1] is None or found[1] >= _AS_LONG * seconds):
            return found[0]
        layout, is_complete = measure()
        if is_complete or len(layout.seconds) > 1:
            self._write(layout, None if is_complete else seconds)
        return layout

    def _read(self) -> tuple[PhaseLayout, float | None] | None:
        """Read a layout and the limit that cut its measurement short, if any did."""
        try:
            content = json.loads(self.path.read_text("utf-8"))
            layout, limit = _from_json(content["layout"]), content["limit"]
            reason = f"{layout.reason} (measured on {content['date']})"
            layout = dataclasses.replace(layout, reason=reason)
            return layout, None if limit is None else float(limit)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (
            *(OSError, ValueError, LookupError, TypeError, AttributeError),
            *(OverflowError, RecursionError),
        ) as error:
            warnings.warn(
                f"plan: {str(self.path)!r} cannot be read, so that layouts are "
                f"measured again ({type(error).__name__}: {error}).",
                stacklevel=_USER,
            )
            return None

    def _write(self, layout: PhaseLayout, limit: float | None) -> None:
        content = {
            "layout": _to_json(layout),
            "limit": limit,
            "date": datetime.date.today().isoformat(),
            "depends_on": self.depends_on,
        }
        # Two processes may write it at once, each to a file of its own.
        new = self.path.with_suffix(f".{os.getpid()}")
        try:
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(content, indent=2), "utf-8")
            new.replace(self.path)
        except OSError as error:
            remove(str(new))
            warnings.warn(
                f"plan: what was measured is not remembered, since {str(self.path)!r} "
                f"cannot be written ({type(error).__name__}: {error}). Give another "
                "folder as `remember=`, or `remember=False`.",
                stacklevel=_USER,
            )


def layout_file(
    folder: str | os.PathLike[str],
    phase: str,
    traced: jax.stages.Traced,
    device: str,
    budget: int,
) -> LayoutFile:
    """Return the file of a program, as it is traced under `Vmap`.

    Values of arrays do not count: data of the same shapes share a layout.
    """
    depends_on = {
        "phase": phase,
        "program": digest(traced.jaxpr, values=False),
        "budget": budget,
        "device": device,
        "cores": _num_cores(),
        **versions(),
    }
    name = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
    return LayoutFile(Path(folder) / f"{phase}-{name[:32]}.json", depends_on)


def cache_folder() -> Path:
    """Return the folder of the user where batchkit may keep files."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "batchkit"


def _num_cores() -> int:
    # On macOS and Windows there is no list of the cores that the process may use.
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(may_use(0))


def _to_json(layout: PhaseLayout) -> dict[str, Any]:
    larger = layout.larger and [format_batcher(layout.larger[0]), layout.larger[1]]
    return {
        "batcher": format_batcher(layout.batcher),
        "memory": dataclasses.asdict(layout.memory),
        "reason": layout.reason,
        "larger": larger,
        "seconds": dict(layout.seconds),
    }


def _from_json(content: Mapping[str, Any]) -> PhaseLayout:
    larger = content["larger"]
    return PhaseLayout(
        _batcher(content["batcher"]),
        _memory(content["memory"]),
        str(content["reason"]),
        larger and (_batcher(larger[0]), int(larger[1])),
        {str(name): float(x) for name, x in content["seconds"].items()},
    )


def _memory(content: Mapping[str, Any]) -> MemoryUse:
    sizes = [x for name, x in content.items() if name != "device"]
    if not all(type(x) is int for x in sizes):
        raise TypeError(f"bytes must be integers, not {sizes}")
    return MemoryUse(**content)


def _batcher(written: str) -> AbstractBatcher:
    """Make a batcher from what `format_batcher` wrote: `Chunked(16)`."""
    match = _WRITTEN.fullmatch(written)
    if match is None or match[1] not in _BATCHERS:
        raise ValueError(f"{written!r} is no layout")
    return _BATCHERS[match[1]](*map(int, match.groups()[1:] if match[2] else ()))
