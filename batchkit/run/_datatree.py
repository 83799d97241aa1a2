"""Results as ArviZ has them: groups of named arrays with named axes.

ArviZ 1.0 works on the `DataTree` of xarray. Before, it had an `InferenceData` of its
own, and its functions do not take a `DataTree`. Both have the same groups, found by the
same names, so a result becomes whichever the installed ArviZ works on.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._environment import versions
from ._extras import extra
from ._names import leaves


Variable = tuple[tuple[str, ...], np.ndarray]


def variables(
    positions: PyTree, dims: tuple[str, ...], caller: str
) -> dict[str, Variable]:
    """Each array of a position under its name, with a name for each axis.

    **Arguments:**

    - `positions`: a pytree of arrays.
    - `dims`: the names of the first axes; others are called `NAME_dim_0` and so on.
    - `caller`: who asks, for messages.

    **Raises:**

    `ValueError` if two arrays have one name, or one has that of an axis.
    """
    found: dict[str, Variable] = {}
    for name, array in leaves(positions):
        name = name.replace("/", "_")
        if name in found or name in dims:
            other = "an axis" if name in dims else "another parameter"
            raise ValueError(
                f"{caller}: the parameter {name!r} has the name of {other}. Make a "
                "result whose positions have other names."
            )
        # Narrow types such as bfloat16 are not known to others.
        if array.dtype.isbuiltin == 2:
            array = array.astype(np.float32 if _is_float(array) else np.int32)
        more = (f"{name}_dim_{i}" for i in range(array.ndim - len(dims)))
        found[name] = ((*dims, *more), array)
    return found


def datatree(
    groups: Mapping[str, Mapping[str, Variable]],
    attrs: Mapping[str, Any],
    caller: str,
) -> Any:
    """The groups as the installed ArviZ has them.

    **Arguments:**

    - `groups`: of each group its arrays, with the names of their axes.
    - `attrs`: what else there is to tell, text and numbers.
    - `caller`: who asks, for messages.

    **Returns:**

    An `xarray.DataTree`, or an `arviz.InferenceData` if ArviZ is older than 1.0.

    **Raises:**

    `ImportError` if ArviZ is not installed.
    """
    arviz = extra("arviz", "arviz", caller)
    xarray = extra("xarray", "arviz", caller)
    attrs = {
        "inference_library": "batchkit",
        "inference_library_version": versions()["batchkit"],
        **attrs,
    }
    datasets = {
        name: xarray.Dataset(
            {key: (dims, array) for key, (dims, array) in group.items()},
            coords=_coordinates(group.values()),
            attrs=attrs,
        )
        for name, group in groups.items()
    }
    # Newer ones answer the old name with a warning, through the module's `__getattr__`.
    kind = vars(arviz).get("InferenceData", xarray.DataTree)
    if kind is not xarray.DataTree:
        return kind(attrs=attrs, **datasets)
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(attrs)
    return tree


def _coordinates(group: Iterable[Variable]) -> dict[str, np.ndarray]:
    return {
        dim: np.arange(size)
        for dims, array in group
        for dim, size in zip(dims, array.shape, strict=True)
    }


def _is_float(array: np.ndarray) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)
