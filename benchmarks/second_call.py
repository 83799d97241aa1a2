"""The first and the second call of `run_chains`, beside numpyro where it is installed.

    python benchmarks/second_call.py [--repeats 5] [--chains 4 64]

Both libraries run NUTS with Stan's warm-up, 1,000 transitions of it and 1,000 draws, in
one process and in turns. A first call has functions that no call had before; later ones
have another key. Times are medians of wall seconds and of processor seconds, the latter
less disturbed by what else the machine does. Compilations are counted as JAX records
them. numpyro comes with `pip install numpyro`; without it only batchkit is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk


EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)
_rng = np.random.default_rng(0)
ROWS = _rng.normal(size=(500, 10)).astype(np.float32)
LABELS = (_rng.uniform(size=500) < 1 / (1 + np.exp(-ROWS.sum(1) / 3))).astype(int)

_compiled: list[float] = []


class Problem(NamedTuple):
    """A model for both libraries; each call of a function makes it anew."""

    logdensity: Callable[[], Callable[[Any], Any]]
    starts: Callable[[int], Any]  # for a number of chains
    numpyro: Callable[[], Callable[[], None]]


def schools() -> Problem:
    def make() -> Callable[[Any], Any]:
        def logdensity(x: Any) -> Any:
            tau = jnp.exp(x["log_tau"])
            prior = -0.5 * (x["mu"] / 5) ** 2 - 0.5 * jnp.sum(x["z"] ** 2)
            prior += x["log_tau"] - jnp.log1p((tau / 5) ** 2)
            residual = (EFFECTS - x["mu"] - tau * x["z"]) / ERRORS
            return prior - 0.5 * jnp.sum(residual**2)

        return logdensity

    def starts(chains: int) -> Any:
        draw = np.random.default_rng(1).uniform(-2, 2, (chains, 10)).astype(np.float32)
        return {"mu": draw[:, 0], "log_tau": draw[:, 1], "z": draw[:, 2:]}

    def numpyro() -> Callable[[], None]:
        numpyro, dist = map(import_module, ("numpyro", "numpyro.distributions"))

        def model() -> None:
            mu = numpyro.sample("mu", dist.Normal(0, 5))
            tau = numpyro.sample("tau", dist.HalfCauchy(5))
            with numpyro.plate("schools", 8):
                z = numpyro.sample("z", dist.Normal(0, 1))
                numpyro.sample("y", dist.Normal(mu + tau * z, ERRORS), obs=EFFECTS)

        return model

    return Problem(make, starts, numpyro)


def logistic() -> Problem:
    def make() -> Callable[[Any], Any]:
        def logdensity(x: Any) -> Any:
            logits = ROWS @ x
            likelihood = jnp.sum(LABELS * logits - jax.nn.softplus(logits))
            return likelihood - 0.5 * jnp.sum(x**2)

        return logdensity

    def starts(chains: int) -> Any:
        rng = np.random.default_rng(1)
        return rng.uniform(-2, 2, (chains, ROWS.shape[1])).astype(np.float32)

    def numpyro() -> Callable[[], None]:
        numpyro, dist = map(import_module, ("numpyro", "numpyro.distributions"))

        def model() -> None:
            width = ROWS.shape[1]
            x = numpyro.sample("x", dist.Normal(0, 1).expand([width]).to_event(1))
            numpyro.sample("y", dist.Bernoulli(logits=ROWS @ x), obs=LABELS)

        return model

    return Problem(make, starts, numpyro)


def ours(problem: Problem, chains: int) -> Callable[[int], None]:
    logdensity, starts = problem.logdensity(), problem.starts(chains)

    def run(seed: int) -> None:
        key = jax.random.key(seed)
        bk.run_chains(blackjax.nuts, logdensity, key, starts, progress=False)

    return run


def theirs(problem: Problem, chains: int) -> Callable[[int], None]:
    infer = import_module("numpyro.infer")
    sampler = infer.MCMC(
        infer.NUTS(problem.numpyro()),
        num_warmup=1000,
        num_samples=1000,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )

    def run(seed: int) -> None:
        sampler.run(jax.random.key(seed))
        jax.tree.map(np.asarray, sampler.get_samples(group_by_chain=True))

    return run


def timed(run: Callable[[int], None], seed: int) -> tuple[float, float, int]:
    _compiled.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    run(seed)
    return time.perf_counter() - wall, time.process_time() - cpu, len(_compiled)


def _count(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(duration_secs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chains", type=int, nargs="+", default=[4, 64])
    options = parser.parse_args()
    libraries = {"batchkit": ours, "numpyro": theirs}
    if find_spec("numpyro") is None:
        print("numpyro is not installed (`pip install numpyro`): batchkit alone.\n")
        del libraries["numpyro"]
    jax.monitoring.register_event_duration_secs_listener(_count)
    # What is compiled once for a process, such as keys, belongs to no call.
    for make in libraries.values():
        make(logistic(), 2)(0)
    head = "wall s", "CPU s", "compiled"
    print(f"{'':32}{'first call':^27}{'second call':^27}")
    print(f"{'':32}{('{:>9}' * 6).format(*head, *head)}")
    for title, problem in {"schools": schools(), "logistic": logistic()}.items():
        for chains in options.chains:
            found: dict[str, list[Any]] = {name: [] for name in libraries}
            for repeat in range(options.repeats):
                runs = {name: make(problem, chains) for name, make in libraries.items()}
                calls = {name: [timed(run, 2 * repeat)] for name, run in runs.items()}
                for name, run in runs.items():
                    calls[name].append(timed(run, 2 * repeat + 1))
                    found[name].append(calls[name])
            for name, rows in found.items():
                cells = [
                    statistics.median(row[call][column] for row in rows)
                    for call in (0, 1)
                    for column in range(3)
                ]
                label = f"{title}, {chains} chains, {name}"
                print(f"{label:32}{('{:9.2f}{:9.2f}{:9.0f}' * 2).format(*cells)}")


if __name__ == "__main__":
    main()
