"""Weak scaling on devices that are not here: bytes by the compiler, and on paper.

Programs are compiled for 1, 2, 16 and 128 described hosts of eight H100 each. No device
is needed, nothing runs, and nothing is timed; it needs the extra `cuda-plans`. Bytes
are those of one device, in double precision: `b` and `i` are 8.

First a step of `blackjax.nss` under `Sharded(mesh, inner=Chunked(16))`, `d` dimensions
and `s` inner steps. `n` live points are on every device; `m` are replaced, `p` when
filled up to a multiple of the devices `D`. Of a new point a device receives

    g = (d + 2) b + s (2 i + 1 + 2 b)

bytes: position, likelihood and prior, and for each inner step two integers, a boolean
and two floats of its info. On paper the memory is

    arguments    n (d + 3) b + d^2 b + 2 b + 8      with the key; exact
    results      as much, and m (g + b)             dead points, with their births
    temporaries  n (d b + 4) + p / D g              centred points, their order, own new
                 + p g, if p > m                    all new points, with copies

XLA gathers into the results, unless it has to cut off copies. Temporaries that are not
needed at the same time may share memory, which the formula does not count.

`run_nested` drops the floats and keeps where chains move; `scaling.py` has its formula.

Then the value and the gradient of `sharded_logdensity`, of a logistic regression with
`c` columns and `r` rows on each device. The data are shapes: nothing is allocated.

    arguments    r (c + 1) b + c b                  exact
    temporaries  2 r b                              two floats for each row
    all-reduce   (1 + c) b                          value and gradient

The command stops if bytes that are exact on paper are others in the program. Times are
bytes over a bandwidth: that of an H100's memory is from NVIDIA, those of networks, one
port for each device, are assumed.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any


os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from _measure import print_machine, readable
from jax.scipy.stats import norm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scaling import algorithm, bytes_of_run, collectives, programs_of_run

import batchkit as bk
from batchkit.devices._hardware import GPU, HARDWARE
from batchkit.devices._target import compile_for, shapes_on
from batchkit.explain._explain import MemoryUse, memory_of


HOSTS = (1, 2, 16, 128)
PER_HOST = 8
LANES, DIM, STEPS, TURNS = 16, 20, 100, 100
ROWS, COLUMNS = 10**9, 32
POINT = (DIM + 2) * 8 + STEPS * (2 * 8 + 1 + 2 * 8)
NETWORKS = {"100 Gbit/s": 12.5e9, "400 Gbit/s": 50e9}


def meshes() -> Iterator[Mesh]:
    for hosts in HOSTS:
        found = bk.described_devices("H100", hosts=hosts, per_host=PER_HOST)
        yield Mesh(np.array(found), ("devices",))


def batcher_on(mesh: Mesh) -> bk.Sharded:
    return bk.Sharded(mesh, inner=bk.Chunked(LANES))


def compiled(
    fun: Callable[..., Any], args: tuple[Any, ...], mesh: Mesh
) -> tuple[MemoryUse, list[tuple[str, int]]]:
    """Compile for a mesh; return the memory of each device and the collectives."""
    program = compile_for(jax.jit(fun).trace(*shapes_on(mesh, args)), mesh)
    return memory_of(program, mesh), collectives(program)


def counted(found: list[tuple[str, int]]) -> str:
    """Count the collectives of each kind, as text."""
    names = [name for name, _ in found]
    return ", ".join(f"{names.count(x)} {x}" for x in sorted(set(names)))


def check(name: str, measured: int, paper: int) -> None:
    """Stop if the compiled program differs from a formula that is exact."""
    if measured != paper:
        raise SystemExit(f"{name}: {measured:,} bytes, and {paper:,} on paper")


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms"


def print_row(title: str, *cells: str) -> None:
    print(f"  {title:24}" + "".join(f"{x:>14}" for x in cells), flush=True)


def steps(live: int, replaced: Callable[[int], int]) -> None:
    """Print a line for each number of devices: a step of nss."""
    print(f"a step of nss, {live:,} live points")
    memory = "total", "on paper", "temporaries", "on paper"
    sent = "received", "on paper", *NETWORKS, "collectives"
    print_row("", "replaced", "a device", *memory, *sent)
    for mesh in meshes():
        new = replaced(mesh.size)
        made = algorithm(batcher_on(mesh), new, TURNS, STEPS)
        state = jax.eval_shape(made.init, jax.ShapeDtypeStruct((live, DIM), float))
        used, found = compiled(made.step, (jax.random.key(0), state), mesh)
        received = sum(size for _, size in found)

        each = -(-new // mesh.size)
        filled = each * mesh.size
        points = live * (DIM + 3) * 8 + DIM**2 * 8
        temporary = live * (DIM * 8 + 4) + each * POINT
        temporary += filled * POINT if filled > new else 0
        total = 2 * points + new * (POINT + 8) + temporary
        check("arguments", used.argument, points + 2 * 8 + 8)
        check("received", received, filled * POINT)
        print_row(
            f"{mesh.size:5,} devices",
            f"{new:,}",
            f"{each:,}",
            *map(readable, (used.total, total, used.temporary, temporary)),
            f"{received:,}",
            f"{filled * POINT:,}",
            *(milliseconds(received / x) for x in NETWORKS.values()),
            counted(found),
        )
    print()


def step_of_run(live: int, hosts: int) -> None:
    """Print what a step of `run_nested` receives, which records moves of chains."""
    found = bk.described_devices("H100", hosts=hosts, per_host=PER_HOST)
    mesh = Mesh(np.array(found), ("devices",))
    new = LANES * mesh.size
    positions = jax.ShapeDtypeStruct((live, DIM), float)
    programs = programs_of_run(batcher_on(mesh), new, TURNS, STEPS, positions)
    args = programs.state_shapes, jax.random.key(0), jnp.int32(1), jnp.float32(0)
    block = lambda *args: programs._block(*args, rule=bk.MaxSteps(1))
    found = compiled(block, args, mesh)[1]
    received = sum(size for _, size in found)
    check("received", received, bytes_of_run(new, DIM, STEPS))
    print(
        f"a step of run_nested, {live:,} live points, {new:,} replaced, {mesh.size} "
        f"devices: {received:,} bytes received, as on paper, by {counted(found)}\n"
    )


def bends() -> None:
    """Print where terms that do not shrink with devices are as large as others."""
    print("devices at which receiving the new points takes as long as computing them")
    for name, size in (("step", POINT), ("run_nested", bytes_of_run(1, DIM, STEPS))):
        for network, bandwidth in NETWORKS.items():
            counts = [int(x * bandwidth / (LANES * size)) for x in (1e-3, 1e-2, 0.1)]
            print(
                f"  {name:12}{LANES} new points of {size:,} bytes a device, {network}: "
                f"1 ms {counts[0]:,}, 10 ms {counts[1]:,}, 100 ms {counts[2]:,}"
            )
    point = (3 * DIM + 6) * 8 + 4
    h100 = hardware()
    print(
        f"live points: {point} bytes each; {h100.memory / 1e9:.1f} GB hold "
        f"{h100.memory / point / 1e6:.0f} million, on any number of devices"
    )
    x = np.linspace(-10.0, 10.0, 20_001)
    for devices in (PER_HOST * hosts for hosts in HOSTS):
        largest = np.sum(x[1:] * np.diff(np.asarray(norm.cdf(x)) ** devices))
        print(
            f"the slowest of {devices:,} devices: {largest:.2f} standard deviations "
            f"above the mean, {5 * largest:.0f} % for one of 5 %"
        )
    print()


def hardware() -> GPU:
    found = HARDWARE["H100"]
    assert isinstance(found, GPU)
    return found


def shapes_of_data(mesh: Mesh) -> bk.ShardedData:
    """Data of a logistic regression as shapes, which `ShardedData(...)` refuses."""
    full, longer = divmod(ROWS, mesh.size)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def table(rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"x": (rows, COLUMNS), "y": (rows,)}
        return {
            name: jax.ShapeDtypeStruct(shape, float, sharding=sharding)
            for name, shape in shapes.items()
        }

    data = object.__new__(bk.ShardedData)
    for name, value in {
        "rows": table(full * mesh.size),
        "last": table(mesh.size) if longer else None,
        "num_rows": ROWS,
        "mesh": mesh,
        "axes": mesh.axis_names,
    }.items():
        object.__setattr__(data, name, value)
    return data


def logistic(weights: Any, rows: Any) -> Any:
    logits = rows["x"] @ weights
    return jnp.sum(rows["y"] * logits - jnp.logaddexp(0.0, logits))


def logdensities() -> None:
    """Print a line for each number of devices: a value and a gradient."""
    print(f"value and gradient of a log-density, {ROWS:,} rows, {COLUMNS} columns")
    memory = "total", "on paper", "temporaries", "on paper"
    print_row("", "rows each", *memory, "received", "on paper", "rows read", "by")
    weights = jax.ShapeDtypeStruct((COLUMNS,), float)
    prior = lambda weights: -0.5 * jnp.sum(weights**2)
    for mesh in meshes():
        logdensity = bk.sharded_logdensity(prior, logistic, shapes_of_data(mesh))
        value_and_grad = lambda f, x: jax.value_and_grad(f)(x)
        used, found = compiled(value_and_grad, (logdensity, weights), mesh)
        each = -(-ROWS // mesh.size)
        arguments, temporary = each * (COLUMNS + 1) * 8 + COLUMNS * 8, 2 * each * 8
        check("arguments", used.argument, arguments)
        check("all-reduce", max(size for _, size in found), (1 + COLUMNS) * 8)
        total = arguments + temporary
        print_row(
            f"{mesh.size:5,} devices",
            f"{each:,}",
            *map(readable, (used.total, total, used.temporary, temporary)),
            " + ".join(str(size) for _, size in found),
            f"{(1 + COLUMNS) * 8}",
            milliseconds(seconds_to_read(each)),
            counted(found),
        )
    print(
        "  devices at which an all-reduce of 50 us takes as long as reading the rows: "
        f"{int(seconds_to_read(ROWS) / 50e-6):,}"
    )


def seconds_to_read(rows: int) -> float:
    """The least time of an evaluation: the program reads the columns twice."""
    return 2 * rows * COLUMNS * 8 / (hardware().bandwidth * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    print_machine()
    print(
        f"hosts of {PER_HOST} {hardware().name}; {DIM}-D, {STEPS} inner steps, chunks "
        f"of {LANES}, {POINT:,} bytes for each new point\n"
    )
    for live in (2**10, 2**20):
        steps(live, lambda devices, live=live: min(LANES * devices, live // 2))
    steps(2**20, lambda devices: 2**19)
    step_of_run(2**20, hosts=16)
    bends()
    logdensities()


if __name__ == "__main__":
    main()
