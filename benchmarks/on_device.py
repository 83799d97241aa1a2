"""Layouts on the accelerator that is present: seconds, and bytes at the peak.

Times: for nested slice sampling, NUTS on a Gaussian and NUTS on Neal's funnel, each
with a cheap, a middling and a costly log-density, `jax.vmap`, `Chunked`, `Continuous`
and `Auto` run in turn in every round. Ratios are taken within a round, and vmap against
itself is the noise. All are compiled before the first is timed, on all cores.

Lens: the likelihood of `memory.py` at full size, in float64: seconds of `init` and of a
step of `nss`.

Peaks: the bytes that `batchkit.memory` predicts, for the device that is present and for
one that is described, and the bytes at the peak as the device reports them. A peak only
grows in a process, so each is measured in a process of its own; compiling takes memory
as well, where kernels are tuned, and is told apart.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final


# An import below sets it to the CPU, where it is not set.
os.environ.setdefault("JAX_PLATFORMS", "")

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved, print_machine, readable
from memory import N_LIVE, NUM_DELETE, logprior_fn, make_loglikelihood

import batchkit as bk


DIM: Final = 10
# Products of a square matrix of this size with a vector, one after the other.
COSTS: Final = {"cheap": (0, 0), "middling": (256, 2), "costly": (1024, 6)}
TASKS: Final = {"nss": 512, "NUTS": 1024, "funnel": 1024}
# No case is timed for much longer, in seconds.
LONGEST: Final = 10.0


def with_cost(cost: str, density: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The density, and products that do not matter."""
    size, products = COSTS[cost]
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)

    def costly(x: Any) -> Any:
        y = jnp.full(size, x[0])
        for _ in range(products):
            y = jnp.tanh(matrix @ y)
        return density(x) + 1e-20 * jnp.sum(y)

    return costly if products else density


def gaussian(x: Any) -> Any:
    """A Gaussian with widths from 0.1 to 1."""
    return -0.5 * jnp.sum((x / np.geomspace(0.1, 1, DIM).astype(np.float32)) ** 2)


def funnel(x: Any) -> Any:
    """Neal's funnel (2003, Annals of Statistics 31, 705)."""
    rest = jnp.sum(x[1:] ** 2)
    return -0.5 * (x[0] ** 2 / 9.0 + rest * jnp.exp(-x[0]) + (DIM - 1) * x[0])


def box(x: Any) -> Any:
    return jnp.where(jnp.all(jnp.abs(x) < 5), 0.0, -jnp.inf)


def nss(batcher: bk.AbstractBatcher, cost: str) -> Any:
    return bk.rebuild_sampler(blackjax.nss, batcher={"step": batcher})(
        logprior_fn=box,
        loglikelihood_fn=with_cost(cost, gaussian),
        num_inner_steps=10,
        num_delete=TASKS["nss"],
    )


@functools.cache
def nested_state() -> Any:
    """A state after some steps, which make the slices as long as they are in a run."""
    positions = jax.random.uniform(
        jax.random.key(0), (2 * TASKS["nss"], DIM), minval=-5, maxval=5
    )
    # Products change no value, so that one state serves all costs.
    algorithm = nss(bk.Vmap(), "cheap")
    state, step = jax.jit(algorithm.init)(positions), jax.jit(algorithm.step)
    for i in range(6):
        state, _ = step(jax.random.key(i), state)
    return state


def nested(cost: str, batcher: bk.AbstractBatcher) -> tuple[Any, Any]:
    """A step of nss."""
    return nss(batcher, cost).step, (jax.random.key(9), nested_state())


def nuts(
    target: Callable[[Any], Any], cost: str, batcher: bk.AbstractBatcher
) -> tuple[Any, Any]:
    """Ten transitions of NUTS in each task."""
    density = bk.expensive(with_cost(cost, target))

    def task(key: Any, x: Any) -> Any:
        kernel: Any = blackjax.nuts(density, 0.1, jnp.ones(DIM))
        turn = lambda state, key: (kernel.step(key, state)[0], None)
        state, _ = jax.lax.scan(turn, kernel.init(x), jax.random.split(key, 10))
        return state.position

    keys = jax.random.split(jax.random.key(0), TASKS["NUTS"])
    starts = 0.1 * jax.random.normal(jax.random.key(1), (TASKS["NUTS"], DIM))
    return batcher(task), (keys, starts)


SAMPLERS: Final[dict[str, Callable[[str, bk.AbstractBatcher], tuple[Any, Any]]]] = {
    "nss": nested,
    "NUTS": functools.partial(nuts, gaussian),
    "funnel": functools.partial(nuts, funnel),
}


def layouts(sampler: str) -> Iterator[tuple[str, bk.AbstractBatcher]]:
    """Yield the layouts to compare, `jax.vmap` first."""
    yield "vmap", bk.Vmap()
    yield "Chunked(256)", bk.Chunked(256)
    for count in (256, TASKS[sampler]):
        yield f"Continuous({count})", bk.Continuous(count)
    yield "Auto", bk.Auto()


