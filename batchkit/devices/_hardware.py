"""Facts of the accelerators that can be described.

Those of NVIDIA's GPUs are what the driver reports of a device; XLA publishes most of
them, in `xla/backends/gpu/target_config/specs`. Facts of the L40S are from NVIDIA's
data sheet and its white paper of the Ada architecture, and its memory as CUDA reports
it. Those of TPUs are from https://cloud.google.com/tpu/docs/v5e and
https://cloud.google.com/tpu/docs/v6e.
"""

from typing import Final, NamedTuple, final


@final
class GPU(NamedTuple):
    """Facts of a GPU of NVIDIA."""

    name: str  # as CUDA reports it
    capability: tuple[int, int]
    multiprocessors: int
    float32_units: int  # of one multiprocessor, as are threads and shared memory
    threads: int
    shared_memory: int  # bytes
    l2_cache: int  # bytes
    clock: float  # GHz
    bandwidth: float  # of the memory, GB/s
    memory: int  # bytes

    @property
    def operations(self) -> float:
        """Operations per second in float32; a fused multiply and add counts as two."""
        return 2e9 * self.clock * self.multiprocessors * self.float32_units


@final
class TPU(NamedTuple):
    """Facts of one chip of a TPU."""

    name: str  # as JAX reports it
    version: str
    operations: float  # per second, of matrix products in bfloat16
    bandwidth: float  # of the memory, GB/s
    memory: int  # bytes


_A100 = ((8, 0), 108, 64, 2048, 167_936, 41_943_040, 1.41)
_HOPPER = ((9, 0), 132, 128, 2048, 233_472, 52_428_800, 1.98)

# The keys are the kinds that users name.
HARDWARE: Final[dict[str, GPU | TPU]] = {
    "V100": GPU(
        *("Tesla V100-SXM2-16GB", (7, 0), 80, 64, 2048),
        *(98_304, 6_291_456, 1.53, 898.0, 16_935_682_048),
    ),
    "A100-40GB": GPU("NVIDIA A100-SXM4-40GB", *_A100, 1555.2, 42_331_013_120),
    "A100-80GB": GPU("NVIDIA A100-SXM4-80GB", *_A100, 2039.0, 85_100_068_864),
    "A6000": GPU(
        *("NVIDIA RTX A6000", (8, 6), 84, 128, 1536),
        *(102_400, 6_291_456, 1.8, 768.1, 51_041_271_808),
    ),
    "L40S": GPU(
        *("NVIDIA L40S", (8, 9), 142, 128, 1536),
        *(102_400, 100_663_296, 2.52, 864.0, 47_803_531_264),
    ),
    "H100": GPU("NVIDIA H100 80GB HBM3", *_HOPPER, 3352.3, 84_942_979_072),
    "H200": GPU("NVIDIA H200 141GB HBM3e", *_HOPPER, 4800.0, 151_397_597_184),
    "B200": GPU(
        *("NVIDIA B200", (10, 0), 148, 128, 2048),
        *(233_472, 132_644_864, 1.965, 7672.3, 191_514_411_008),
    ),
    "TPU v5e": TPU("TPU v5 lite", "v5e", 197e12, 819.0, 16 * 1024**3),
    "TPU v6e": TPU("TPU v6 lite", "v6e", 918e12, 1638.0, 32 * 1024**3),
}


def target_config(gpu: GPU) -> str:
    """Return the description of a GPU that XLA's compiler takes, as a text proto."""
    major, minor = gpu.capability
    # From Ampere on CUDA keeps 1 KiB of each block's shared memory for itself.
    optin = gpu.shared_memory - (1024 if major >= 8 else 0)
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.float32_units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {round(gpu.bandwidth * 1e9)}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
device_description_str: "{gpu.name}"
"""
