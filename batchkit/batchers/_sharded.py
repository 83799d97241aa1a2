"""Tasks spread over devices.

The tasks are cut into one contiguous share per device, and everything else happens
inside `jax.shard_map`: a device only ever holds its own tasks, and an inner batcher
chunks them where they are. (Chunking from the outside, as `jax.lax.map` does on a
sharded array, gathers every chunk first.)
"""

import dataclasses
import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._abstract import AbstractBatcher
from ._around import is_whole_around
from ._call import Call, part_of_call
from ._meshes import type_mesh, without_mesh
from ._padding import cut_rows, pad_rows
from ._processes import check_agreement, spans_all
from ._task import Task
from ._values import check_batcher
from ._vmap import Vmap
from ._watching import note_cut


# Bound while a task is traced that will run on one device of several.
_DEVICE_AXIS = "batchkit.device"


@final
class Sharded(AbstractBatcher):
    """Tasks spread evenly over the devices of a mesh, each share run by `inner`.

    `Sharded(mesh, inner=Chunked(16))` means 16 tasks at a time on each device. What the
    function closes over is replicated. A number of tasks that the devices do not
    divide is filled up by repeating real tasks, whose results are dropped. Inside
    another `Sharded`, or any `jax.shard_map`, it acts as its `inner` batcher, because
    the devices are taken already. `spmd_axis_name` is refused: the mesh says it all.

    With several processes (`jax.distributed`) all of them call it, with the same arrays
    or with global ones; `ValueError` if they disagree about shapes.

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

        `TypeError` if `mesh` is no `jax.sharding.Mesh`, `mesh_axis` no name or `inner`
        no batcher, `ValueError` if the mesh has no such axis or it is named twice.
        """
        self.mesh = mesh
        self.mesh_axis = mesh_axis
        self.inner = Vmap() if inner is None else inner

    def __check_init__(self) -> None:
        if self.mesh is not None and not isinstance(self.mesh, Mesh):
            raise TypeError(
                f"Sharded(mesh={self.mesh!r}): mesh must be a `jax.sharding.Mesh` or "
                f"None for all devices; got {type(self.mesh).__name__}. Make one with "
                "`jax.make_mesh((jax.device_count(),), ('tasks',))`."
            )
        check_batcher("Sharded", self.inner, "inner", rule="a batcher such as `Vmap()`")
        axes = (
            self.mesh_axis if isinstance(self.mesh_axis, tuple) else (self.mesh_axis,)
        )
        if self.mesh_axis is not None and not all(isinstance(x, str) for x in axes):
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
                f"Sharded got spmd_axis_name={call.spmd_axis_name!r}, but the batcher "
                "itself says over which mesh axis tasks are spread. Leave it out; to "
                "constrain shardings inside the function use it with `Vmap()`."
            )
        if devices_are_taken():
            return self.inner.batch(call)
        mesh = self.mesh
        if mesh is None:
            context = jax.sharding.get_abstract_mesh()
            mesh = all_devices() if context.empty else context
        axes = self._axes(mesh)
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if shards == 1 or call.size == 0:
            return self.inner.batch(call)
        share = -(-call.size // shards)
        task = _trace_for_a_device(call, self, share)
        _refuse_closed_over_refs(task, self)
        if self.mesh is not None:
            mesh = with_plain_axes(self.mesh, [*task.rows, *task.closure])
        if spans_all(mesh):
            _check_agreement(task, mesh)
        note_cut(task.size, 1, shards, share, "chunk")
        spread, whole = PartitionSpec(axes), PartitionSpec()

        def on_device(closure: list[Any], rows: list[Any]) -> list[Any]:
            def run(*row: Any) -> list[Any]:
                return task.run(*row, closure=closure)

            inner = part_of_call(self.inner.batch, run, task.lane_out_axes, share)
            return inner(*rows)

        # Replication checking rejects a while_loop whose carry starts out replicated
        # and ends up varying, which is what a slice sampler's loop does.
        out_axes = task.lane_out_axes
        sharded = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, spread),
            out_specs=[whole if axis is None else spread for axis in out_axes],
            check_vma=False,
        )
        if not any(isinstance(x, Tracer) for x in [*task.closure, *task.rows]):
            # Called eagerly, `shard_map` compiles each operation for itself, those of
            # loops in every call anew.
            sharded = jax.jit(sharded)
        rows, is_whole = task.rows, is_whole_around() or share * shards != task.size
        if is_whole:
            # Also behind the copying: each device then does it for itself.
            rows = put_on(rows, mesh, whole)
            rows = put_on([pad_rows(x, share * shards) for x in rows], mesh, whole)
        outs = sharded(
            put_on(task.closure, mesh, whole),
            put_on(rows, mesh, spread),
        )
        if is_whole:
            outs = put_on(outs, mesh, whole)
        return task.finish(
            [
                out if axis is None else cut_rows(out, task.size)
                for out, axis in zip(outs, out_axes, strict=True)
            ]
        )

    def _axes(self, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
        if self.mesh_axis is None:
            return tuple(mesh.axis_names)
        axes = (self.mesh_axis,) if isinstance(self.mesh_axis, str) else self.mesh_axis
        for axis in axes:
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"Sharded(mesh_axis={self.mesh_axis!r}): the mesh has no axis "
                    f"{axis!r}; its axes are {tuple(mesh.axis_names)}."
                )
        return axes


