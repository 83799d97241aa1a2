"""Chains of NUTS in several layouts: what waiting costs, and what blocks cost.

The warm-up is made once, under `Vmap`, so that all layouts make the same draws from the
same states, with the same step sizes. Every round makes them in every layout; ratios
are taken within a round.

On Neal's funnel (2003, Annals of Statistics 31(3), 705-767) trajectories differ by a
factor of hundreds, on a Gaussian hardly at all. The log-density is made as slow as that
of a small model by a network that hardly counts.
"""

import argparse
import functools
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved, print_machine, print_ratios

import batchkit as bk
from batchkit.chains._chain_programs import Chains, ChainState, all_alike
from batchkit.chains._sampler import draws_segment, sampler_of_api, windows_of


CHAINS, DIM, WIDTH = 32, 10, 200
KEY = jax.random.key(0)
STARTS = 0.1 * jax.random.normal(jax.random.key(1), (CHAINS, DIM))
WEIGHTS = jax.random.normal(jax.random.key(2), (WIDTH, WIDTH)) / WIDTH


def slow(x: Any) -> Any:
    hidden = jnp.zeros(WIDTH).at[:DIM].set(x)
    return 1e-3 * jnp.sum(jnp.tanh(WEIGHTS @ jnp.tanh(WEIGHTS @ hidden)) ** 2)


def funnel(x: Any) -> Any:
    squares = jnp.sum(x[1:] ** 2) * jnp.exp(-x[0])
    return -0.5 * ((x[0] / 3) ** 2 + squares + (DIM - 1) * x[0]) - slow(x)


def gaussian(x: Any) -> Any:
    return -0.5 * jnp.sum((x / jnp.arange(1, 1 + DIM)) ** 2) - slow(x)


LAYOUTS = {
    "Vmap()": (bk.Vmap(), None),
    "Chunked(8)": (bk.Chunked(8), None),
    "Continuous(32)": (bk.Continuous(32), None),
    "Continuous(8)": (bk.Continuous(8), None),
    "Continuous(8), block=32": (bk.Continuous(8), 32),
    "Continuous(8), block=256": (bk.Continuous(8), 256),
}


def draws(chains: Chains, state: ChainState, num_samples: int) -> np.ndarray:
    """The integration steps of all draws, made in blocks."""
    steps: list[np.ndarray] = []
    for first in range(0, num_samples, chains.blocks.most):
        count = min(chains.blocks.most, num_samples - first)
        state, made = chains.advance(state, draws_segment(first, count))
        assert made is not None
        steps.append(made.num_integration_steps)
    return np.concatenate(steps, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draws", type=int, default=256)
    options = parser.parse_args()
    print_machine()
    for logdensity in (funnel, gaussian):
        chains = all_alike(
            lambda fun: sampler_of_api(blackjax.nuts, fun, 0.8, {}),
            logdensity,
            len(STARTS),
        )
        programs = {
            name: Chains(chains, KEY, STARTS, batcher, 1, block)
            for name, (batcher, block) in LAYOUTS.items()
        }
        first = programs["Vmap()"]
        state = first.start()
        for window in windows_of(200):
            state, _ = first.advance(state, window)
        steps = draws(first, state, options.draws)
        candidates = {
            name: functools.partial(draws, chains, state, options.draws)
            for name, chains in programs.items()
        }
        for candidate in candidates.values():
            candidate()  # compiled here
        waits = steps.max(axis=0).sum() / steps.mean(axis=0).sum()
        print(
            f"{CHAINS} chains of {options.draws} draws; {steps.mean():.0f} gradients a "
            f"draw, the longest {steps.max()}; in step {waits:.1f} times as many"
        )
        seconds = interleaved(candidates, options.repeats)
        print_ratios(logdensity.__name__, seconds, "Vmap()")


if __name__ == "__main__":
    main()
