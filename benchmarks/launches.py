"""Kernels launched in the loops of a sampler, on a GPU that is described, not present.

XLA compiles for a described device on any machine. On a GPU a small kernel costs some
microseconds whatever its size, and a conditional makes the host wait for the device, so
that their numbers are the cost of a turn wherever the log-density is cheap. They are
counted in the optimised HLO: in the body of each `while` loop, without the loops and
branches that it calls, which have numbers of their own.

It needs the libraries of CUDA: `pip install "jax[cuda12]"` in the version of JAX in
use, and `libtpu` for a TPU. Kernels are not tuned, as there is no device to tune on.
"""

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple, final


# Before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
)

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import batchkit as bk
from batchkit._util._jaxprs import equations


# Facts of the H100 SXM: https://resources.nvidia.com/en-us-tensor-core, and the
# description that XLA publishes in xla/backends/gpu/target_config/specs.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 12 minor: 8 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Instructions of a scheduled module that launch nothing.
_FREE = frozenset(
    {
        "bitcast",
        "call",
        "conditional",
        "constant",
        "get-tuple-element",
        "iota",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
        "while",
    }
)
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\("
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")


@final
class Counts(NamedTuple):
    """What a computation launches, and what it calls."""

    launches: int
    copies: int
    conditionals: int
    bodies: list[str]  # of its `while` loops
    branches: list[str]  # of its conditionals


def device(name: str) -> Any:
    """Return a described device."""
    if name == "H100":
        topology = topologies.get_topology_desc(
            "h100", "cuda", target_config=H100, topology="1x1x1"
        )
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return topology.devices[0]


def optimised(fun: Callable[..., Any], target: Any, *args: Any) -> str:
    """Compile for a described device, and return the scheduled HLO."""
    here = SingleDeviceSharding(target)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=here), args
    )
    return jax.jit(fun, out_shardings=here).lower(*shapes).compile().as_text() or ""


def computations(text: str) -> dict[str, Counts]:
    """Count the instructions of each computation of a module."""
    found: dict[str, Counts] = {}
    name, kinds, bodies, branches = "", [], [], []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name, kinds, bodies, branches = start[1], [], [], []
        elif line.startswith("}"):
            launched = [x for x in kinds if x not in _FREE and not x.endswith("-done")]
            found[name] = Counts(
                len(launched),
                sum(x.startswith("copy") for x in launched),
                kinds.count("conditional"),
                bodies,
                branches,
            )
        elif instruction := _INSTRUCTION.match(line):
            kinds.append(instruction[1])
            bodies += re.findall(r"body=%?([\w.\-]+)", line)
            if instruction[1] == "conditional":
                listed = re.findall(r"branch_computations=\{([^}]*)\}", line)
                branches += re.findall(r"[\w.\-]+", " ".join(listed))
                branches += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
    return found


def turns_of_lanes(fun: Callable[..., Any], *args: Any) -> int:
    """Return the number of turns of lanes between two checks of the loop."""
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    turns = sum(eqn.params.get("name") == "turn" for eqn in equations(jaxpr))
    # One is for a CPU, if the program is another one there.
    return max(turns - 1, 1)


def report(title: str, text: str, turns: int) -> None:
    """Print a line for each loop of a program."""
    found = computations(text)
    bodies = [body for each in found.values() for body in each.bodies]
    for body in dict.fromkeys(bodies):
        counts = found[body]
        within = sum(found[x].launches for x in counts.branches if x in found)
        is_of_lanes = counts.launches == max(found[x].launches for x in bodies)
        count = turns if is_of_lanes else 1
        print(
            f"| {title} | {count} | {counts.launches / count:.1f} "
            f"| {counts.copies / count:.1f} | {counts.conditionals} "
            f"| {within} in {len(counts.branches)} |",
            flush=True,
        )


def nested(batcher: bk.AbstractBatcher) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of nss in 8 dimensions: 128 tasks of 16 inner steps."""
    dim = 8
    sizes = [(64, dim), (64, 64), (dim, 64)]
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=size).astype(np.float32) for size in sizes]

    def loglikelihood(x: Any) -> Any:
        for matrix in matrices:
            x = jnp.tanh(matrix @ x)
        return -0.5 * jnp.sum(x**2)

    algorithm = bk.rebuild_sampler(blackjax.nss, batcher={"step": batcher})(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 5), 0.0, -jnp.inf),
        loglikelihood_fn=loglikelihood,
        num_inner_steps=16,
        num_delete=128,
    )
    positions = jax.ShapeDtypeStruct((256, dim), jnp.float32)
    return algorithm.step, (
        jax.random.key(0),
        jax.eval_shape(algorithm.init, positions),
    )


def nuts(batcher: bk.AbstractBatcher) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Ten transitions of NUTS on a Gaussian in 10 dimensions: 1,024 tasks."""
    scales = np.geomspace(0.1, 10, 10).astype(np.float32)
    logdensity = bk.expensive(lambda x: -0.5 * jnp.sum((x / scales) ** 2))

    def task(key: Any, x: Any) -> Any:
        kernel: Any = blackjax.nuts(logdensity, 0.3, jnp.ones(10))
        turn = lambda state, key: (kernel.step(key, state)[0], None)
        state, _ = jax.lax.scan(turn, kernel.init(x), jax.random.split(key, 10))
        return state.position

    keys = jax.random.split(jax.random.key(0), 1024)
    return batcher(task), (keys, jax.ShapeDtypeStruct((1024, 10), jnp.float32))


PROGRAMS = {
    "nss 8-D, Vmap()": lambda: nested(bk.Vmap()),
    "nss 8-D, Continuous(64)": lambda: nested(bk.Continuous(64)),
    "NUTS 10-D, Vmap()": lambda: nuts(bk.Vmap()),
    "NUTS 10-D, Continuous(256)": lambda: nuts(bk.Continuous(256)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("H100", "v5e"), default="H100")
    parser.add_argument("--only", default="", help="programs whose name holds this")
    parser.add_argument("--dump", help="a file for the HLO of the last program")
    options = parser.parse_args()
    target = device(options.device)
    print(f"JAX {jax.__version__}, for a described {target.device_kind}\n")
    print(
        "| a loop of | turns before a check | launches a turn | copies a turn "
        "| conditionals | launches in branches |"
    )
    print("|---|---|---|---|---|---|")
    for title, make in PROGRAMS.items():
        if options.only not in title:
            continue
        fun, args = make()
        text = optimised(fun, target, *args)
        report(title, text, turns_of_lanes(fun, *args))
        if options.dump:
            with open(options.dump, "w") as file:
                file.write(text)


if __name__ == "__main__":
    main()