def with_plain_axes(mesh: Mesh, arrays: list[Any]) -> Mesh:
    """The mesh with automatic axes, unless the program works with explicit ones.

    Explicit axes, which `jax.make_mesh` gives by default, are a part of the types of
    arrays. A program without them elsewhere would be asked about the sharding of
    everything that it computes from the results.
    """
    meshes = [jax.sharding.get_abstract_mesh(), *(type_mesh(x) for x in arrays)]
    if any(AxisType.Explicit in each.axis_types for each in meshes):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names)


def all_devices() -> Mesh:
    return Mesh(np.array(jax.devices()), ("tasks",))


def devices_are_taken() -> bool:
    """Whether this is part of something that runs on one device of several."""
    try:
        jax.lax.axis_size(_DEVICE_AXIS)
    except NameError:
        return bool(jax.sharding.get_abstract_mesh().manual_axes)
    return True


def _trace_for_a_device(call: Call, batcher: object, share: int) -> Task:
    """Traces one task as it will run: on a single device, without a mesh around it."""
    tasks: list[Task] = []

    def probe() -> tuple[()]:
        tasks.append(call.trace(batcher, parts=share))
        return ()

    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        jax.vmap(probe, axis_name=_DEVICE_AXIS, axis_size=1)()
    (task,) = tasks
    return dataclasses.replace(task, jaxpr=without_mesh(task.jaxpr))


def _refuse_closed_over_refs(task: Task, batcher: object) -> None:
    if any(isinstance(x, jax.Ref) for x in task.closure):
        raise ValueError(
            "The function reads or writes a mutable array (`jax.Ref`) that is the same "
            f"for all tasks, but under {batcher} they run on several devices, and a "
            "mutable array lies on one. Pass its values, `ref[...]`, instead."
        )


def _check_agreement(task: Task, mesh: Mesh | AbstractMesh) -> None:
    """Raises if processes are about to map over arrays of other shapes."""
    rows, closure, outs = (
        ", ".join(f"{x.dtype}{list(jnp.shape(x))}" for x in arrays) or "nothing"
        for arrays in (task.rows, task.closure, task.jaxpr.out_avals)
    )
    check_agreement(
        f"has {task.size} tasks ({rows}), that each return {outs} and close over "
        f"{closure}, on {dict(mesh.shape)}",
        lambda told: ValueError(
            f"Sharded: the processes disagree about the shapes: {told}. Give every "
            "process the same arrays, those of all tasks; or make one global array of "
            "the parts that they have, with "
            "`jax.make_array_from_process_local_data`."
        ),
        "Sharded",
    )


def put_on(
    arrays: list[Any], mesh: Mesh | AbstractMesh, spec: PartitionSpec
) -> list[Any]:
    """Moves arrays onto the mesh, since they may be committed elsewhere."""
    sharding = NamedSharding(mesh, spec)
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        return [jax.reshard(x, sharding) for x in arrays]
    if isinstance(mesh, AbstractMesh):  # set by jax.set_mesh: it knows no devices
        return [jax.lax.with_sharding_constraint(x, spec) for x in arrays]
    return [_moved(x, sharding) for x in arrays]


def _moved(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, Tracer):
        # In a derivative, `device_put` would move the gradient of a constant back to
        # where that had been, which a jitted program cannot do.
        try:
            return jax.lax.with_sharding_constraint(x, sharding)
        except ValueError:  # not jitted, and on another device
            pass
    return jax.device_put(x, sharding)
