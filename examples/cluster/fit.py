"""Fit a sine wave by nested sampling, on a laptop or on the nodes of a cluster.

    python fit.py                      # one process, with all devices of this machine
    sbatch slurm.sh                    # SLURM, one process for each GPU
    sh mpirun.sh -n 8                  # Open MPI, one process for each GPU
    bash ssh.sh node1 node2            # ssh, one process on each host

The program is the same everywhere. Every process runs the whole of it, with the same
keys, data and settings; the first one prints and saves the result. A run that was
stopped goes on from its checkpoint, also with another number of processes.
"""

import argparse
import logging
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk


# The uniform prior of each parameter.
LOW = {"amplitude": 0.0, "frequency": 0.5}
HIGH = {"amplitude": 3.0, "frequency": 2.0}
VOLUME = math.prod(HIGH[name] - LOW[name] for name in LOW)

NOISE = 0.5
TIMES = np.linspace(0.0, 6.0, 40)
VALUES = np.sin(1.2 * TIMES) + NOISE * np.random.default_rng(0).normal(size=40)


def logprior(p: Mapping[str, jax.Array]) -> jax.Array:
    """Return the log-density of the prior."""
    inside = [(p[name] > LOW[name]) & (p[name] < HIGH[name]) for name in LOW]
    return jnp.where(jnp.all(jnp.stack(inside)), -math.log(VOLUME), -jnp.inf)


def loglikelihood(p: Mapping[str, jax.Array]) -> jax.Array:
    """Return the log-likelihood of a sine wave in Gaussian noise."""
    residuals = (VALUES - p["amplitude"] * jnp.sin(p["frequency"] * TIMES)) / NOISE
    norm = len(VALUES) * math.log(NOISE * math.sqrt(2 * math.pi))
    return -0.5 * jnp.sum(residuals**2) - norm


def draw_prior(rng_key: jax.Array, count: int) -> dict[str, jax.Array]:
    """Draw the first live points."""
    return {
        name: jax.random.uniform(key, (count,), minval=LOW[name], maxval=HIGH[name])
        for name, key in zip(LOW, jax.random.split(rng_key, len(LOW)), strict=True)
    }


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Fit a sine wave by nested sampling.")
    parser.add_argument("--checkpoint", default="run.h5", help="where the run is saved")
    parser.add_argument("--result", default="result.h5", help="the result's file")
    parser.add_argument("--live-points", type=int, default=1000)
    parser.add_argument("--replaced", type=int, default=32, help="points in each step")
    # JAX reads these from the environment of SLURM and of Open MPI 4.
    parser.add_argument("--coordinator", help="host:port of the first process")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    return parser.parse_args()


def main() -> None:
    """Run the fit, and print and save its result in the first process."""
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)
    jax.config.update("jax_enable_x64", True)
    bk.connect_processes(options.coordinator, options.processes, options.process)

    # Importing blackjax computes, which JAX must not do before it is connected.
    import blackjax

    rng_key, prior_key = jax.random.split(jax.random.key(0))
    run = bk.run_nested(
        blackjax.nss,
        logprior,
        loglikelihood,
        rng_key,
        draw_prior(prior_key, options.live_points),
        batcher=bk.Sharded(inner=bk.Chunked(16)),
        num_inner_steps=5,
        num_delete=options.replaced,
        checkpoint=options.checkpoint,
    )
    if jax.process_index() == 0:
        print(run)
        run.save(options.result)


if __name__ == "__main__":
    main()
