"""The versions and the platform that a run was computed with."""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final


_PACKAGES: Final = ("batchkit", "jax", "jaxlib", "blackjax", "numpy")
# Packages that are distributed under another name than they are imported by.
_DISTRIBUTIONS: Final = {"batchkit": "batchkit-jax"}
# What decides the bits of a run, and how a function looks as a jaxpr.
_DECIDING: Final = (*_PACKAGES, "python")


@final
class Provenance(NamedTuple):
    """The versions that a run was computed with, from one of its steps on.

    - `start`: the first step of a nested run, or the first draw of chains, that was
      computed with them. Draws of shards are counted through all tries.
    - `versions`: the version of each package and of Python, and the platform.

    ```python
    import numpy as np
    import batchkit as bk
    from batchkit.run import Provenance

    first = Provenance(0, {"jax": "0.10.2"})
    then = Provenance(60, {"jax": "0.12.0"})
    draws = np.random.default_rng(0).normal(size=(4, 100))
    run = bk.ChainRun({"x": draws}, provenance=(first, then))
    print(run)  # computed with: jax 0.10.2 from 0 on; jax 0.12.0 from 60 on
    ```
    """

    start: int
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """The versions of what the numbers of a run depend on, and the platform."""
    return {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def changed_versions(
    before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[str, ...]:
    """The names of packages whose versions differ, or Python's; not the platform."""
    return tuple(name for name in _DECIDING if before.get(name) != after.get(name))


def versions_in_words(versions: Mapping[str, str], names: Iterable[str]) -> str:
    """The versions of some packages, such as "jax 0.10.2, python 3.11.7"."""
    return ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in names)


def provenance_in_words(provenance: Iterable[Provenance]) -> str:
    """From where on which versions, those that did not change left out."""
    parts = tuple(provenance)
    first = parts[0].versions
    names = {name for x in parts for name in changed_versions(first, x.versions)}
    shown = [name for name in _DECIDING if name in names]
    return "; ".join(
        f"{versions_in_words(each.versions, shown)} from {each.start:,} on"
        for each in parts
    )


def provenance_rows(provenance: Sequence[Provenance]) -> list[tuple[str, str]]:
    """A line of the table of a result, if it has several versions."""
    if len(provenance) < 2:
        return []
    return [("computed with", provenance_in_words(provenance))]


def provenance_as_saved(provenance: Iterable[Provenance]) -> list[Any]:
    """Provenance in the form that a result file holds."""
    return [[int(each.start), dict(each.versions)] for each in provenance]


def provenance_from(values: Mapping[str, Any]) -> tuple[Provenance, ...]:
    """That of a result file; older files have none."""
    saved = values.get("provenance", ())
    return tuple(Provenance(int(start), dict(x)) for start, x in saved)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        # A copy of the source that runs without being installed has none.
        return "unknown"
