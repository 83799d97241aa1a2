"""What an effective sample costs: all data at once, on devices, and by shards.

Each way samples the same posterior, of counts in statsmodels' `randhie` (20,190 rows)
or of answers in `fair` (6,366), with NUTS and four chains. Told are the seconds of
warm-up and draws, tries that failed included, the smallest bulk effective sample size,
the one over the other, the seconds of compiling, and how far the worst mean lies from
that of all data, in standard deviations.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import numpy as np
from _measure import print_machine
from _shards_model import fair, logistic, logprior_fn, poisson, randhie, starts

import batchkit as bk


KEY = jax.random.key(0)


def numbers(samples: Any) -> np.ndarray:
    return np.asarray(samples["slopes"]).reshape(-1, samples["slopes"].shape[-1])


def of_chains(logdensity: Callable[..., Any], first: Any) -> tuple[Any, float, float]:
    run = bk.run_chains(
        blackjax.nuts, logdensity, KEY, first, num_warmup=500, num_samples=1500
    )
    return run, run.seconds.compile, run.seconds.warmup + run.seconds.sampling


def of_shards(
    likelihood: Any, data: Any, first: Any, shards: int, batcher: Any
) -> tuple[Any, float, float]:
    run = bk.run_shards(
        logprior_fn,
        likelihood,
        data,
        KEY,
        num_shards=shards,
        initial=first,
        batcher=batcher,
    )
    rounds = {x.number: x.seconds for stats in run.stats for x in stats.tries}
    compiling = sum(x.compile for x in rounds.values())
    return run, compiling, sum(x.warmup + x.sampling for x in rounds.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("randhie", "fair"), default="randhie")
    parser.add_argument("--shards", type=int, nargs="+", default=[4, 16])
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    data = {"randhie": randhie, "fair": fair}[options.data]()
    likelihood = {"randhie": poisson, "fair": logistic}[options.data]
    first = starts(data, 4, False)
    count = len(jax.devices())
    on_one = bk.ShardedData(
        data, jax.make_mesh((1,), ("rows",), devices=jax.devices()[:1])
    )
    on_all = bk.ShardedData(data, jax.make_mesh((count,), ("rows",)))
    ways: dict[str, Callable[[], Any]] = {}
    for name, rows in (("all data", on_one), (f"exact, {count} devices", on_all)):
        logdensity = bk.sharded_logdensity(logprior_fn, likelihood, rows)
        ways[name] = lambda logdensity=logdensity: of_chains(logdensity, first)
    for shards in options.shards:
        for batcher, called in (
            (bk.Vmap(), "Vmap()"),
            (bk.Chunked(8), "Chunked(8)"),
            (bk.Continuous(8), "Continuous(8)"),
        ):
            ways[f"{shards} shards, {called}"] = lambda s=shards, b=batcher: of_shards(
                likelihood, data, first, s, b
            )
    print(f"{options.data}, {len(data['y']):,} rows")
    head = "seconds", "ESS", "ms / ESS", "compile", "worst mean"
    print(f"  {'':26}" + "".join(f"{x:>12}" for x in head))
    exact: Any = None
    for name, way in ways.items():
        run, compiling, seconds = way()
        x = numbers(run.samples)
        exact = x if exact is None else exact
        ess = float(np.min(run.ess_bulk["slopes"]))
        away = (np.mean(x, 0) - np.mean(exact, 0)) / np.std(exact, 0)
        print(
            f"  {name:26}{seconds:11.1f}s{ess:12,.0f}{1e3 * seconds / ess:12.2f}"
            f"{compiling:11.1f}s{np.max(np.abs(away)):12.2f}",
            flush=True,
        )


if __name__ == "__main__":
    _COUNT = "--xla_force_host_platform_device_count"
    if _COUNT not in os.environ.get("XLA_FLAGS", ""):
        print(f"one device; set XLA_FLAGS={_COUNT}=2 for more")
    main()
