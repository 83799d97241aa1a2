"""What rebuilding costs: the time it takes itself, and what it adds to tracing.

Every API of blackjax is rebuilt several times over. The first time also reads the code
of its functions, which is remembered, so it is shown apart. For tracing, some programs
are traced as upstream wrote them and rebuilt, in turn; `again` is the noise.
The programs start afresh each time, so no trace is looked up. Each layout has a process
of its own: Python speeds code up for the names that it has seen in it before, and the
original and its copies are one code with several sets of names.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from _measure import print_machine
from blackjax.smc import resampling

import batchkit as bk


def logdensity(x: Any) -> Any:
    return -0.5 * jnp.sum(x**2) - jnp.sum(jnp.diff(x) ** 2)


POSITIONS = jax.ShapeDtypeStruct((100, 5), jnp.float32)
KEY = jax.eval_shape(lambda: jax.random.key(0))


def nested(api: Any) -> Callable[..., Any]:
    algorithm = api(
        logprior_fn=lambda x: -jnp.sum(x**2),
        loglikelihood_fn=lambda x: logdensity(x),
        num_inner_steps=5,
        num_delete=20,
    )
    return lambda key, x: algorithm.step(key, algorithm.init(x))


def tempered(api: Any) -> Callable[..., Any]:
    algorithm = api(
        lambda x: -jnp.sum(x**2),
        lambda x: logdensity(x),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": jnp.full(1, 0.1),
            "inverse_mass_matrix": jnp.ones((1, 5)),
            "num_integration_steps": jnp.full(1, 5),
        },
        resampling.systematic,
        num_mcmc_steps=3,
    )
    return lambda key, x: algorithm.step(key, algorithm.init(x), 0.5)


def cross_chain(api: Any) -> Callable[..., Any]:
    warmup = api(lambda x: logdensity(x), 100)
    return lambda key, x: warmup.run(key, x, 10)


PROGRAMS: dict[str, tuple[Any, Callable[[Any], Callable[..., Any]]]] = {
    "nss": (blackjax.nss, nested),
    "tempered_smc with hmc": (blackjax.tempered_smc, tempered),
    "meads_adaptation": (blackjax.meads_adaptation, cross_chain),
}


def apis() -> dict[str, Any]:
    """Whatever of blackjax can be rebuilt and called."""
    found: dict[str, Any] = {}
    for name in dir(blackjax):
        api = getattr(blackjax, name)
        if name.startswith("_") or not callable(api) or isinstance(api, type):
            continue
        if not getattr(type(api), "__module__", "").startswith("typing"):
            found[name] = api
    return found


def milliseconds(fun: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fun()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trace", nargs=2, help="a program and a layout: time one")
    options = parser.parse_args()
    if options.trace is not None:
        print(time_a_trace(*options.trace))
        return
    print_machine()

    layouts = {"Chunked(16)": bk.Chunked(16), "a mapping": {"step": bk.Chunked(16)}}
    for title, batcher in layouts.items():
        first: dict[str, float] = {}
        again: dict[str, float] = {}
        for name, api in apis().items():

            def rebuild(api: Any = api, batcher: Any = batcher) -> Any:
                return bk.rebuild_sampler(api, batcher=batcher)

            gc.collect()
            first[name] = milliseconds(rebuild)
            again[name] = statistics.median(milliseconds(rebuild) for _ in range(5))
        for when, times in (("the first time", first), ("again", again)):
            slowest = max(times, key=lambda name: times[name])
            print(
                f"{len(times)} APIs rebuilt with {title}, {when}: "
                f"median {statistics.median(times.values()):.1f} ms, "
                f"slowest {times[slowest]:.1f} ms ({slowest})"
            )
    print()

    print(f"{'tracing':28}{'upstream':>12}{'again':>9}{'Vmap()':>9}{'Chunked(16)':>13}")
    for name in PROGRAMS:
        rounds = [
            [in_a_process(name, layout) for layout in (None, None, *LAYOUTS)]
            for _ in range(options.repeats)
        ]
        ratios = [statistics.median(r[i] / r[0] for r in rounds) for i in range(4)]
        print(
            f"{name:28}{statistics.median(r[0] for r in rounds):9.0f} ms"
            f"{ratios[1]:9.3f}{ratios[2]:9.3f}{ratios[3]:13.3f}",
            flush=True,
        )


LAYOUTS: dict[str, bk.AbstractBatcher] = {
    "Vmap()": bk.Vmap(),
    "Chunked(16)": bk.Chunked(16),
}


def in_a_process(program: str, layout: str | None) -> float:
    """Milliseconds to trace a program, upstream's or rebuilt."""
    command = [sys.executable, __file__, "--trace", program, layout or "upstream"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout)


def time_a_trace(program: str, layout: str) -> float:
    """The median of several traces, in milliseconds."""
    api, make = PROGRAMS[program]
    if layout in LAYOUTS:
        api = bk.rebuild_sampler(api, batcher=LAYOUTS[layout])
    times: list[float] = []
    for _ in range(20):
        fun = make(api)
        jax.clear_caches()
        gc.collect()
        times.append(milliseconds(lambda fun=fun: jax.make_jaxpr(fun)(KEY, POSITIONS)))
    return statistics.median(times[5:])


if __name__ == "__main__":
    main()
