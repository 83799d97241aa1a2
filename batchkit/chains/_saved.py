"""Chains as a file: a result, or a checkpoint read as one."""

import os
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..run._environment import provenance_as_saved, provenance_from
from ..run._file import understood
from ..run._result_file import AGAIN, numbers, read_result, typed, write_result
from ..run._structure import put_together, shaped_like
from ..run._trees import array_names, names_to_save


_REAL: Final = (jnp.floating,)
_COUNT: Final = (jnp.integer, jnp.bool_)
# Numbers of each draw, and of each chain.
_TOLD: Final = {
    "logdensity": _REAL,
    "diverging": _COUNT,
    "acceptance_rate": _REAL,
    "num_integration_steps": _COUNT,
    "tree_depth": _COUNT,
    "energy": _REAL,
}
_TUNED: Final = ("step_size", "inverse_mass_matrix")


def save_chains(path: str | os.PathLike[str], run: Any) -> None:
    """Writes a `ChainRun`; see `ChainRun.save`."""
    depth = run.max_tree_depth
    values = {
        "samples": run.samples,
        **{name: getattr(run, name) for name in (*_TOLD, *_TUNED)},
        "max_tree_depth": None if depth is None else int(depth),
        "seconds": [float(x) for x in run.seconds],
        "provenance": provenance_as_saved(run.provenance),
    }
    write_result(path, "ChainRun", values)


def for_readers(state: Any, draws: Any) -> dict[str, Any]:
    """Header entries with which `load_chains` reads a checkpoint.

    **Arguments:**

    - `state`: the `ChainState`, which is saved under "state".
    - `draws`: the `Draw`, of which each field is saved under "draws".
    """
    made = {
        name: names_to_save(array_names(f"draws/{name}", part))
        for name, part in draws._asdict().items()
    }
    adaptation = array_names("state", state).adaptation
    found = {} if adaptation is None else adaptation._asdict()
    found = {name: found[name] for name in _TUNED if name in found}
    return {**made, **{name: names_to_save(x) for name, x in found.items()}}


def load_chains(
    path: str | os.PathLike[str], like: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """The arguments of a `ChainRun`; see `ChainRun.load`."""
    values = read_result(path, "ChainRun", _values_of_checkpoint)
    with understood(os.fspath(path), AGAIN):
        samples = values["samples"]
        leaves = jax.tree.leaves(samples)
        if not all(type(x) is np.ndarray for x in leaves):
            raise ValueError("its draws are no arrays")
        shape = leaves[0].shape[:2]
        told = {
            **{
                name: _array(values, name, shape, kinds)
                for name, kinds in _TOLD.items()
            },
            **{x: _array(values, x, shape[:1]) for x in _TUNED},
            "max_tree_depth": typed(values, "max_tree_depth", int, type(None)),
            # Files of before have no time of the diagnostics, as checkpoints have none.
            "seconds": numbers(values, "seconds", 3, 4),
            "provenance": provenance_from(values),
        }
    if like is not None:
        samples = shaped_like("ChainRun.load", like, samples)
    return samples, told


def _values_of_checkpoint(
    header: dict[str, Any], arrays: dict[str, Any]
) -> dict[str, Any]:
    told = header.get("result")
    if told is None or told["position"] is None:
        raise ValueError(
            "it is a checkpoint without the names of parameters; call run_chains with "
            "checkpoint= to have its result"
        )

    def found(name: str) -> Any:
        names = put_together(told.get(name), {})
        return jax.tree.map(lambda x: arrays[x], names)

    names = {"acceptance_rate": "acceptance"}
    return {
        "samples": found("position"),
        **{name: found(names.get(name, name)) for name in (*_TOLD, *_TUNED)},
        "max_tree_depth": header["max_tree_depth"],
        "seconds": header["seconds"],
        "provenance": header.get("provenance", []),
    }


def _array(
    values: dict[str, Any],
    name: str,
    shape: tuple[int, ...],
    kinds: tuple[Any, ...] = _REAL,
) -> Any:
    """Return a value that is None or an array, whose shape begins with another."""
    array = typed(values, name, np.ndarray, type(None))
    if array is not None and not (
        any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
        and array.shape[: len(shape)] == shape
    ):
        raise ValueError(f"its {name} is {array.dtype} of shape {array.shape}")
    return array
