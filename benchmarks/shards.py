"""What an effective sample costs: all data at once, on devices, and by shards.

Each way samples the same posterior, of counts in statsmodels' `randhie` (20,190 rows)
or of answers in `fair` (6,366), with NUTS and four chains. Every round runs each way
once, in turn, with a key of its own. Told are medians over rounds: the seconds of
warm-up and draws, tries that failed included; the smallest bulk effective sample size;
the one over the other; its ratio to that of all data within a round, where all data a
second time are the noise; the seconds of compiling, and how far the worst mean lies
from that of all data, in standard deviations.

`--part errors` tells how wrong combining is, before and after draws are moved, against
chains over all data: the worst mean in standard deviations, and the range of the ratios
of standard deviations.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import numpy as np
from _measure import print_machine
from _shards_model import fair, logistic, logprior_fn, poisson, randhie, starts

import batchkit as bk


Row = tuple[float, float, float, float]
AGAIN = "all data, again"


def numbers(samples: Any) -> np.ndarray:
    return np.asarray(samples["slopes"]).reshape(-1, samples["slopes"].shape[-1])


def of_chains(logdensity: Callable[..., Any], first: Any, key: Any) -> Any:
    run = bk.run_chains(
        blackjax.nuts,
        logdensity,
        key,
        first,
        num_warmup=500,
        num_samples=1500,
        progress=False,
    )
    return run, run.seconds.compile, run.seconds.warmup + run.seconds.sampling


def of_shards(
    likelihood: Any, data: Any, first: Any, shards: int, batcher: Any, key: Any
) -> Any:
    run = bk.run_shards(
        logprior_fn,
        likelihood,
        data,
        key,
        first,
        num_shards=shards,
        batcher=batcher,
        progress=False,
    )
    rounds = {x.number: x.seconds for tries in run.tries for x in tries}
    compiling = sum(x.compile for x in rounds.values())
    return run, compiling, sum(x.warmup + x.sampling for x in rounds.values())


def ways(name: str, shards: list[int]) -> dict[str, Callable[[Any], Any]]:
    data = {"randhie": randhie, "fair": fair}[name]()
    likelihood = {"randhie": poisson, "fair": logistic}[name]
    first = starts(data, 4, False)
    print(f"{name}, {len(data['y']):,} rows")
    made: dict[str, Callable[[Any], Any]] = {}
    count = len(jax.devices())
    for called, devices in (
        ("all data", 1),
        (AGAIN, 1),
        (f"exact, {count} devices", count),
    ):
        mesh = jax.make_mesh((devices,), ("rows",), devices=jax.devices()[:devices])
        rows = bk.ShardedData(data, mesh)
        logdensity = bk.sharded_logdensity(logprior_fn, likelihood, rows)
        made[called] = lambda key, f=logdensity: of_chains(f, first, key)
    for number in shards:
        for batcher, called in (
            (bk.Vmap(), "Vmap()"),
            (bk.Chunked(8), "Chunked(8)"),
            (bk.Continuous(8), "Continuous(8)"),
        ):
            made[f"{number} shards, {called}"] = lambda key, s=number, b=batcher: (
                of_shards(likelihood, data, first, s, b, key)
            )
    return made


def one_round(candidates: dict[str, Callable[[Any], Any]], key: Any) -> dict[str, Row]:
    found: dict[str, Row] = {}
    exact: Any = None
    for name, way in candidates.items():
        run, compiling, seconds = way(jax.random.fold_in(key, len(found)))
        x = numbers(run.samples)
        exact = x if exact is None else exact
        ess = float(np.min(run.ess_bulk["slopes"]))
        away = np.abs(np.mean(x, 0) - np.mean(exact, 0)) / np.std(exact, 0)
        found[name] = seconds, ess, compiling, float(np.max(away))
        print(f"    {name}: {seconds:.1f} s, ESS {ess:,.0f}", flush=True)
    return found


def errors(name: str, shards: list[int]) -> None:
    data = {"randhie": randhie, "fair": fair}[name]()
    likelihood = {"randhie": poisson, "fair": logistic}[name]
    first = starts(data, 4, False)
    logdensity = lambda x: logprior_fn(x) + likelihood(x, data)
    exact = numbers(of_chains(logdensity, first, jax.random.key(1))[0].samples)
    mean, width = np.mean(exact, 0), np.std(exact, 0)
    print(f"{name}, {len(data['y']):,} rows")
    print(f"  {'shards':>8}{'combined':>12}{'moved':>12}{'widths':>18}")
    for number in shards:
        run = of_shards(
            likelihood, data, first, number, bk.Chunked(8), jax.random.key(2)
        )[0]
        x = numbers(run.samples)
        away = (np.mean(x, 0) - mean) / width
        shift = run.shift * np.std(x, 0) / width
        ratios = np.std(x, 0) / width
        print(
            f"  {number:8}{np.max(np.abs(away - shift)):12.2f}"
            f"{np.max(np.abs(away)):12.2f}"
            f"{np.min(ratios):10.2f} to {np.max(ratios):.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("costs", "errors"), default="costs")
    parser.add_argument("--data", choices=("randhie", "fair"), default="randhie")
    parser.add_argument("--shards", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--figure", help="where to draw it, such as shards.svg")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    if options.part == "errors":
        errors(options.data, options.shards)
        return
    candidates = ways(options.data, options.shards)
    rounds = [one_round(candidates, jax.random.key(i)) for i in range(options.repeats)]
    head = "seconds", "ESS", "ms / ESS", "ratio", "compile", "worst mean"
    print(f"  {'':26}" + "".join(f"{x:>12}" for x in head))
    costs: dict[str, list[float]] = {}
    for name in candidates:
        rows = [each[name] for each in rounds]
        costs[name] = [1e3 * row[0] / row[1] for row in rows]
        base = [each["all data"] for each in rounds]
        ratios = [
            cost / (1e3 * row[0] / row[1])
            for cost, row in zip(costs[name], base, strict=True)
        ]
        seconds, ess, compiling, away = (
            statistics.median(row[i] for row in rows) for i in range(4)
        )
        print(
            f"  {name:26}{seconds:11.1f}s{ess:12,.0f}"
            f"{statistics.median(costs[name]):12.2f}{statistics.median(ratios):12.2f}"
            f"{compiling:11.1f}s{away:12.2f}",
            flush=True,
        )
    if options.figure:
        draw(costs, options.data, options.figure)


def draw(costs: dict[str, list[float]], data: str, path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "batchkit"
    from matplotlib import pyplot as plt

    named = {name: each for name, each in costs.items() if name != AGAIN}
    middle = [statistics.median(each) for each in named.values()]
    low = [m - min(each) for m, each in zip(middle, named.values(), strict=True)]
    high = [max(each) - m for m, each in zip(middle, named.values(), strict=True)]
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(named) + 1), layout="tight")
    axes.barh(list(named), middle, xerr=[low, high], color="#4c72b0", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds for an effective sample, {data}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    _COUNT = "--xla_force_host_platform_device_count"
    if _COUNT not in os.environ.get("XLA_FLAGS", ""):
        print(f"one device; set XLA_FLAGS={_COUNT}=2 for more")
    main()
