"""`Sharded`: tasks spread over devices, by `jax.shard_map`.

The tasks are cut into one contiguous share per device. An inner batcher runs the share
inside of `jax.shard_map`, so that a device only ever holds its own tasks. (Chunking
outside of it, as `jax.lax.map` does on a sharded array, gathers every chunk first.)

The results of `jax.shard_map` have the mesh in their type, and so has every array
computed from them. A task that is traced with such an array has the type in its loops
and calls. JAX rejects it inside another `shard_map`, where the array is local to one
device.
"""

import dataclasses
import functools
import math
from typing import Any, Final, final

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._util._checks import check_type
from .._util._jaxprs import equations
from .._util._multihost import check_agreement, spans_all_processes
from ._abstract import AbstractBatcher, check_batcher
from ._call import Call, TracedTask
from ._splitting import pad_rows
from ._trace_log import is_bound, log_split, under_axis
from ._vmap import Vmap


# Bound while tracing a task that will run inside of `shard_map`.
_DEVICE_AXIS = "batchkit.device"
NO_MESH: Final = AbstractMesh((), ())

_JAXPR_TYPES: Final = (jex.core.ClosedJaxpr, jex.core.Jaxpr)

# In these a sharding is an instruction; in other equations it only types the result.
_KEEP_SHARDING: Final = frozenset(
    {"device_put", "jit", "pjit", "shard_map", "sharding_constraint"}
)


@final
class Sharded(AbstractBatcher):
    """Tasks spread evenly over the devices of a mesh, each share run by `inner`.

    `Sharded(mesh, inner=Chunked(16))` means 16 tasks at a time on each device. Arrays
    that the function closes over are replicated. If the number of devices does not
    divide the number of tasks, real tasks are repeated as padding and their results
    dropped. Inside another `Sharded`, or any `jax.shard_map`, it acts as its `inner`
    batcher, because the devices are already in use. `spmd_axis_name` is refused, since
    `mesh_axis` says over which axis tasks are sharded.

    With several processes (`jax.distributed`) every process calls it, with the same
    arrays or with global ones; `ValueError` if their shapes differ.

    Under `jax.jit`, arguments must not be committed to a single device of a larger
    mesh: that is JAX's rule for every sharded program.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    total = bk.Sharded(inner=bk.Chunked(16))(jnp.sum)
    assert total(jnp.ones((10, 3))).tolist() == [3.0] * 10
    ```
    """

    mesh: Mesh | None = eqx.field(static=True)
    mesh_axis: str | tuple[str, ...] | None = eqx.field(static=True)
    inner: AbstractBatcher

    def __init__(
        self,
        mesh: Mesh | None = None,
        mesh_axis: str | tuple[str, ...] | None = None,
        inner: AbstractBatcher | None = None,
    ) -> None:
        """**Arguments:**

        - `mesh`: the devices. By default the mesh set by `jax.set_mesh` if there is
            one, else all devices of all processes.
        - `mesh_axis`: the axis, or axes, of the mesh over which tasks are spread; all
            axes by default. Devices along other axes repeat the same work.
        - `inner`: the batcher for the share of one device. `Vmap()` by default.

        **Raises:**

        `TypeError` if `mesh` is not a `jax.sharding.Mesh`, `mesh_axis` not a name or
        `inner` not a batcher; `ValueError` if the mesh has no such axis, or an axis is
        named twice.
        """
        self.mesh = mesh
        self.mesh_axis = mesh_axis
        self.inner = Vmap() if inner is None else inner

    def __check_init__(self) -> None:
        check_type(
            isinstance(self.mesh, Mesh | None),
            "Sharded",
            "mesh",
            self.mesh,
            "a `jax.sharding.Mesh`, or None for all devices",
            "Make one with `jax.make_mesh((jax.device_count(),), ('tasks',))`.",
        )
        check_batcher("Sharded", self.inner, "inner", rule="a batcher such as `Vmap()`")
        axes = self._named_axes
        if not all(isinstance(x, str) for x in axes):
            raise TypeError(
                f"Sharded(mesh_axis={self.mesh_axis!r}): mesh_axis must be the name of "
                "an axis of the mesh, a tuple of names, or None for all axes."
            )
        if len(set(axes)) != len(axes):
            raise ValueError(
                f"Sharded(mesh_axis={self.mesh_axis!r}): an axis is named twice; tasks "
                "can be spread over each axis of the mesh once."
            )
        if self.mesh is not None:
            self._axes(self.mesh)

    def batch(self, call: Call) -> PyTree:
        if call.spmd_axis_name is not None:
            raise ValueError(
                f"Sharded got spmd_axis_name={call.spmd_axis_name!r}, but its own "
                "mesh_axis says over which axis tasks are sharded. Leave "
                "spmd_axis_name out; to constrain shardings inside the function use "
                "it with `Vmap()`."
            )
        if inside_shard_map():
            return self.inner.batch(call)
        mesh = self.mesh
        if mesh is None:
            context = jax.sharding.get_abstract_mesh()
            mesh = mesh_of_all_devices() if context.empty else context
        axes = self._axes(mesh)
        shards = math.prod(mesh.shape[axis] for axis in axes)
        # Without `shard_map` the bits are those of the inner batcher.
        if shards == 1 or call.size == 0:
            return self.inner.batch(call)
        share = -(-call.size // shards)
        # Trace the task as it will run: on a single device, without an outer mesh.
        with jax.sharding.use_abstract_mesh(NO_MESH):
            task = under_axis(_DEVICE_AXIS, lambda: call.trace(self, lanes=share))
        # An array of the closure may still have the outer mesh in its type.
        task = dataclasses.replace(task, jaxpr=without_mesh(task.jaxpr))
        if call.stays_vmap(task):
            return Vmap().batch(call)
        if any(isinstance(x, jax.Ref) for x in task.closure):
            raise ValueError(
                "The function closes over a mutable array (`jax.Ref`), which is on one "
                f"device, but {self} runs tasks on several devices. Pass its values, "
                "`ref[...]`, instead."
            )
        if self.mesh is not None:
            mesh = with_auto_axes(self.mesh, [*task.rows, *task.closure])
        if spans_all_processes(mesh):
            _check_agreement(task, mesh)
        log_split(task.size, 1, shards, share, "chunk", mesh)
        sharded, replicated = PartitionSpec(axes), PartitionSpec()

        def on_device(closure: list[Any], rows: list[Any]) -> list[Any]:
            return task.run_rows(self.inner, rows, share, closure)

        # `check_vma=True` rejects a while_loop whose carry is replicated at first and
        # varies after the first turn, as in a slice sampler.
        run_on_devices = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(replicated, sharded),
            out_specs=[
                replicated if axis is None else sharded for axis in task.lane_out_axes
            ],
            check_vma=False,
        )
        if not any(isinstance(x, Tracer) for x in [*task.closure, *task.rows]):
            # An eager `shard_map` compiles operation by operation, and the operations
            # of loops again in every call.
            run_on_devices = jax.jit(run_on_devices)
        rows = task.rows
        # A sampler sorts, resamples and sums over its points between the tasks. XLA
        # would shard that too, and communicate in every sort and sum.
        is_replicated = call.in_sampler or share * shards != task.size
        if is_replicated:
            # Constrain the rows before and after padding: each device then pads its own
            # copy. Sharded rows would be communicated to be padded.
            rows = put_on_mesh(rows, mesh, replicated)
            rows = [pad_rows(x, share * shards) for x in rows]
            rows = put_on_mesh(rows, mesh, replicated)
        outs = run_on_devices(
            put_on_mesh(task.closure, mesh, replicated),
            put_on_mesh(rows, mesh, sharded),
        )
        if is_replicated:
            outs = put_on_mesh(outs, mesh, replicated)
        return task.finish(outs)

    @property
    def _named_axes(self) -> tuple[str, ...]:
        if isinstance(self.mesh_axis, tuple):
            return self.mesh_axis
        return () if self.mesh_axis is None else (self.mesh_axis,)

    def _axes(self, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
        for axis in self._named_axes:
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"Sharded(mesh_axis={self.mesh_axis!r}): the mesh has no axis "
                    f"{axis!r}; its axes are {tuple(mesh.axis_names)}."
                )
        is_all = self.mesh_axis is None
        return tuple(mesh.axis_names) if is_all else self._named_axes


