"""Versions of packages, and imports of packages when they are used.

Extras are optional. `scipy.stats` takes longer to import than all of batchkit, and
blackjax computes while it is imported: that starts JAX's backend, after which
`jax.distributed.initialize` refuses, and a forked process hangs in its first
compilation.
"""

import importlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final


_PACKAGES: Final = ("batchkit", "jax", "jaxlib", "blackjax", "numpy")
# Packages that are distributed under another name than they are imported by.
_DISTRIBUTIONS: Final = {"batchkit": "batchkit-jax"}
# These decide the bits of a run, and the jaxpr of a function.
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
    """Return the versions that the numbers of a run depend on, and the platform."""
    return {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def changed_versions(
    before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names of packages, or Python, whose versions differ."""
    return tuple(name for name in _DECIDING if before.get(name) != after.get(name))


def versions_in_words(versions: Mapping[str, str], names: Iterable[str]) -> str:
    """Format the versions of some packages: "jax 0.10.2, python 3.11.7"."""
    return ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in names)


def provenance_rows(provenance: Sequence[Provenance]) -> list[tuple[str, str]]:
    """Make a row for the table of a result, if its versions changed during the run."""
    if len(provenance) < 2:
        return []
    first = provenance[0].versions
    names = {name for x in provenance for name in changed_versions(first, x.versions)}
    shown = [name for name in _DECIDING if name in names]
    parts = [
        f"{versions_in_words(each.versions, shown)} from {each.start:,} on"
        for each in provenance
    ]
    return [("computed with", "; ".join(parts))]


def provenance_as_saved(provenance: Iterable[Provenance]) -> list[Any]:
    """Convert provenance to the form that a file holds."""
    return [[int(each.start), dict(each.versions)] for each in provenance]


def provenance_from(values: Mapping[str, Any]) -> tuple[Provenance, ...]:
    """Read the provenance of a file; older result files have none."""
    saved = values.get("provenance", ())
    return tuple(Provenance(int(start), dict(x)) for start, x in saved)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        # The source may run without being installed.
        return "unknown"


def delayed(module: str) -> Any:
    """Import a module that `import batchkit` must not import, such as `"blackjax"`."""
    return importlib.import_module(module)


def extra(module: str, name: str, caller: str) -> Any:
    """Import a module of an extra `name` of batchkit, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{caller} needs {package}, which cannot be imported: {error}. Install it "
            f"by `pip install 'batchkit-jax[{name}]'`.",
            name=package,
        ) from error
