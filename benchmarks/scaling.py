"""More devices: strong and weak scaling, and what devices tell each other, in one run.

The likelihood is a recursion of scalars, which one device cannot spread by itself.
Devices are those that XLA makes of the cores of this machine, one thread each, so more
devices than cores gain nothing. Every round measures each number of devices once, in
turn; ratios are taken within a round, and one device against itself is the noise.

Strong scaling is the same tasks on more devices, ideally in 1/n of the time. Weak
scaling is as many tasks on every device, ideally in the same time. For a step of nested
slices the chains of a device are of different lengths, and all wait for the slowest
device.

Then the collectives of one step of `run_nested`, read off the compiled program, and
their bytes beside the formula: with `p` new points (`num_delete`, rounded up to a
multiple of the devices), `d` dimensions, `s` inner steps, and floats and integers of
`b` and `i` bytes,

    p ((d + 2) b + s (2 i + 1 + 2 min(d, 64) b))

Positions, likelihood and prior of every new point, and for each of its inner steps two
integers, a boolean, and where the chain was before and after it. Nothing of it depends
on what a likelihood needs. `weak_scaling.py` has the formula of a step by itself.

`--only described` compiles `init` and `step` for accelerators that are not here, 16
hosts of eight H100 by default, and prints bytes and collectives. It needs the extra
`cuda-plans`.
"""

import argparse
import functools
import os
import re
import statistics
import time
from collections.abc import Callable
from typing import Any


os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved, print_machine, readable
from jax.sharding import Mesh

import batchkit as bk
from batchkit.devices._target import compile_for, shapes_on
from batchkit.explain._explain import memory_of
from batchkit.nested._nested_arguments import built
from batchkit.nested._nested_programs import NestedPrograms


jax.config.update("jax_enable_x64", True)

DEVICES = (1, 2, 4)
DIM = 5
# Where a collective is two operations, the result of the first has its operands, too.
COLLECTIVE = re.compile(
    r"= (.*?) (all-(?:gather|reduce|to-all)|collective-\w+|reduce-scatter)(?:-done)?\("
)
ARRAY = re.compile(r"\b(pred|[fsu]\d+)\[([\d,]*)\]")


def likelihood(turns: int) -> Callable[[Any], Any]:
    """A Gaussian, and a chaotic recursion that does not matter."""

    def loglikelihood(x: Any) -> Any:
        turn = lambda i, y: 3.9 * y * (1.0 - y)
        y = jax.lax.fori_loop(0, turns, turn, 0.3 + 0.01 * jnp.tanh(x[0]))
        return -0.5 * jnp.sum(x**2) / 0.01 + 1e-30 * y

    return loglikelihood


def spread(devices: int, inner: bk.AbstractBatcher) -> bk.Sharded:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("tasks",))
    return bk.Sharded(mesh, inner=inner)


def functions(turns: int) -> dict[str, Callable[[Any], Any]]:
    return {
        "logprior_fn": lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
        "loglikelihood_fn": likelihood(turns),
    }


def algorithm(
    batcher: bk.AbstractBatcher, num_delete: int, turns: int, steps: int = 3
) -> Any:
    nss = bk.rebuild_sampler(blackjax.nss, batcher=batcher)
    return nss(**functions(turns), num_inner_steps=steps, num_delete=num_delete)


def programs_of_run(
    batcher: bk.AbstractBatcher, num_delete: int, turns: int, steps: int, positions: Any
) -> NestedPrograms:
    """The programs of `run_nested`, which records where the chains of a step move."""
    settings = {"num_inner_steps": steps, "num_delete": num_delete}
    made = built(blackjax.nss, functions(turns), settings, batcher, rejects=False)
    return NestedPrograms(made, jax.random.key(0), positions)


def bytes_of_run(points: int, dim: int, steps: int) -> int:
    """The bytes that a step of `run_nested` sends to every device, on paper."""
    return points * ((dim + 2) * 8 + steps * (17 + 2 * min(dim, 64) * 8))


def compare(title: str, candidates: dict[int, Any], weak: bool, repeats: int) -> None:
    """Prints a line for each number of devices, with ratios to one device."""
    for run in candidates.values():
        jax.block_until_ready(run())
    named = {str(n): run for n, run in candidates.items()}
    seconds = interleaved({**named, "1 again": named["1"]}, repeats)
    print(f"{title:44}{'median':>10}{'range':>20}{'gain':>8}")
    for name, values in seconds.items():
        pairs = zip(seconds["1"], values, strict=True)
        ratio = statistics.median(x / y for x, y in pairs)
        gain = ratio * int(name.split()[0]) if weak else ratio
        print(
            f"  {name + ' device' + 's' * (name > '2' or name == '2'):42}"
            f"{statistics.median(values):9.3f}s{min(values):9.3f} to "
            f"{max(values):6.3f}s{gain:8.2f}",
            flush=True,
        )
    print()


