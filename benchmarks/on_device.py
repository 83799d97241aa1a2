"""Layouts on the accelerator that is present: seconds, and bytes at the peak.

For nested slice sampling and NUTS, each with a cheap, a middling and a costly
log-density, `jax.vmap`, `Chunked` and `Continuous` run in turn in every round. Ratios
are taken within a round, and vmap against itself is the noise. The bytes at the peak,
as the device reports them, stand beside those that `batchkit.memory` predicts. A peak
only grows in a process, so each is measured in a process of its own.

It ends by itself after `--minutes`, with the cases that it has measured by then.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved, print_machine, readable

import batchkit as bk


DIM: Final = 10
# Products of a square matrix of this size with a vector, one after the other.
COSTS: Final = {"cheap": (0, 0), "middling": (256, 2), "costly": (1024, 6)}
TASKS: Final = {"nss": 512, "NUTS": 1024}


def logdensity(cost: str) -> Callable[[Any], Any]:
    """A Gaussian with widths from 0.1 to 1, and products that do not matter."""
    size, products = COSTS[cost]
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    scales = np.geomspace(0.1, 1, DIM).astype(np.float32)

    def density(x: Any) -> Any:
        value = -0.5 * jnp.sum((x / scales) ** 2)
        if not products:
            return value
        y = jnp.full(size, x[0])
        for _ in range(products):
            y = jnp.tanh(matrix @ y)
        return value + 1e-20 * jnp.sum(y)

    return density


def nested(cost: str, batcher: bk.AbstractBatcher) -> tuple[Any, Any]:
    """A step of nss, after some that make its slices as long as usual."""
    build = lambda batcher: bk.rebuild_sampler(blackjax.nss, batcher={"step": batcher})(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 5), 0.0, -jnp.inf),
        loglikelihood_fn=logdensity(cost),
        num_inner_steps=10,
        num_delete=TASKS["nss"],
    )
    positions = jax.random.uniform(
        jax.random.key(0), (2 * TASKS["nss"], DIM), minval=-5, maxval=5
    )
    # The state is that of the cheap density, since the others have the same values.
    cheap: Any = bk.rebuild_sampler(blackjax.nss, batcher=bk.Vmap())(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 5), 0.0, -jnp.inf),
        loglikelihood_fn=logdensity("cheap"),
        num_inner_steps=10,
        num_delete=TASKS["nss"],
    )
    state, step = jax.jit(cheap.init)(positions), jax.jit(cheap.step)
    for i in range(6):
        state, _ = step(jax.random.key(i), state)
    return build(batcher).step, (jax.random.key(9), state)


def nuts(cost: str, batcher: bk.AbstractBatcher) -> tuple[Any, Any]:
    """Ten transitions of NUTS in each task."""
    density = bk.expensive(logdensity(cost))

    def task(key: Any, x: Any) -> Any:
        kernel: Any = blackjax.nuts(density, 0.1, jnp.ones(DIM))
        turn = lambda state, key: (kernel.step(key, state)[0], None)
        state, _ = jax.lax.scan(turn, kernel.init(x), jax.random.split(key, 10))
        return state.position

    keys = jax.random.split(jax.random.key(0), TASKS["NUTS"])
    starts = 0.1 * jax.random.normal(jax.random.key(1), (TASKS["NUTS"], DIM))
    return batcher(task), (keys, starts)


SAMPLERS: Final = {"nss": nested, "NUTS": nuts}


def layouts(sampler: str) -> Iterator[tuple[str, bk.AbstractBatcher]]:
    """Yield the layouts to compare, `jax.vmap` first."""
    yield "vmap", bk.Vmap()
    for count in (64, 256, TASKS[sampler]):
        if count < TASKS[sampler]:
            yield f"Chunked({count})", bk.Chunked(count)
        yield f"Continuous({count})", bk.Continuous(count)


def peak(sampler: str, cost: str, layout: str) -> None:
    """Print the bytes predicted and those at the peak; in a process of its own."""
    fun, args = SAMPLERS[sampler](cost, dict(layouts(sampler))[layout])
    program = jax.jit(fun).lower(*args).compile()
    predicted = bk.memory(fun, *args).temporary
    statistics_of = jax.devices()[0].memory_stats
    before = (statistics_of() or {}).get("bytes_in_use", 0)
    jax.block_until_ready(program(*args))
    after = (statistics_of() or {}).get("peak_bytes_in_use", 0)
    print(json.dumps({"predicted": predicted, "peak": after, "before": before}))


def measure(sampler: str, cost: str, repeats: int) -> None:
    """Print a line for each layout."""
    programs: dict[str, Any] = {}
    compile_s: dict[str, float] = {}
    for name, batcher in layouts(sampler):
        fun, args = SAMPLERS[sampler](cost, batcher)
        start = time.perf_counter()
        programs[name] = functools.partial(jax.jit(fun).lower(*args).compile(), *args)
        compile_s[name] = time.perf_counter() - start
        jax.block_until_ready(programs[name]())
    seconds = interleaved({**programs, "vmap again": programs["vmap"]}, repeats)
    for name, values in seconds.items():
        pairs = zip(seconds["vmap"], values, strict=True)
        ratio = statistics.median(x / y for x, y in pairs)
        compiling = compile_s.get(name, 0.0)
        print(
            f"| {sampler} | {cost} | {name} | {1e3 * statistics.median(values):.2f} "
            f"| {ratio:.2f} | {compiling:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--peak", nargs=3, help="a sampler, a cost and a layout")
    options = parser.parse_args()
    if options.peak:
        peak(*options.peak)
        return
    end = time.monotonic() + 60 * options.minutes
    print_machine()
    print("| sampler | log-density | layout | ms | times faster | compiles, s |")
    print("|---|---|---|---|---|---|")
    cases = [(sampler, cost) for cost in COSTS for sampler in SAMPLERS]
    for sampler, cost in cases:
        if time.monotonic() < end:
            measure(sampler, cost, options.repeats)
    print("\n| sampler | log-density | layout | predicted | peak, less inputs |")
    print("|---|---|---|---|---|")
    for sampler, cost in cases:
        for layout in ("vmap", "Continuous(64)"):
            if time.monotonic() > end:
                return
            command = [sys.executable, __file__, "--peak", sampler, cost, layout]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            used = readable(found["peak"] - found["before"])
            print(
                f"| {sampler} | {cost} | {layout} | {readable(found['predicted'])} "
                f"| {used} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
