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
from ..run import CheckpointError
from ..run._file import disk_errors, replace_file
from ..run._packages import versions


_BATCHERS: Final[dict[str, Callable[..., AbstractBatcher]]] = {
    x.__name__: x for x in (Vmap, Sequential, Chunked, Continuous)
}
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
        self, max_seconds: float, measure: Callable[[], tuple[PhaseLayout, bool]]
    ) -> PhaseLayout:
        """Return the layout in the file, or measure it and write the file.

        A layout that was measured in less time, because of a limit, is measured again.
        """
        found = self._read()
        if found is not None and (found[1] is None or found[1] >= max_seconds):
            return found[0]
        layout, is_complete = measure()
        self._write(layout, None if is_complete else max_seconds)
        return layout

    def _read(self) -> tuple[PhaseLayout, float | None] | None:
        """Read a layout and the limit that cut its measurement short, if any did."""
        try:
            content = json.loads(self.path.read_text("utf-8"))
            layout, limit = _from_json(content["layout"]), content["max_seconds"]
            reason = f"{layout.reason} (measured on {content['date']})"
            layout = dataclasses.replace(layout, reason=reason)
            return layout, None if limit is None else float(limit)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            warnings.warn(
                f"plan: {str(self.path)!r} cannot be read, so that layouts are "
                f"measured again ({type(error).__name__}: {error}).",
                stacklevel=5,
            )
            return None

    def _write(self, layout: PhaseLayout, max_seconds: float | None) -> None:
        content = {
            "layout": _to_json(layout),
            "max_seconds": max_seconds,
            "date": datetime.date.today().isoformat(),
            "depends_on": self.depends_on,
        }
        folder = str(self.path.parent)
        try:
            with disk_errors("make the folder", folder):
                os.makedirs(folder, exist_ok=True)
            replace_file(str(self.path), json.dumps(content, indent=2).encode())
        except CheckpointError as error:
            warnings.warn(
                f"plan: what was measured is not remembered. {error} Another folder "
                "can be given as `remember=`.",
                stacklevel=5,
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
        MemoryUse(**content["memory"]),
        str(content["reason"]),
        larger and (_batcher(larger[0]), int(larger[1])),
        {str(name): float(x) for name, x in content["seconds"].items()},
    )


def _batcher(written: str) -> AbstractBatcher:
    """Make a batcher from what `format_batcher` wrote: `Chunked(16)`."""
    match = _WRITTEN.fullmatch(written)
    if match is None or match[1] not in _BATCHERS:
        raise ValueError(f"{written!r} is no layout")
    return _BATCHERS[match[1]](*map(int, match.groups()[1:] if match[2] else ()))
