"""Memory of a gradient: chunking alone can need more than `jax.vmap`; `remat` mends it.

XLA's temporary bytes for the gradient of a sum over 128 tasks, each a small network
applied 20 times. Nothing runs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from _measure import print_machine, readable, temporary_bytes

import batchkit as bk


TASKS, CHUNK, WIDTH, DEPTH = 128, 8, 64, 20


def task(weights: Any, x: Any) -> Any:
    for _ in range(DEPTH):
        x = jnp.tanh(x @ weights)
    return x.sum()


def main() -> None:
    print_machine()
    weights = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((TASKS, WIDTH, WIDTH), jnp.float32)
    print(f"{'batcher':28}{'temporaries of the gradient':>30}{'/ Vmap':>10}")
    base = None
    for name, batcher in {
        "Vmap()": bk.Vmap(),
        f"Chunked({CHUNK})": bk.Chunked(CHUNK),
        f"Chunked({CHUNK}, remat=True)": bk.Chunked(CHUNK, remat=True),
    }.items():

        def total(weights: Any, x: Any, batcher: Any = batcher) -> Any:
            return batcher(task, in_axes=(None, 0))(weights, x).sum()

        size = temporary_bytes(jax.grad(total, argnums=(0, 1)), weights, x)
        base = base or size
        print(f"{name:28}{readable(size):>30}{size / base:10.3f}")


if __name__ == "__main__":
    main()
