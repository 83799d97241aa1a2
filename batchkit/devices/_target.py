"""Targets: the device or the mesh that a program is compiled for, without running it.

`None` stands for the default device of the process.
"""

import warnings
from typing import Any, Final, TypeAlias

import jax
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from .._util._checks import check_type
from ._hardware import HARDWARE


# A `jax.Device`, which type checkers take for a variable.
Device: TypeAlias = Any
Target: TypeAlias = Device | Mesh | None

_BY_NAME: Final = {hardware.name: hardware for hardware in HARDWARE.values()}


def check_device(owner: str, device: object, *, or_mesh: bool) -> None:
    """Raise `TypeError` unless it is a device or, where it may be, a mesh."""
    kinds = jax.Device | Mesh if or_mesh else jax.Device
    rule = "a device or a mesh of JAX" if or_mesh else "a device of JAX"
    remedy = 'Such as `batchkit.described_device("H100")`, or `jax.devices()[0]`.'
    is_right = device is None or isinstance(device, kinds)
    check_type(is_right, owner, "device", device, rule, remedy)


def device_of(target: Target) -> Device:
    """Return the device, or one of a mesh."""
    if target is None:
        return jax.local_devices()[0]
    return target.devices.flat[0] if isinstance(target, Mesh) else target


def is_described(target: Target) -> bool:
    """Return whether programs can only be compiled for the target."""
    client: Any = device_of(target).client
    return client.runtime_type == "compile_only_runtime"


def platform_of(target: Target) -> str:
    """Name the platform: "cpu", "gpu" or "tpu"."""
    return jax.default_backend() if target is None else device_of(target).platform


def hardware_of(target: Target) -> Any:
    """Return the facts of the hardware, or None if the table does not have it."""
    return _BY_NAME.get(device_of(target).device_kind)


def memory_of_device(target: Target) -> int | None:
    """Return the bytes of memory of an accelerator; None for a CPU, or if unknown."""
    if not is_described(target):
        stats = device_of(target).memory_stats() or {}
        return stats.get("bytes_limit")
    hardware = hardware_of(target)
    return None if hardware is None else hardware.memory


def sharding_on(target: Device | Mesh) -> Sharding:
    """Return the sharding of an array that each device has whole."""
    if isinstance(target, Mesh):
        return NamedSharding(target, PartitionSpec())
    return SingleDeviceSharding(target)


def shapes_on(target: Target, tree: Any) -> Any:
    """Replace arrays by shapes on a target; other leaves, and shapes that are placed
    already, stay as they are."""
    if target is None:
        return tree

    def place(leaf: Any) -> Any:
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        if not is_array or (is_shape and leaf.sharding is not None):
            return leaf
        sharding = sharding_on(target)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def lower_for(traced: jax.stages.Traced, target: Target) -> jax.stages.Lowered:
    """Lower a program that was traced for a target."""
    try:
        return traced.lower()
    except RuntimeError as error:
        if not is_described(target) or "Unknown backend" not in str(error):
            raise
        raise NotImplementedError(
            f"device={device_of(target).device_kind!r}: JAX cannot compile a callback "
            "to Python, such as `jax.debug.print` or `jax.pure_callback`, for a GPU "
            "that is not here. Leave it out of the program that is described. "
            "`equinox.error_if` makes none with EQX_ON_ERROR=nan in the environment."
        ) from error


def compile_for(traced: jax.stages.Traced, target: Target) -> jax.stages.Compiled:
    """Compile a program that will not run."""
    lowered = lower_for(traced, target)
    with warnings.catch_warnings():
        # JAX keeps the program in its cache on disk, if the user has one, but cannot
        # load it without the device.
        unreadable = "Error reading persistent compilation cache entry"
        warnings.filterwarnings("ignore", unreadable)
        return lowered.compile(compile_options(target))


def compile_options(target: Target) -> dict[str, Any]:
    """Return options of `compile` for a program that will not run.

    On CPU code generation is not optimised: the buffers are the same, which the tests
    check. For a GPU kernels are not tuned. A described one has nothing to time them on,
    and on one that is present XLA would try them on buffers of full size, twice what
    the program needs, and fail where these do not fit.
    """
    options = {"cpu": "xla_backend_optimization_level", "gpu": "xla_gpu_autotune_level"}
    option = options.get(platform_of(target))
    return {} if option is None else {option: 0}


def compile_to_run(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program; the error says what tuning takes, if memory runs out."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if _is_out_of_memory(error) and platform_of(None) == "gpu":
            error.add_note(
                "This was while a program was compiled. On a GPU, XLA tries kernels on "
                "buffers of full size, which may take as much memory again as the "
                "program. Use smaller chunks, compile once on a device with more "
                "memory and keep the program (jax_compilation_cache_dir), or set "
                "XLA_FLAGS=--xla_gpu_autotune_level=0."
            )
        raise


def compile_if_it_fits(lowered: jax.stages.Lowered) -> jax.stages.Compiled | None:
    """Compile a program; None if that takes more memory than there is."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return None


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)
