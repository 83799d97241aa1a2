"""Data spread over the devices of a mesh, each of which has a share of the rows."""

import math
from typing import Any, final

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ..batchers import Sharded
from ..batchers._sharded import mesh_of_all_devices
from ._rows import as_array, count_rows, table_of_parts


@final
class ShardedData(eqx.Module):
    """Data whose rows are spread over the devices of a mesh.

    Each device gets its share straight from the host, so that no device ever holds all
    of them. Rows that the devices do not divide are filled up with copies of real ones,
    which [`sharded_logdensity`][batchkit.sharded_logdensity] leaves out.

    It is a pytree. Give it to a function that you jit yourself as an argument: JAX
    makes constants of arrays that such a function closes over, on each device the
    whole. [`run_chains`][batchkit.run_chains] sees to that.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    data = bk.ShardedData({"x": np.ones((1001, 3)), "y": np.zeros(1001)}, mesh)
    assert data.num_rows == 1001
    ```
    """

    # Those that every device has as many of, and one more of each, if some have it.
    rows: PyTree
    last: PyTree
    num_rows: int = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)
    axes: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        data: PyTree,
        mesh: Mesh | None = None,
        mesh_axis: str | tuple[str, ...] | None = None,
    ) -> None:
        """**Arguments:**

        - `data`: a pytree of arrays of shape `(rows, ...)`, of numbers, with the same
            number of rows each. Arrays of NumPy are best: those of JAX are on a device
            already. With several processes, each passes all of them and keeps its part.
        - `mesh`: the devices; by default all of all processes.
        - `mesh_axis`: the axis, or axes, of the mesh over which rows are spread; all by
            default. Devices along other axes hold the same rows.

        **Raises:**

        `TypeError` or `ValueError` if `data` holds something else than arrays of
        numbers, without rows or with different numbers of them, and if the mesh or its
        axes are none.
        """
        mesh = mesh_of_all_devices() if mesh is None else mesh
        Sharded(mesh, mesh_axis)  # it says what is wrong with either
        self.num_rows = count_rows("ShardedData", data)
        axes = mesh.axis_names if mesh_axis is None else mesh_axis
        self.axes = (axes,) if isinstance(axes, str) else tuple(axes)
        # Explicit axes would ask about the sharding of whatever meets the data.
        self.mesh = Mesh(mesh.devices, mesh.axis_names)
        table = table_of_parts(self.num_rows, self.num_parts)
        full = self.num_rows // self.num_parts
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axes))

        def spread(table: np.ndarray) -> PyTree:
            return jax.tree.map(lambda x: _spread(x, table, sharding), data)

        self.rows = spread(table[:, :full].reshape(-1))
        self.last = spread(table[:, full]) if table.shape[1] > full else None

    @property
    def num_parts(self) -> int:
        """Over how many devices the rows are spread."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


def _spread(leaf: Any, table: np.ndarray, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if len(table) != len(leaf):
            raise ValueError(
                f"ShardedData(data=...): {len(leaf)} rows that lie on the devices of "
                "several processes cannot be filled up to a multiple of the devices. "
                "Pass arrays of NumPy, the same in all processes."
            )
        return jax.device_put(leaf, sharding)
    array = as_array(leaf)
    shape = (len(table), *array.shape[1:])

    def share(index: Any) -> np.ndarray:
        return array[table[index[0]]][:, *index[1:]]

    return jax.make_array_from_callback(shape, sharding, share)
