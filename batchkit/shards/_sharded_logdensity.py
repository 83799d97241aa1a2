"""Rows of data split into parts, and the log-density of data over devices.

Data are cut into parts of equal shape, though their numbers of rows differ by one: the
shorter ones repeat a real row at their end. The rows that every part has are passed to
the likelihood together. The last row, which only some have, is passed by itself, and
where it is a repetition `where` leaves its value out.

That alone would not keep it out of the gradient: in reverse mode the cotangent of what
is left out is zero, and zero times an infinite derivative is NaN. So the parameters go
through a `where` of their own, whose derivative leaves out any cotangent.

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
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._util._checks import check_type
from ..batchers import Sharded
from ..batchers._sharded import inside_shard_map, mesh_of_all_devices, put_on_mesh
from ..run._arguments import common_length, named_leaves


def generator(rng_key: Any) -> np.random.Generator:
    """Return a generator of NumPy seeded by a key of JAX."""
    is_typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(rng_key) if is_typed else rng_key
    return np.random.default_rng(np.asarray(data).ravel().tolist())


def order_of_rows(
    count: int, num_shards: int, strata: Any, rng: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Return a random order of rows in which each shard is a contiguous part.

    With strata, the rows of each are assigned to the shards in turn, and the next
    stratum continues where the one before has ended: shards differ by at most one row
    of any stratum, and by at most one in all.
    """
    mixed = rng.permutation(count)
    if strata is None:
        return mixed
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    # A stable sort keeps the rows of a stratum mixed.
    by_stratum = mixed[np.argsort(labels[mixed], kind="stable")]
    return np.concatenate([by_stratum[s::num_shards] for s in range(num_shards)])


def split_rows(
    rows: int, parts: int
) -> tuple[int, Int[np.ndarray, " parts"], Int[np.ndarray, " parts"] | None]:
    """Return the number of rows that all parts have, their first rows, and their last.

    Longer parts come first, and have the last row besides. The others repeat one in its
    place. None takes the place of the last rows if all parts are of one size.
    """
    full, longer = divmod(rows, parts)
    place = np.arange(parts)
    first = place * full + np.minimum(place, longer)
    last = first + np.where(place < longer, full, full - 1)
    return full, first, last if longer else None


def split_table(
    rows: int, parts: int
) -> tuple[Int[np.ndarray, "parts full"], Int[np.ndarray, "parts 1"] | None]:
    """Return the row numbers of `split_rows`, of each part in one row of a table."""
    full, first, last = split_rows(rows, parts)
    table = first[:, None] + np.arange(full)
    return table, None if last is None else last[:, None]


def take_rows(data: PyTree, index: Int[np.ndarray, "..."]) -> PyTree:
    """Return the rows of each array with these numbers, on the host."""
    return jax.tree.map(lambda x: as_array(x)[index], data)


