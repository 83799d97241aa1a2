"""Kernels launched in the loops of a sampler, on a described device.

XLA compiles for a described device on any machine. On a GPU a small kernel costs some
microseconds whatever its size, and a conditional makes the host wait for the device, so
that their numbers are the cost of a turn wherever the log-density is cheap.

It needs the extra `cuda-plans`, and `tpu-plans` for a TPU.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any


# Before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk
from batchkit.explain import Loop


def report(title: str, loops: tuple[Loop, ...]) -> None:
    """Print a line for each loop of a program."""
    for loop in loops:
        print(
            f"| {title} | {loop.launches} | {loop.copies} | {loop.round_trips} "
            f"| {loop.branch_launches} |",
            flush=True,
        )


def nested(batcher: bk.AbstractBatcher) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of nss in 8 dimensions: 128 tasks of 16 inner steps."""
    dim = 8
    sizes = [(64, dim), (64, 64), (dim, 64)]
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=size).astype(np.float32) for size in sizes]

    def loglikelihood(x: Any) -> Any:
        for matrix in matrices:
            x = jnp.tanh(matrix @ x)
        return -0.5 * jnp.sum(x**2)

    algorithm = bk.rebuild_sampler(blackjax.nss, batcher={"step": batcher})(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 5), 0.0, -jnp.inf),
        loglikelihood_fn=loglikelihood,
        num_inner_steps=16,
        num_delete=128,
    )
    positions = jax.ShapeDtypeStruct((256, dim), jnp.float32)
    return algorithm.step, (
        jax.random.key(0),
        jax.eval_shape(algorithm.init, positions),
    )


def nuts(batcher: bk.AbstractBatcher) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Ten transitions of NUTS on a Gaussian in 10 dimensions: 1,024 tasks."""
    scales = np.geomspace(0.1, 10, 10).astype(np.float32)
    logdensity = bk.expensive(lambda x: -0.5 * jnp.sum((x / scales) ** 2))

    def task(key: Any, x: Any) -> Any:
        kernel: Any = blackjax.nuts(logdensity, 0.3, jnp.ones(10))
        turn = lambda state, key: (kernel.step(key, state)[0], None)
        state, _ = jax.lax.scan(turn, kernel.init(x), jax.random.split(key, 10))
        return state.position

    keys = jax.random.split(jax.random.key(0), 1024)
    return batcher(task), (keys, jax.ShapeDtypeStruct((1024, 10), jnp.float32))


PROGRAMS = {
    "nss 8-D, Vmap()": lambda: nested(bk.Vmap()),
    "nss 8-D, Continuous(64)": lambda: nested(bk.Continuous(64)),
    "NUTS 10-D, Vmap()": lambda: nuts(bk.Vmap()),
    "NUTS 10-D, Continuous(256)": lambda: nuts(bk.Continuous(256)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="H100", help="such as A100-80GB, TPU v5e")
    parser.add_argument("--only", default="", help="programs whose name holds this")
    options = parser.parse_args()
    device = bk.described_device(options.device)
    print(f"JAX {jax.__version__}, for a described {device.device_kind}\n")
    print(
        "| a loop of | launches a turn | copies a turn | round trips "
        "| launches in branches |"
    )
    print("|---|---|---|---|---|")
    for title, make in PROGRAMS.items():
        if options.only in title:
            fun, args = make()
            loops = bk.explain(fun, *args, device=device).loops
            report(title, loops)


if __name__ == "__main__":
    main()
