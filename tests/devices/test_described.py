"""Described devices: compiled for, and never used."""

import importlib.util
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import batchkit as bk
from batchkit.devices import _described
from batchkit.devices._hardware import GPU, HARDWARE
from batchkit.devices._target import memory_of_device

from ..helpers import unchecked


GPUS = [kind for kind, hardware in HARDWARE.items() if isinstance(hardware, GPU)]
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the compiler of CUDA: pip install 'batchkit-jax[cuda-plans]'",
)
needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the compiler of TPUs: pip install 'batchkit-jax[tpu-plans]'",
)


def rows(x: Any) -> Any:
    return jnp.linalg.slogdet(jnp.sin(x).T @ x)[1]


SHAPE = jax.ShapeDtypeStruct((8, 50, 30), jnp.float32)


@pytest.mark.parametrize(
    ("kind", "counts", "error", "message"),
    [
        ("H10", {}, ValueError, r"kind='H10'.*'H100', 'H200'"),
        ("H100", {"hosts": 0}, ValueError, "hosts must be an int, at least 1"),
        ("H100", {"per_host": 2.0}, TypeError, "per_host must be an int"),
        ("H100", {"hosts": True}, TypeError, "hosts must be an int"),
    ],
)
def test_wrong_descriptions_are_refused(
    kind: str, counts: dict[str, Any], error: type[Exception], message: str
) -> None:
    with unchecked(), pytest.raises(error, match=message):
        bk.described_devices(kind, **counts)