def as_array(leaf: Any) -> np.ndarray:
    """Return an array on the host, in the dtype that it has on a device."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def sum_over_rows(
    loglikelihood_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    rows: PyTree,
    last: PyTree,
    has_last: Bool[Array, ""] | bool,
) -> Float[Array, ""]:
    """Return the log-likelihood of the rows of one part.

    The last row, an array of shape `(1, ...)` or None, is not in one array with the
    others: to cut it off takes a copy of these, where XLA passes them to a product of
    matrices.
    """

    def of(params: PyTree, rows: PyTree) -> Any:
        value = loglikelihood_fn(params, rows)
        check_likelihood(value)
        return value

    if last is None:
        return of(params, rows)
    guarded = jax.tree.map(
        lambda x: jnp.where(has_last, x, jax.lax.stop_gradient(x)), params
    )
    of_last = of(guarded, last)
    of_last = jnp.where(has_last, of_last, jnp.zeros_like(of_last))
    if jax.tree.leaves(rows)[0].shape[0] == 0:
        return of_last
    return of(params, rows) + of_last


def check_likelihood(value: Any) -> None:
    """Raise `TypeError` if a likelihood has not returned one real number."""
    if not _is_real(value):
        raise TypeError(
            "loglikelihood_fn(params, rows) must return one real number, a scalar, for "
            f"any number of rows; got {_kind_of(value)}. Sum over the rows, as in "
            "`jnp.sum(...)`."
        )


def check_logprior(value: Any) -> None:
    """Raise `TypeError` if a prior has not returned one real number."""
    # A flat prior may be a number of Python.
    if not isinstance(value, int | float) and not _is_real(value):
        raise TypeError(
            "logprior_fn(params) must return one real number, a scalar; got "
            f"{_kind_of(value)}. Sum over the parameters, as in `jnp.sum(...)`."
        )


def _is_real(value: Any) -> bool:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and shape == ()


def _kind_of(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{dtype} of shape {value.shape}"


def check_functions(owner: str, **functions: Any) -> None:
    """Raise `TypeError` if one of the functions is none."""
    for name, function in functions.items():
        check_type(callable(function), owner, name, function, "a function")


def count_rows(owner: str, data: PyTree) -> int:
    """Return the number of rows of data; raise unless all arrays have as many."""
    for name, leaf in named_leaves("data", data):
        _check_array(owner, name, leaf)
    remedy = "What is the same for all rows, the functions can close over."
    return common_length(owner, "data", data, "rows", remedy)


def _check_array(owner: str, name: str, leaf: Any) -> None:
    if isinstance(leaf, Tracer):
        raise TypeError(
            f"{owner}(data=...): {name} is an array that is being traced, and rows are "
            "assigned to their parts on the host. Do it outside of `jax.jit` and other "
            "transformations, and pass the result as an argument."
        )
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{owner}(data=...): {name} is masked in {np.ma.count_masked(leaf):,} "
            "places, and masks are ignored. Leave those rows out, or fill in the "
            "values and make the mask an array of the data."
        )
    dtype = getattr(leaf, "dtype", None)
    is_numeric = isinstance(dtype, np.dtype) and any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_)
    )
    # Sparse matrices have a shape and a dtype, but are no arrays.
    if not is_numeric or not hasattr(leaf, "shape") or not hasattr(leaf, "__array__"):
        got = dtype if isinstance(leaf, np.ndarray | jax.Array) else type(leaf).__name__
        raise TypeError(
            f"{owner}(data=...): {name} must be an array of numbers, of NumPy or "
            f"JAX; got {got}. Of a table take the values, as in "
            "`table.to_numpy()`, of a list make an array, as in "
            "`np.asarray(values)`, and give categories numbers."
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
        full, first, last = split_rows(self.num_rows, self.num_parts)

        def spread(first: np.ndarray, size: int) -> PyTree:
            return jax.tree.map(lambda x: _spread(x, first, size, sharding), data)

        self.rows = spread(first, full)
        self.last = None if last is None else spread(last, 1)

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
    rule = "a ShardedData, which says where the rows are"
    remedy = "Make one with `ShardedData(data, mesh)`."
    is_right = isinstance(data, ShardedData)
    check_type(is_right, "sharded_logdensity", "data", data, rule, remedy)

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


def _spread(
    leaf: Any, first: np.ndarray, size: int, sharding: NamedSharding
) -> jax.Array:
    """Return as many rows of an array for each part, from its first, over devices."""
    rows = size * len(first)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if rows != len(leaf):
            raise ValueError(
                f"ShardedData(data=...): {len(leaf)} rows that lie on the devices of "
                "several processes cannot be padded to a multiple of the devices. "
                "Pass arrays of NumPy, the same in all processes."
            )
        return jax.device_put(leaf, sharding)
    source = np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf

    def share(block: Any) -> np.ndarray:
        # Consecutive rows only: those of a file are read when they are sent.
        start = int(first[(block[0].start or 0) // max(size, 1)])
        return as_array(source[start : start + size])[:, *block[1:]]

    dtype = jax.dtypes.canonicalize_dtype(source.dtype)
    shape = (rows, *source.shape[1:])
    return jax.make_array_from_callback(shape, sharding, share, dtype=dtype)