def with_auto_axes(mesh: Mesh, arrays: list[Any]) -> Mesh:
    """Return the mesh with automatic axes, unless the program uses explicit ones."""
    # Explicit axes, which `jax.make_mesh` makes by default, are a part of the types of
    # arrays. If the results had them, JAX would demand explicit shardings in a program
    # that has none.
    meshes = [jax.sharding.get_abstract_mesh(), *(type_mesh(x) for x in arrays)]
    if any(AxisType.Explicit in each.axis_types for each in meshes):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names)


def mesh_of_all_devices() -> Mesh:
    """Make a mesh with one axis, `tasks`, over the devices of all processes."""
    return Mesh(np.array(jax.devices()), ("tasks",))


def inside_shard_map() -> bool:
    """Return True while tracing a program that `shard_map` runs on each device."""
    manual_axes = jax.sharding.get_abstract_mesh().manual_axes
    return is_bound(_DEVICE_AXIS) or bool(manual_axes)


def _check_agreement(task: TracedTask, mesh: Mesh | AbstractMesh) -> None:
    """Raise `ValueError` in every process if their shapes differ."""
    rows, closure, outs = (
        ", ".join(f"{x.dtype}{list(jnp.shape(x))}" for x in arrays) or "nothing"
        for arrays in (task.rows, task.closure, task.jaxpr.out_avals)
    )
    check_agreement(
        f"has {task.size} tasks ({rows}) that each return {outs} and close over "
        f"{closure}, on {dict(mesh.shape)}",
        lambda differences: ValueError(
            f"Sharded: shapes differ between processes: {differences}. Give every "
            "process the same arrays, those of all tasks; or make one global array of "
            "the parts that they have, with "
            "`jax.make_array_from_process_local_data`."
        ),
        "Sharded",
    )


