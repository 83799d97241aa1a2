"""Devices of JAX that are described, not present: programs are compiled for them.

XLA compiles for a description of a device on any machine, if the compiler of that
platform is installed. JAX registers it when it first looks for devices, but not where
there is no GPU. It is registered here then, after JAX has chosen the devices of the
process, so that these stay what they are.
"""

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import jax

from .._util._checks import check_number
from ._hardware import GPU, HARDWARE, TPU, target_config
from ._target import Device


_LOCK: Final = threading.Lock()
# Chips of a host of a TPU, and how they are arranged; chips of a slice, and its shape.
_HOSTS: Final = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}
_SLICES: Final = {
    1: "1x1",
    4: "2x2",
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
}


def described_device(kind: str) -> Device:
    """Describe one accelerator, to compile programs for it without having one.

    The device takes the place of a real one wherever JAX compiles: `device=` of
    [`memory`][batchkit.memory], [`explain`][batchkit.explain],
    [`plan`][batchkit.plan] and [`Auto`][batchkit.Auto], or
    `jax.jit(...).lower(...).compile()`. It cannot hold arrays or run anything. The
    process's own devices stay what they are.

    It needs the compiler of the platform, but no driver: the extra `cuda-plans` (3 GB)
    or `tpu-plans`. Where there is no accelerator, set `JAX_PLATFORMS=cpu`, or JAX
    prints an error when it looks for one.

    ```python
    import importlib.util
    import jax.numpy as jnp
    import batchkit as bk

    if importlib.util.find_spec("jax_cuda12_plugin"):
        device = bk.described_device("H100")
        use = bk.memory(lambda x: x @ x.T, jnp.ones((100, 3)), device=device)
        assert use.output == 100 * 100 * 4
    ```

    **Arguments:**

    - `kind`: `"V100"` (16 GB), `"A100-40GB"`, `"A100-80GB"`, `"A6000"`, `"L40S"`,
        `"H100"`, `"H200"`, `"B200"`, `"TPU v5e"` or `"TPU v6e"`.

    **Returns:**

    A device of JAX. Another call for the same kind returns the same device.

    **Raises:**

    `ValueError` if the kind is not known, and `ImportError` that names the extra if the
    compiler is not installed.
    """
    return described_devices(kind)[0]


def described_devices(kind: str, *, hosts: int = 1, per_host: int = 1) -> list[Device]:
    """Describe the accelerators of several hosts, for a mesh.

    ```python
    import importlib.util
    import jax
    import jax.numpy as jnp
    import numpy as np
    import batchkit as bk

    if importlib.util.find_spec("jax_cuda12_plugin"):
        devices = bk.described_devices("H100", hosts=16, per_host=8)
        mesh = jax.sharding.Mesh(np.array(devices), ("tasks",))
        fun = bk.Sharded(mesh, inner=bk.Chunked(16))(jnp.sin)
        print(bk.memory(fun, jnp.ones(10_000), device=mesh))
    ```

    **Arguments:**

    - `kind`: the kind of all devices, as for
        [`described_device`][batchkit.described_device].
    - `hosts`: the number of hosts, and of processes. 1 by default.
    - `per_host`: the number of devices of each host. 1 by default. A host of TPUs has
        1, 4 or 8 chips, and all hosts together 1, 4, 8, 16, 32, 64, 128 or 256.

    **Returns:**

    A list of `hosts * per_host` devices of JAX, host by host. Another call with the
    same arguments returns the same devices.

    **Raises:**

    As [`described_device`][batchkit.described_device]; `TypeError` or `ValueError` if
    `hosts` and `per_host` are not positive integers, or TPUs do not come so.
    """
    if kind not in HARDWARE:
        raise ValueError(
            f"described_devices(kind={kind!r}): the kinds are "
            f"{', '.join(map(repr, HARDWARE))}. For another kind, give a device of "
            "`jax.experimental.topologies` as `device=`."
        )
    check_number("described_devices", "hosts", hosts)
    check_number("described_devices", "per_host", per_host)
    with _LOCK:
        return list(_devices(kind, hosts, per_host))


@functools.cache
def _devices(kind: str, hosts: int, per_host: int) -> tuple[Device, ...]:
    """Return the same devices for the same description, since JAX compares them."""
    # JAX chooses the devices of the process now, before another platform is there.
    jax.devices()
    hardware = HARDWARE[kind]
    if isinstance(hardware, GPU):
        return _gpus(hardware, hosts, per_host)
    return _tpus(hardware, hosts, per_host)


def _gpus(gpu: GPU, hosts: int, per_host: int) -> tuple[Device, ...]:
    described = {
        "target_config": target_config(gpu),
        "topology": f"1x{hosts}x{per_host}",
    }
    try:
        return _topology(gpu.name, "cuda", **described)
    except NotImplementedError:  # the platform is not registered
        _register_cuda(gpu.name)
    return _topology(gpu.name, "cuda", **described)


def _register_cuda(name: str) -> None:
    """Register the compiler of CUDA, as JAX does where it finds a GPU."""
    for plugin in ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"):
        if _is_installed(plugin):
            # Its check of versions asks the driver, which need not be there.
            with _environment("JAX_SKIP_CUDA_CONSTRAINTS_CHECK"):
                importlib.import_module(plugin).initialize()
            return
    raise ImportError(
        f"Compiling for {name!r} needs the CUDA libraries of JAX: "
        '`pip install "batchkit-jax[cuda-plans]"`. A GPU or its driver is not needed.'
    )


def _tpus(tpu: TPU, hosts: int, per_host: int) -> tuple[Device, ...]:
    if not _is_installed("libtpu"):
        raise ImportError(
            f"Compiling for {tpu.name!r} needs the compiler of TPUs: "
            '`pip install "batchkit-jax[tpu-plans]"`. A TPU is not needed.'
        )
    chips = hosts * per_host
    if chips not in _SLICES or per_host not in _HOSTS:
        raise ValueError(
            f"described_devices(hosts={hosts}, per_host={per_host}): a host of a TPU "
            f"{tpu.version} has {', '.join(map(str, _HOSTS))} chips, and all hosts "
            f"together {', '.join(map(str, _SLICES))}; these would have {chips}."
        )
    # Without it libtpu asks a server in Google's cloud for its own place there.
    with _environment("TPU_SKIP_MDS_QUERY"):
        return _topology(
            f"{tpu.version}:{_SLICES[chips]}",
            "tpu",
            chips_per_host_bounds=_HOSTS[per_host],
        )


def _topology(name: str, platform: str, **described: Any) -> tuple[Device, ...]:
    # An experimental module of JAX, and slow to import.
    from jax.experimental import topologies

    description: Any = topologies.get_topology_desc(name, platform, **described)
    return tuple(description.devices)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


@contextmanager
def _environment(name: str) -> Iterator[None]:
    """Set an environment variable to 1 in the body, unless it is set."""
    was_set = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if not was_set:
            del os.environ[name]
