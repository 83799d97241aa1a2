"""What rebuilding costs: the time it takes itself, and what it adds to tracing.

Every API of blackjax is rebuilt several times over. The first time also reads the code
of its functions, which is remembered, so it is shown apart. For tracing, some programs
are traced as upstream wrote them and rebuilt, in turn; `upstream again` is the noise.
The programs start afresh in each round, so no trace is looked up.
"""

import argparse
import statistics
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
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print_machine()

    layouts = {"Chunked(16)": bk.Chunked(16), "a mapping": {"step": bk.Chunked(16)}}
    for title, batcher in layouts.items():
        first: dict[str, float] = {}
        again: dict[str, float] = {}
        for name, api in apis().items():

            def rebuild(api: Any = api, batcher: Any = batcher) -> Any:
                return bk.rebuild_sampler(api, batcher=batcher)

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
    for name, (api, program) in PROGRAMS.items():
        rebuilt = {
            batcher: bk.rebuild_sampler(api, batcher=batcher)
            for batcher in (bk.Vmap(), bk.Chunked(16))
        }
        makers = [api, api, *rebuilt.values()]

        def trace(api: Any, program: Any = program) -> float:
            fun = program(api)
            jax.clear_caches()
            return milliseconds(lambda: jax.make_jaxpr(fun)(KEY, POSITIONS))

        rounds = [[trace(api) for api in makers] for _ in range(options.repeats + 1)]
        del rounds[0]
        ratios = [statistics.median(r[i] / r[0] for r in rounds) for i in range(4)]
        print(
            f"{name:28}{statistics.median(r[0] for r in rounds):9.0f} ms"
            f"{ratios[1]:9.3f}{ratios[2]:9.3f}{ratios[3]:13.3f}"
        )


if __name__ == "__main__":
    main()