def maps(turns: int, repeats: int) -> None:
    for weak in (False, True):
        candidates: dict[int, Any] = {}
        for n in DEVICES:
            x = np.linspace(0.0, 1.0, 16 * n if weak else 32)[:, None] * np.ones(DIM)
            batcher = spread(n, bk.Sequential())
            run = jax.jit(batcher(likelihood(turns))).lower(x).compile()
            candidates[n] = functools.partial(run, x)
        kind = "weak, 16 tasks a device" if weak else "strong, 32 tasks"
        compare(f"likelihoods, {kind}", candidates, weak, repeats)


def steps(turns: int, repeats: int) -> None:
    for weak in (False, True):
        candidates: dict[int, Any] = {}
        for n in DEVICES:
            num_delete = 32 * n if weak else 64
            made = algorithm(spread(n, bk.Sequential()), num_delete, turns)
            positions = jax.random.uniform(
                jax.random.key(0), (2 * num_delete, DIM), minval=-1.0
            )
            state = jax.jit(made.init)(positions)
            step = jax.jit(made.step)
            candidates[n] = functools.partial(step, jax.random.key(1), state)
        kind = "weak, 32 replaced a device" if weak else "strong, 64 replaced"
        compare(f"a step of nss, {kind}", candidates, weak, repeats)


def collectives(program: Any) -> list[tuple[str, int]]:
    """The collectives of a compiled program, with the bytes of their results."""
    found: list[tuple[str, int]] = []
    for kinds, name in COLLECTIVE.findall(program.as_text()):
        size = 0
        for kind, shape in ARRAY.findall(kinds):
            width = 1 if kind == "pred" else int(kind[1:]) // 8
            size += width * int(np.prod([int(x) for x in shape.split(",") if x] or [1]))
        found.append((name, size))
    return found


def traffic() -> None:
    print(
        f"{'one step of run_nested, 4 devices':44}{'collectives':>14}{'bytes':>10}"
        f"{'formula':>10}"
    )
    for num_delete, dim, inner, turns in (
        (8, 5, 3, 10),
        (8, 5, 3, 10_000),
        (8, 5, 12, 10),
        (8, 100, 3, 10),
        (64, 5, 3, 10),
        (30, 5, 3, 10),
    ):
        positions = jnp.zeros((2 * num_delete, dim))
        batcher = spread(4, bk.Chunked(2))
        programs = programs_of_run(batcher, num_delete, turns, inner, positions)
        key = jax.random.key(0)
        args = programs.state_shapes, key, jnp.int32(1), jnp.float32(0)
        program = programs.block.compile(*args, bk.MaxSteps(1))
        found = collectives(program)
        p = -(-num_delete // 4) * 4
        told = f"{len(found)} {' and '.join(sorted({name for name, _ in found}))}"
        title = f"{num_delete} replaced, {dim}-D, {inner} inner steps, {turns:,} turns"
        print(
            f"  {title:42}{told:>14}{sum(size for _, size in found):>10,}"
            f"{bytes_of_run(p, dim, inner):>10,}",
            flush=True,
        )
    p, dim, inner = 16_000, 20, 100
    size = bytes_of_run(p, dim, inner)
    print(
        f"\nA thousand devices with 16 new points each, {dim}-D, {inner} inner steps: "
        f"{readable(size)} a step to every device, {size / 12.5e6:.0f} ms at 100 "
        "Gbit/s\n"
    )


def described(kind: str, hosts: int, per_host: int) -> None:
    """Bytes and collectives of nss on devices that are described."""
    found = bk.described_devices(kind, hosts=hosts, per_host=per_host)
    mesh = Mesh(np.array(found), ("tasks",))
    made = algorithm(bk.Sharded(mesh, inner=bk.Chunked(16)), 32 * len(found), 100)
    positions = jax.ShapeDtypeStruct((64 * len(found), DIM), jnp.float64)
    key, state = jax.random.key(0), jax.eval_shape(made.init, positions)
    print(f"{hosts} hosts of {per_host} {found[0].device_kind}, chunks of 16 on each")
    for name, fun, args in (
        ("init, 64 live points a device", made.init, (positions,)),
        ("step, 32 replaced a device", made.step, (key, state)),
    ):
        start = time.perf_counter()
        traced = jax.jit(fun).trace(*shapes_on(mesh, args))
        program = compile_for(traced, mesh)
        seconds = time.perf_counter() - start
        used = memory_of(program, mesh)
        names = [name for name, _ in collectives(program)]
        counts = [f"{names.count(x)} {x}" for x in sorted(set(names))]
        print(
            f"  {name:32} compiled in {seconds:.0f} s; {readable(used.temporary)} of "
            f"temporaries and {readable(used.total)} in all on each device; "
            f"{', '.join(counts) or 'no collectives'}",
            flush=True,
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--turns", type=int, default=50_000)
    parts = ("maps", "steps", "traffic", "described")
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--device", default="H100", help="the kind for `described`")
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--per-host", type=int, default=8)
    options = parser.parse_args()
    print_machine()
    if options.only in (None, "maps"):
        maps(5 * options.turns, options.repeats)
    if options.only in (None, "steps"):
        steps(options.turns // 5, options.repeats)
    if options.only in (None, "traffic"):
        traffic()
    if options.only == "described":
        described(options.device, options.hosts, options.per_host)


if __name__ == "__main__":
    main()
