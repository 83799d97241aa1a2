"""Results for ArviZ: groups of named arrays with named axes.

ArviZ 1.0 works on the `DataTree` of xarray. Before, it had an `InferenceData` of its
own, and its functions do not take a `DataTree`. Both have the same groups, found by the
same names, so a result becomes whichever the installed ArviZ works on.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._environment import versions
from ._extras import extra
from ._names import leaves


def datatree(
    groups: Mapping[str, tuple[tuple[str, ...], PyTree]], seconds: float, caller: str
) -> Any:
    """Return an `xarray.DataTree`, or an `arviz.InferenceData` before ArviZ 1.0.

    **Arguments:**

    - `groups`: of each group the names of the first axes, and a pytree of arrays.
    - `seconds`: the time for sampling.
    - `caller`: the public function, for messages.

    **Raises:**

    `ImportError` if ArviZ is not installed; `ValueError` if two arrays of a group have
    one name, or one has that of an axis.
    """
    found = {name: _variables(*group, caller) for name, group in groups.items()}
    arviz = extra("arviz", "arviz", caller)
    xarray = extra("xarray", "arviz", caller)
    attrs = {
        "inference_library": "batchkit",
        "inference_library_version": versions()["batchkit"],
        "sampling_time": seconds,
    }
    datasets = {
        name: xarray.Dataset(
            group,
            coords={
                dim: np.arange(size)
                for dims, array in group.values()
                for dim, size in zip(dims, array.shape, strict=True)
            },
            attrs=attrs,
        )
        for name, group in found.items()
    }
    # ArviZ 1.0 warns about the old name in its `__getattr__`, so this looks in `vars`.
    kind = vars(arviz).get("InferenceData", xarray.DataTree)
    if kind is not xarray.DataTree:
        return kind(attrs=attrs, **datasets)
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(attrs)
    return tree


def _variables(
    dims: tuple[str, ...], tree: PyTree, caller: str
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return each array by name, with names of its axes: `dims` and `NAME_dim_0`."""
    found = {}
    for name, array in leaves(tree):
        name = name.replace("/", "_")
        if name in found or name in dims:
            other = "an axis" if name in dims else "another parameter"
            raise ValueError(
                f"{caller}: the parameter {name!r} has the name of {other}. Make a "
                "result whose positions have other names."
            )
        # Other packages do not read narrow types such as bfloat16.
        if array.dtype.isbuiltin == 2:
            is_float = jnp.issubdtype(array.dtype, jnp.floating)
            array = array.astype(np.float32 if is_float else np.int32)
        more = (f"{name}_dim_{i}" for i in range(array.ndim - len(dims)))
        found[name] = ((*dims, *more), array)
    return found
