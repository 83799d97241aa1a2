"""The figures of the first pages: the memory and the time of a step of `blackjax.nss`.

`python benchmarks/gains.py docs/assets` writes `memory.svg`, XLA's temporaries for the
problem of `memory.py`, of which nothing runs, and `time.svg`, measured: a 5-D Gaussian
whose likelihood takes 1 ms, 150 of 300 live points replaced, three inner steps.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import matplotlib as mpl
from _measure import interleaved, print_machine, print_ratios, temporary_bytes
from continuous import DIM, LaxMap, compiled, likelihood, nested_step, sines_for
from matplotlib.figure import Figure
from memory import N_LIVE, NUM_DELETE, logprior_fn, make_loglikelihood

import batchkit as bk


# The same file from the same figures.
mpl.rcParams["svg.hashsalt"] = "batchkit"
UPSTREAM, OURS = "#777777", "#0072b2"


def memory() -> dict[str, float]:
    """Gigabytes of temporaries of `init`, the larger program, in each layout."""
    positions = jax.ShapeDtypeStruct((N_LIVE, 2), jnp.float64)
    found: dict[str, float] = {}
    for name, batcher in {
        "jax.vmap": bk.Vmap(),
        "Chunked(16)": bk.Chunked(16),
        "Chunked(4)": bk.Chunked(4),
    }.items():
        algorithm = bk.rebuild_sampler(blackjax.nss, batcher=batcher)(
            logprior_fn=logprior_fn,
            loglikelihood_fn=make_loglikelihood(15_361, 1_500),
            num_inner_steps=5,
            num_delete=NUM_DELETE,
        )
        found[name] = temporary_bytes(algorithm.init, positions) / 1e9
        print(f"{name:14}{found[name]:6.2f} GB", flush=True)
    return found


def seconds(repeats: int) -> dict[str, list[float]]:
    """Seconds of a step in each layout, measured in turn."""
    num_delete, lanes = 150, 8
    work = likelihood(sines_for(1.0))
    positions = jax.random.uniform(
        jax.random.key(0), (2 * num_delete, DIM), minval=-1.0, maxval=1.0
    )
    algorithm = blackjax.nss(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
        loglikelihood_fn=likelihood(1),
        num_inner_steps=3,
        num_delete=num_delete,
    )
    state = jax.jit(algorithm.init)(positions)
    plain = jax.jit(nested_step(bk.Vmap(), num_delete, likelihood(1)))
    for i in range(4):  # past the first steps, where nearly every point is accepted
        state, _ = plain(jax.random.key(i), state)
    key = jax.random.key(1)
    runs: dict[str, Any] = {}
    for name, batcher in {
        "jax.vmap": bk.Vmap(),
        f"jax.lax.map({lanes})": LaxMap(lanes),
        f"Chunked({lanes})": bk.Chunked(lanes),
        f"Continuous({lanes})": bk.Continuous(lanes),
    }.items():
        program, *_ = compiled(nested_step(batcher, num_delete, work), key, state)
        runs[name] = lambda program=program: program(key, state)
        jax.block_until_ready(runs[name]())
    found = interleaved({**runs, "jax.vmap again": runs["jax.vmap"]}, repeats)
    print_ratios("a step of nss", found, "jax.vmap")
    del found["jax.vmap again"]
    return found


def draw(values: dict[str, float], unit: str, path: Path) -> None:
    figure = Figure(figsize=(5.4, 0.42 * len(values) + 0.8), layout="tight")
    axes = figure.subplots()
    colours = [UPSTREAM if name.startswith("jax") else OURS for name in values]
    bars = axes.barh(list(values), list(values.values()), color=colours)
    words = [f"{x:.3g} {unit.split()[0]}" for x in values.values()]
    axes.bar_label(bars, words, padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=unit, xlim=(0, 1.18 * max(values.values())))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    measured = seconds(options.repeats)
    medians = {name: statistics.median(each) for name, each in measured.items()}
    draw(medians, "s a step", options.folder / "time.svg")
    draw(memory(), "GB of temporary memory", options.folder / "memory.svg")


if __name__ == "__main__":
    main()