def put_on_mesh(
    arrays: list[Any], mesh: Mesh | AbstractMesh, spec: PartitionSpec
) -> list[Any]:
    """Move arrays onto the mesh, since they may be committed to other devices."""
    sharding = NamedSharding(mesh, spec)
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        return [jax.reshard(x, sharding) for x in arrays]
    if isinstance(mesh, AbstractMesh):  # set by jax.set_mesh, without devices
        return [jax.lax.with_sharding_constraint(x, spec) for x in arrays]
    return [_put(x, sharding) for x in arrays]


def _put(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, Tracer):
        # The transpose of `device_put` moves the cotangent of a constant back to the
        # device of the constant, which is not allowed in a jitted program.
        try:
            return jax.lax.with_sharding_constraint(x, sharding)
        except ValueError:  # outside of jit, for an array on another device
            pass
    return jax.device_put(x, sharding)


def without_mesh(closed: jex.core.ClosedJaxpr) -> jex.core.ClosedJaxpr:
    """Return the jaxpr with types that have no mesh; its constants are unchanged."""
    eqns = list(equations(closed.jaxpr))
    atoms = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    atoms += [x for eqn in eqns for x in (*eqn.invars, *eqn.outvars)]
    if any(_has_mesh(x.aval) for x in atoms) or any(map(_traced_in_mesh, eqns)):
        return _MeshRemover().rewritten(closed)
    # Usually there is none. The same object then keeps the caches of JAX valid.
    return closed


@final
class _MeshRemover:
    """Rewrites a jaxpr and the jaxprs nested in it, each of them once."""

    def __init__(self) -> None:
        self._done: dict[Any, Any] = {}

    def rewritten(self, jaxpr: Any) -> Any:
        if jaxpr not in self._done:
            if isinstance(jaxpr, jex.core.ClosedJaxpr):
                # Since JAX 0.11 it is of the same type as its `jaxpr`.
                new = jex.core.ClosedJaxpr(self._rewrite(jaxpr.jaxpr), jaxpr.consts)
            else:
                new = self._rewrite(jaxpr)
            self._done[jaxpr] = new
        return self._done[jaxpr]

    def _rewrite(self, jaxpr: Any) -> Any:
        new: dict[Any, Any] = {}

        def strip(x: Any) -> Any:
            if isinstance(x, jex.core.Literal):
                return x
            if x not in new and _has_mesh(x.aval):
                new[x] = type(x)(_type(x.aval))
            return new.get(x, x)

        constvars, invars = map(strip, jaxpr.constvars), map(strip, jaxpr.invars)
        parts = {"constvars": list(constvars), "invars": list(invars), "eqns": []}
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "reshard":  # the identity on a single device
                new[eqn.outvars[0]] = strip(eqn.invars[0])
                continue
            parts["eqns"].append(
                eqn.replace(
                    invars=list(map(strip, eqn.invars)),
                    outvars=list(map(strip, eqn.outvars)),
                    params=self._parameters(eqn),
                    ctx=_context_without_mesh() if _traced_in_mesh(eqn) else eqn.ctx,
                )
            )
        return jaxpr.replace(**parts, outvars=list(map(strip, jaxpr.outvars)))

    def _parameters(self, eqn: Any) -> Any:
        keeps_sharding = eqn.primitive.name in _KEEP_SHARDING

        def stripped(x: Any) -> Any:
            if isinstance(x, _JAXPR_TYPES):
                return self.rewritten(x)
            is_type = isinstance(x, NamedSharding) and not keeps_sharding
            return None if is_type else x

        is_jaxpr = lambda x: isinstance(x, _JAXPR_TYPES)
        return jax.tree.map(stripped, eqn.params, is_leaf=is_jaxpr)


def _traced_in_mesh(eqn: Any) -> bool:
    return not eqn.ctx.cur_abstract_mesh.empty


@functools.cache
def _context_without_mesh() -> Any:
    """Return the context of an equation that is traced without a mesh."""
    # JAX has no public constructor for it.
    with jax.sharding.use_abstract_mesh(NO_MESH):
        return jax.make_jaxpr(jnp.sin)(0.0).jaxpr.eqns[0].ctx


def type_mesh(x: Any) -> AbstractMesh:
    """Return the mesh in the type of an array, or an empty one."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    is_named = isinstance(sharding, NamedSharding)
    return sharding.mesh.abstract_mesh if is_named else NO_MESH


def _has_mesh(aval: Any) -> bool:
    sharding = getattr(aval, "sharding", None)
    return isinstance(sharding, NamedSharding) and not sharding.mesh.empty


def _type(aval: Any) -> Any:
    inner = getattr(aval, "inner_aval", None)
    if inner is not None:  # the type of a mutable array
        return aval.update(inner_aval=_type(inner))
    with jax.sharding.use_abstract_mesh(NO_MESH):
        return aval.update(sharding=None)
