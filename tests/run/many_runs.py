"""Many runs in one process, each with new functions, and the resources they leave.

    python -m tests.run.many_runs COUNT

Each line is a JSON object: the number of runs so far, of memory maps, executables, file
handles, threads, functions that are still alive, and the resident memory.
"""

import gc
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk


FUNCTIONS: list[weakref.ref[Any]] = []


def chains(number: int) -> None:
    def logdensity(x: Any) -> Any:
        return -0.5 * jnp.sum(x**2) * (1 + number)

    def step(key: Any, x: Any) -> Any:
        return 0.1 * jax.random.normal(key, x.shape)

    FUNCTIONS.append(weakref.ref(logdensity))
    bk.run_chains(
        blackjax.additive_step_random_walk,
        logdensity,
        jax.random.key(number),
        np.zeros((2, 1)),
        num_warmup=0,
        num_samples=5,
        progress=False,
        random_step=step,
    )


def nested(number: int) -> None:
    def loglikelihood(x: Any) -> Any:
        return -0.5 * jnp.sum(x**2) * (1 + number)

    FUNCTIONS.append(weakref.ref(loglikelihood))
    bk.run_nested(
        blackjax.nss,
        lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), -jnp.log(2.0), -jnp.inf),
        loglikelihood,
        jax.random.key(number),
        np.linspace(-0.9, 0.9, 10)[:, None],
        num_inner_steps=1,
        num_delete=2,
        stop=bk.MaxSteps(2),
        progress=False,
    )


def shards(number: int) -> None:
    def loglikelihood(x: Any, rows: Any) -> Any:
        return -0.5 * jnp.sum((x - rows) ** 2) * (1 + number)

    FUNCTIONS.append(weakref.ref(loglikelihood))
    bk.run_shards(
        lambda x: -0.5 * x**2,
        loglikelihood,
        np.linspace(-1.0, 1.0, 20),
        jax.random.key(number),
        num_shards=2,
        positions=np.zeros(2),
        num_chains=2,
        plan=bk.SamplingPlan(10, 10, num_chains=2),
        api=blackjax.hmc,
        num_integration_steps=1,
        progress=False,
    )


def left() -> dict[str, int]:
    """Count the resources of the process, after all garbage is collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    client: Any = jax.local_devices()[0].client
    return {
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "executables": len(client.live_executables()),
        "functions": sum(ref() is not None for ref in FUNCTIONS),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "megabytes": pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
    }


def main(count: int) -> None:
    for number in range(count):
        # A run of a random walk compiles in a tenth of the time of others.
        kinds = {5: nested, 15: shards}
        kinds.get(number % 20, chains)(number)
        if number + 1 in (10, 30, 100, 200, count):
            print(json.dumps({"runs": number + 1, **left()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