@pytest.mark.parametrize(
    ("kind", "extra"), [("A100-80GB", "cuda-plans"), ("TPU v5e", "tpu-plans")]
)
def test_missing_compiler_names_the_extra(
    kind: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_topology(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(_described, "_is_installed", lambda module: False)
    monkeypatch.setattr(_described, "_topology", no_topology)
    with pytest.raises(ImportError, match=rf"batchkit-jax\[{extra}\]"):
        # Past the cache, which has the devices where the compiler is installed.
        _described._devices.__wrapped__(kind, 1, 1)


@pytest.mark.parametrize("fun", ["memory", "explain"])
@pytest.mark.parametrize("device", ["H100", bk.described_device, 0])
def test_what_is_no_device_is_refused(fun: str, device: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a device or a mesh.*described_dev"):
        getattr(bk, fun)(jnp.sin, 1.0, device=device)


def test_present_device_needs_the_bytes_that_jax_reports() -> None:
    """A CPU that is described and present: predicted and real bytes are equal."""
    compiled = jax.jit(jax.vmap(rows)).lower(SHAPE).compile()
    real = compiled.memory_analysis()
    assert real is not None
    for device in (None, jax.devices()[0]):
        use = bk.memory(jax.vmap(rows), SHAPE, device=device)
        assert use.temporary == real.temp_size_in_bytes > 0
        assert use.argument == real.argument_size_in_bytes
        assert use.output == real.output_size_in_bytes
        assert use.device == "cpu"


def test_asking_for_the_bytes_on_a_gpu_tunes_no_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """XLA tunes on buffers of full size, for which there may be no memory."""
    taken: list[Any] = []
    compiled = jax.stages.Lowered.compile

    def noted(self: Any, options: Any = None) -> Any:
        taken.append(options)
        return compiled(self, options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", noted)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    bk.memory(jnp.sin, SHAPE)
    bk.explain(jnp.sin, SHAPE)
    bk.Auto(10**6).select(rows, SHAPE)
    assert len(taken) > 2
    assert all(x == {"xla_gpu_autotune_level": 0} for x in taken)


def test_mesh_of_devices_needs_its_share_on_each() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("tasks",))
    fun = bk.Sharded(mesh)(rows)
    use = bk.memory(fun, SHAPE, device=mesh)
    assert use.argument == 8 * 50 * 30 * 4
    alone = bk.memory(bk.Vmap()(rows), SHAPE)
    assert use.temporary < alone.temporary


def test_program_without_arguments_is_for_the_device() -> None:
    other = jax.devices()[1]
    for fun in (lambda: jnp.ones(5), jax.jit(lambda: jnp.ones(5))):
        explanation = bk.explain(fun, device=other)
        assert explanation.memory.output == 20
        assert explanation.loops == ()


@needs_cuda
@pytest.mark.parametrize("kind", GPUS)
def test_every_gpu_of_the_table_is_compiled_for(kind: str) -> None:
    device = bk.described_device(kind)
    assert device is bk.described_device(kind)
    assert device.platform == "gpu"
    hardware = HARDWARE[kind]
    assert isinstance(hardware, GPU)
    # What the compiler made of the description.
    assert device.core_count == hardware.multiprocessors
    assert memory_of_device(device) == hardware.memory
    use = bk.memory(jax.vmap(lambda x: x @ x.T), jnp.ones((50, 30, 8)), device=device)
    assert use.device == device.device_kind == hardware.name
    assert (use.argument, use.output) == (50 * 30 * 8 * 4, 50 * 30 * 30 * 4)


@needs_cuda
def test_mesh_of_described_hosts() -> None:
    devices = bk.described_devices("H100", hosts=2, per_host=4)
    assert [x.process_index for x in devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    mesh = Mesh(np.array(devices), ("tasks",))
    fun = bk.Sharded(mesh, inner=bk.Chunked(2))(lambda x: x @ x.T)
    (site,) = bk.explain(fun, jnp.ones((64, 30, 8)), device=mesh).reached
    assert site.layout == "8 devices of 8, 4 chunks of 2"


@needs_cuda
def test_callback_in_a_program_for_a_gpu_is_refused() -> None:
    def fun(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return jnp.sin(x)

    device = bk.described_device("H100")
    for look in (bk.memory, bk.explain):
        with pytest.raises(NotImplementedError, match=r"a callback.*EQX_ON_ERROR=nan"):
            look(fun, jnp.ones(3), device=device)


@needs_tpu
def test_host_of_a_tpu_does_not_wait_in_loops() -> None:
    fun = lambda x: jax.lax.fori_loop(0, 10, lambda i, y: jnp.sin(y) @ y, x)
    device = bk.described_device("TPU v5e")
    loops = bk.explain(fun, jnp.ones((256, 256)), device=device).loops
    assert [loop.round_trips for loop in loops] == [0] * len(loops)


@needs_tpu
@pytest.mark.parametrize(("hosts", "per_host"), [(1, 1), (1, 8), (2, 4)])
def test_slices_of_tpus(hosts: int, per_host: int) -> None:
    devices = bk.described_devices("TPU v5e", hosts=hosts, per_host=per_host)
    assert len(devices) == hosts * per_host
    assert len({x.process_index for x in devices}) == hosts
    assert memory_of_device(devices[0]) == 16 * 1024**3


@needs_tpu
@pytest.mark.parametrize("counts", [(1, 3), (2, 2)])
def test_slices_that_do_not_exist_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="has 1, 4, 8 chips"):
        bk.described_devices("TPU v6e", hosts=counts[0], per_host=counts[1])


OWN_WORK = """
import jax, jax.numpy as jnp
import batchkit as bk
{first}
before = jax.devices()
x = jax.jit(lambda x: jnp.sort(jnp.sin(x) @ jnp.cos(x).T))(jnp.ones((3, 4)))
assert x.devices() == {{before[0]}} and before[0].platform == "cpu", before
print(jax.default_backend(), x.tolist(), jax.random.normal(jax.random.key(0), (3,)))
"""
DESCRIBE = """
fun = jax.vmap(lambda x: jnp.sin(x) @ x)
print(bk.memory(fun, jnp.ones((5, 3)), device=bk.described_device("H100")).total > 0)
"""


@needs_cuda
def test_own_work_after_a_described_device_is_as_before() -> None:
    """Also where described devices are the first that JAX hears of."""

    def said(first: str) -> list[str]:
        program = OWN_WORK.format(first=first)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    assert said(DESCRIBE) == ["True", *said("")]
