"""One ordinary log-density of data that lie on several devices.

The gradient is taken from outside of `jax.shard_map`, where JAX knows that all devices
have the same parameters: it adds up what the devices have to say, and counts each once.
(Inside, the gradient of a `psum` is the sum over devices of equal numbers: as many
times too large as there are devices.) Tests hold it to the gradient of one device.

`check_vma=True` would refuse likelihoods with a loop inside, whose sum begins with a
zero that is the same on all devices and then varies.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ..batchers._sharded import inside_shard_map, put_on_mesh
from ._rows import check_functions, check_logprior, sum_over_rows
from ._sharded_data import ShardedData


def sharded_logdensity(
    logprior_fn: Callable[[PyTree], Any],
    loglikelihood_fn: Callable[[PyTree, PyTree], Any],
    data: ShardedData,
) -> Callable[[PyTree], Float[Array, ""]]:
    """Makes the log-density of a model whose data are spread over devices.

    Each device computes the log-likelihood of its own rows, and the devices add up:
    `logprior_fn(params) + sum over devices of loglikelihood_fn(params, its rows)`. The
    result is that of one device to rounding, and so are its derivatives, whatever the
    sampler that uses it. Chains are laid out by `Vmap`, `Chunked`, `Sequential` or
    `Continuous`; a `Sharded` would need devices that the data have taken.

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
    hence a pytree with the data in it: to a function that you jit yourself, give it as
    an argument.

    **Raises:**

    `TypeError` if the functions or the data are none. When it is called, `TypeError` if
    the prior or the likelihood is no scalar, `ValueError` inside of `Sharded` or of
    `jax.shard_map`, and where `jax.set_mesh` has set a mesh that cuts the rows
    otherwise.
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
        return logprior + _of_devices(loglikelihood_fn, params, data)

    return Partial(logdensity, data)


def _of_devices(
    loglikelihood_fn: Callable[..., Any], params: PyTree, data: ShardedData
) -> Any:
    longer = data.num_rows % data.num_parts
    if data.num_parts == 1:  # whatever mesh is set
        return sum_over_rows(loglikelihood_fn, params, data.rows, None, True)
    if inside_shard_map():
        raise ValueError(
            "sharded_logdensity: it is called inside of a `Sharded` or a "
            "`jax.shard_map`, whose devices it would need for the data. Lay the chains "
            "out with `Vmap()`, `Chunked(size)` or `Continuous(lanes)`."
        )

    def on_device(params: PyTree, rows: PyTree, last: PyTree) -> Any:
        is_real = jax.lax.axis_index(data.axes) < longer
        value = sum_over_rows(loglikelihood_fn, params, rows, last, is_real)
        return jax.lax.psum(value, data.axes)

    whole, spread = PartitionSpec(), PartitionSpec(data.axes)
    # A program may have a mesh set, and then takes no other, nor another type of axes.
    context = jax.sharding.get_abstract_mesh()
    mesh = data.mesh if context.empty else context
    _check_mesh(mesh, data)
    params = _put(params, mesh, whole)
    rows = data.rows, data.last
    rows = rows if context.empty else _put(rows, mesh, spread)
    sharded = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, spread, spread),
        out_specs=whole,
        check_vma=False,
    )
    return sharded(params, *rows)


def _check_mesh(mesh: Any, data: ShardedData) -> None:
    """Raises if rows would be cut otherwise than the data were."""
    sizes = {axis: data.mesh.shape[axis] for axis in data.axes}
    if {axis: mesh.shape.get(axis) for axis in data.axes} != sizes:
        raise ValueError(
            f"sharded_logdensity: the data are spread over the axes {sizes} of their "
            f"mesh, but the mesh that is set has the axes {dict(mesh.shape)}. Make the "
            "ShardedData with the mesh that `jax.set_mesh` sets, or call it without "
            "one."
        )


def _put(tree: PyTree, mesh: Any, spec: PartitionSpec) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, put_on_mesh(leaves, mesh, spec))
