"""The log-density of data that are spread over the devices of a mesh.

The gradient is taken outside of `jax.shard_map`, where JAX can see that all devices
have the same parameters, and adds the gradient of each device once. (Inside, the
gradient of a `psum` is the sum over devices of equal numbers: as many times too large
as there are devices.)
"""

import math
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ..batchers import Sharded
from ..batchers._sharded import inside_shard_map, mesh_of_all_devices, put_on_mesh
from ._row_split import (
    as_array,
    check_functions,
    check_logprior,
    count_rows,
    split_table,
    sum_over_rows,
)


@final
class ShardedData(eqx.Module):
    """Data whose rows are spread over the devices of a mesh.

    Each device gets its share straight from the host, so that no device ever holds all
    of them. Where devices do not divide the number of rows, some hold a copy of a row,
    which [`sharded_logdensity`][batchkit.sharded_logdensity] leaves out.

    It is a pytree. Pass it to a function that you jit yourself as an argument: arrays
    that such a function closes over become constants, of which each device has the
    whole. [`run_chains`][batchkit.run_chains] passes it so.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    data = bk.ShardedData({"x": np.ones((1001, 3)), "y": np.zeros(1001)}, mesh)
    assert data.num_rows == 1001
    ```
    """

    # The rows that every device has as many of, and one more, if some have it.
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
        Sharded(mesh, mesh_axis)  # raises if one of them is wrong
        self.num_rows = count_rows("ShardedData", data)
        axes = mesh.axis_names if mesh_axis is None else mesh_axis
        self.axes = (axes,) if isinstance(axes, str) else tuple(axes)
        # Under explicit axes, the result of an operation on the data may be ambiguous.
        self.mesh = Mesh(mesh.devices, mesh.axis_names)
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axes))
        full, last = split_table(self.num_rows, self.num_parts)

        def spread(index: np.ndarray) -> PyTree:
            return jax.tree.map(lambda x: _spread(x, index.ravel(), sharding), data)

        self.rows = spread(full)
        self.last = None if last is None else spread(last)

    @property
    def num_parts(self) -> int:
        """The number of devices that the rows are spread over."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


def sharded_logdensity(
    logprior_fn: Callable[[PyTree], Any],
    loglikelihood_fn: Callable[[PyTree, PyTree], Any],
    data: ShardedData,
) -> Callable[[PyTree], Float[Array, ""]]:
    """Make the log-density of a model whose data are spread over devices.

    Each device computes the log-likelihood of its own rows, and the results are added:
    `logprior_fn(params) + sum over devices of loglikelihood_fn(params, rows)`. It is
    that of one device to rounding, and so are its derivatives, for every sampler.
    Chains are laid out by `Vmap`, `Chunked`, `Sequential` or `Continuous`; a `Sharded`
    would need devices that hold the data.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import numpy as np
    import batchkit as bk

    x = np.random.default_rng(0).normal(3.0, 1.0, 1001)
    mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    logdensity = bk.sharded_logdensity(
        lambda mean: -0.5 * mean**2 / 100,
        lambda mean, rows: -0.5 * jnp.sum((rows - mean) ** 2),
        bk.ShardedData(x, mesh),
    )
    assert jnp.allclose(jax.grad(logdensity)(2.0), np.sum(x - 2.0) - 0.02)

    run = bk.run_chains(
        blackjax.nuts,
        logdensity,
        jax.random.key(0),
        jnp.array([2.0, 2.5, 3.5, 4.0]),
        num_warmup=200,
        num_samples=300,
    )
    assert abs(run.summary()["x"]["mean"] - np.mean(x)) < 0.02
    ```

    **Arguments:**

    - `logprior_fn`: a function from parameters to a scalar.
    - `loglikelihood_fn`: a function of parameters and rows to a scalar. `rows` is
        shaped like the data, with any number of rows; the result is a sum over them.
    - `data`: the data on their devices.

    **Returns:**

    A function from parameters to a scalar, as samplers expect it. It can be jitted,
    differentiated any number of times, and mapped. It is a `jax.tree_util.Partial`,
    hence a pytree with the data in it: pass it to a function that you jit yourself as
    an argument.

    **Raises:**

    `TypeError` if the functions or the data are none. When it is called, `TypeError` if
    the prior or the likelihood is no scalar, `ValueError` inside of `Sharded` or of
    `jax.shard_map`, and where `jax.set_mesh` has set a mesh that would split the rows
    in another way.
    """
    check_functions(
        "sharded_logdensity",
        logprior_fn=logprior_fn,
        loglikelihood_fn=loglikelihood_fn,
    )
    if not isinstance(data, ShardedData):
        raise TypeError(
            f"sharded_logdensity(data={type(data).__name__}): data must be a "
            "ShardedData, which says where the rows are. Make one with "
            "`ShardedData(data, mesh)`."
        )

    def logdensity(data: ShardedData, params: PyTree) -> Float[Array, ""]:
        logprior = logprior_fn(params)
        check_logprior(logprior)
        return logprior + _sum_over_devices(loglikelihood_fn, params, data)

    return Partial(logdensity, data)


def _sum_over_devices(
    loglikelihood_fn: Callable[..., Any], params: PyTree, data: ShardedData
) -> Any:
    if data.num_parts == 1:  # whatever mesh is set
        return sum_over_rows(loglikelihood_fn, params, data.rows, None, True)
    if inside_shard_map():
        raise ValueError(
            "sharded_logdensity: it is called inside of a `Sharded` or a "
            "`jax.shard_map`, whose devices it would need for the data. Lay the chains "
            "out with `Vmap()`, `Chunked(size)` or `Continuous(lanes)`."
        )
    longer = data.num_rows % data.num_parts

    def on_device(params: PyTree, rows: PyTree, last: PyTree) -> Any:
        has_last = jax.lax.axis_index(data.axes) < longer
        value = sum_over_rows(loglikelihood_fn, params, rows, last, has_last)
        return jax.lax.psum(value, data.axes)

    replicated, spread = PartitionSpec(), PartitionSpec(data.axes)
    # A program in which a mesh is set accepts no other, nor another type of axes.
    context = jax.sharding.get_abstract_mesh()
    mesh = data.mesh if context.empty else context
    sizes = {axis: data.mesh.shape[axis] for axis in data.axes}
    if {axis: mesh.shape.get(axis) for axis in data.axes} != sizes:
        raise ValueError(
            f"sharded_logdensity: the data are spread over the axes {sizes} of their "
            f"mesh, but the mesh that is set has the axes {dict(mesh.shape)}. Make the "
            "ShardedData with the mesh that `jax.set_mesh` sets, or call it without "
            "one."
        )

    def put(tree: PyTree, spec: PartitionSpec) -> PyTree:
        leaves, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(treedef, put_on_mesh(leaves, mesh, spec))

    rows = data.rows, data.last
    sharded = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(replicated, spread, spread),
        out_specs=replicated,
        # True would refuse likelihoods with a loop inside, whose sum begins with a
        # zero that is the same on all devices and then varies.
        check_vma=False,
    )
    return sharded(
        put(params, replicated), *(rows if context.empty else put(rows, spread))
    )


def _spread(leaf: Any, index: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Return the rows of an array with these numbers, spread over devices."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if len(index) != len(leaf):
            raise ValueError(
                f"ShardedData(data=...): {len(leaf)} rows that lie on the devices of "
                "several processes cannot be padded to a multiple of the devices. "
                "Pass arrays of NumPy, the same in all processes."
            )
        return jax.device_put(leaf, sharding)
    array = as_array(leaf)
    shape = (len(index), *array.shape[1:])

    def share(block: Any) -> np.ndarray:
        return array[index[block[0]]][:, *block[1:]]

    return jax.make_array_from_callback(shape, sharding, share)