def times(samplers: list[str], repeats: int, end: float) -> None:
    """Print a line for each layout of each case, until the time is up."""
    cases = [(sampler, cost) for cost in COSTS for sampler in samplers]
    if "nss" in samplers:
        nested_state()

    def compiled(case: tuple[str, str, str, bk.AbstractBatcher]) -> Callable[[], Any]:
        sampler, cost, _, batcher = case
        fun, args = SAMPLERS[sampler](cost, batcher)
        return functools.partial(jax.jit(fun).lower(*args).compile(), *args)

    programs = [(*case, *layout) for case in cases for layout in layouts(case[0])]
    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(compiled, programs))
    seconds_of_all = time.perf_counter() - start
    print(f"{len(done)} programs were compiled in {seconds_of_all:.0f} s\n")
    print("| sampler | log-density | layout | ms | times faster |")
    print("|---|---|---|---|---|")
    for case in cases:
        runs = {
            name: run
            for (*at, name, _), run in zip(programs, done, strict=True)
            if tuple(at) == case
        }
        if time.monotonic() > end:
            print(f"no time was left for {case}")
            continue
        once = sum(x for (x,) in interleaved(runs, 1).values())
        rounds = max(3, min(repeats, int(LONGEST / once)))
        seconds = interleaved({**runs, "vmap again": runs["vmap"]}, rounds)
        for name, values in seconds.items():
            pairs = zip(seconds["vmap"], values, strict=True)
            ratio = statistics.median(x / y for x, y in pairs)
            median = 1e3 * statistics.median(values)
            row = f"{' | '.join(case)} | {name} | {median:.2f} | {ratio:.2f}"
            print(f"| {row} |", flush=True)


LENS: Final[dict[str, bk.AbstractBatcher]] = {
    "Vmap()": bk.Vmap(),
    "Chunked(16)": bk.Chunked(16),
    "Continuous(16)": bk.Continuous(16),
    "Continuous(50)": bk.Continuous(50),
    "Sequential()": bk.Sequential(),
}


def lens(phase: str, batcher: bk.AbstractBatcher) -> tuple[Any, Any]:
    """One phase of nss on the likelihood of `memory.py`; needs 64-bit numbers."""
    likelihood = make_loglikelihood(15_361, 1_500)
    layout = {"init": bk.Chunked(16), "step": bk.Vmap(), phase: batcher}
    algorithm = bk.rebuild_sampler(blackjax.nss, batcher=layout)(
        logprior_fn=logprior_fn,
        loglikelihood_fn=likelihood,
        num_inner_steps=5,
        num_delete=NUM_DELETE,
    )
    draw = jax.random.uniform(jax.random.key(0), (N_LIVE, 2), minval=-1, maxval=1)
    if phase == "init":
        return algorithm.init, (draw,)
    return algorithm.step, (jax.random.key(1), jax.jit(algorithm.init)(draw))


def lens_times() -> None:
    """Print seconds of both phases of the lens."""
    print("\n| lens | layout | s | compiles, s |")
    print("|---|---|---|---|")
    for phase in ("init", "step"):
        for name, batcher in LENS.items():
            fun, args = lens(phase, batcher)
            start = time.perf_counter()
            program = jax.jit(fun).lower(*args).compile()
            compiling = time.perf_counter() - start
            run = functools.partial(program, *args)
            jax.block_until_ready(run())
            (values,) = interleaved({name: run}, 2).values()
            shown = " to ".join(f"{x:.3f}" for x in sorted(values))
            print(f"| {phase} | {name} | {shown} | {compiling:.1f} |", flush=True)


def peak(case: list[str], kind: str) -> None:
    """Print the bytes predicted and those at the peak; in a process of its own."""
    sampler, cost, layout = case
    if sampler == "lens":
        fun, args = lens(cost, LENS[layout])
    else:
        fun, args = SAMPLERS[sampler](cost, dict(layouts(sampler))[layout])
    memory = bk.memory(fun, *args)
    described = (
        bk.memory(fun, *args, device=bk.described_device(kind)) if kind else None
    )
    program = jax.jit(fun).lower(*args).compile()
    counters: Any = jax.devices()[0].memory_stats
    before = counters()
    jax.block_until_ready(program(*args))
    found = {
        "predicted": memory.temporary + memory.output,
        "described": described and described.temporary + described.output,
        "compiling": before["peak_bytes_in_use"] - before["bytes_in_use"],
        "peak": counters()["peak_bytes_in_use"] - before["bytes_in_use"],
    }
    print(json.dumps(found))


def peaks(samplers: list[str], kind: str) -> None:
    """Print a line for each of some programs, several processes at a time."""
    cases = [
        (sampler, cost, layout)
        for sampler in samplers
        for cost in ("cheap", "costly")
        for layout in ("vmap", "Continuous(256)")
    ]
    cases += [
        ("lens", phase, name)
        for phase in ("init", "step")
        for name in ("Vmap()", "Chunked(16)", "Continuous(16)")
    ]

    def measured(case: tuple[str, str, str]) -> dict[str, Any]:
        command = [sys.executable, __file__, "--peak", *case, "--described", kind]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"error": done.stderr[-600:]}
        return json.loads(done.stdout.splitlines()[-1])

    print("\n| program | layout | predicted | described | compiling | peak |")
    print("|---|---|---|---|---|---|")
    with ThreadPoolExecutor(4) as pool:
        for case, found in zip(cases, pool.map(measured, cases), strict=True):
            sampler, cost, layout = case
            if "error" in found:
                print(f"{case}: {found['error']}", flush=True)
                continue
            shown = [readable(x) if x else "-" for x in found.values()]
            row = " | ".join([f"{sampler}, {cost}", layout, *shown])
            print(f"| {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["times", "lens", "peaks"])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=4.0, help="for the times")
    parser.add_argument("--described", default="", help="a kind, such as H200")
    parser.add_argument("--peak", nargs=3, help="a sampler, a cost and a layout")
    options = parser.parse_args()
    if options.peak:
        jax.config.update("jax_enable_x64", options.peak[0] == "lens")
        peak(options.peak, options.described)
        return
    end = time.monotonic() + 60 * options.minutes
    print_machine()
    if options.part in (None, "times"):
        times(options.samplers, options.repeats, end)
    if options.part in (None, "lens"):
        jax.config.update("jax_enable_x64", True)
        lens_times()
    if options.part in (None, "peaks"):
        peaks(options.samplers, options.described)


if __name__ == "__main__":
    main()
