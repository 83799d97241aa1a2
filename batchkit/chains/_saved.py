"""Chains as a file."""

import os
from typing import Any, Final

from jaxtyping import PyTree

from ..run._environment import provenance_as_saved, provenance_from
from ..run._result_file import read_result, write_result
from ..run._structure import shaped_like


_TOLD: Final = (
    "logdensity",
    "diverging",
    "acceptance_rate",
    "num_integration_steps",
    "tree_depth",
    "energy",
    "step_size",
    "inverse_mass_matrix",
)


def save_chains(path: str | os.PathLike[str], run: Any) -> None:
    """Writes a `ChainRun`; see `ChainRun.save`."""
    depth = run.max_tree_depth
    values = {
        "samples": run.samples,
        **{name: getattr(run, name) for name in _TOLD},
        "max_tree_depth": None if depth is None else int(depth),
        "seconds": [float(x) for x in run.seconds],
        "provenance": provenance_as_saved(run.provenance),
    }
    write_result(path, "ChainRun", values)


def load_chains(
    path: str | os.PathLike[str], like: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """The arguments of a `ChainRun`; see `ChainRun.load`."""
    values = read_result(path, "ChainRun")
    samples = values["samples"]
    if like is not None:
        samples = shaped_like("ChainRun.load", like, samples)
    told = {name: values[name] for name in (*_TOLD, "max_tree_depth")}
    told |= {"provenance": provenance_from(values)}
    return samples, {**told, "seconds": tuple(values["seconds"])}
