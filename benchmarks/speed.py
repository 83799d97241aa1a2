"""Compile and run time beside `jax.vmap` and `jax.lax.map(batch_size=)`, in one run.

150 tasks in chunks of 16, where `lax.map` has a remainder of 6, with a likelihood of a
few milliseconds: a Gaussian process on 160 points and a chain of small matrix
products. Compile time includes tracing and lowering.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _measure import interleaved, print_machine, print_ratios

import batchkit as bk


TASKS, CHUNK = 150, 16


def gaussian_process(x: Any) -> Any:
    """The log-likelihood of a Gaussian process (Rasmussen and Williams 2006, 2.30)."""
    time = jnp.linspace(0.0, 10.0, 160)
    data = jnp.sin(time)
    lag = time[:, None] - time
    covariance = jnp.exp(x[0] - 0.5 * jnp.square(lag * x[1])) + jnp.eye(160)
    factor = jnp.linalg.cholesky(covariance)
    z = jax.scipy.linalg.solve_triangular(factor, data, lower=True)
    return -0.5 * z @ z - jnp.sum(jnp.log(jnp.diagonal(factor)))


def matrix_chain(x: Any) -> Any:
    """Six products of dense matrices of 256 by 256."""
    matrix = jnp.cos(jnp.arange(256.0)[:, None] * jnp.arange(256.0) * x[0])
    for k in range(6):
        matrix = jnp.tanh(matrix @ matrix * (x[1] / (256.0 + k)))
    return matrix.sum()


LIKELIHOODS = {"Gaussian process": gaussian_process, "matrix chain": matrix_chain}


def layouts(likelihood: Any) -> dict[str, Callable[..., Any]]:
    return {
        "jax.vmap": jax.vmap(likelihood),
        "Chunked(16)": bk.Chunked(CHUNK)(likelihood),
        "lax.map(16)": lambda x: jax.lax.map(likelihood, x, batch_size=CHUNK),
        "jax.vmap again": jax.vmap(likelihood),  # its ratio is the machine's noise
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    x = jax.random.uniform(jax.random.key(0), (TASKS, 2), minval=0.5, maxval=1.5)

    for name, likelihood in LIKELIHOODS.items():

        def compiling(layout: str, likelihood: Any = likelihood) -> Callable[[], Any]:
            def compile_afresh() -> None:
                jax.clear_caches()
                # A new function, since JAX remembers what it has compiled.
                jax.jit(layouts(lambda x: likelihood(x))[layout]).lower(x).compile()

            return compile_afresh

        names = list(layouts(likelihood))
        interleaved({layout: compiling(layout) for layout in names}, 1)
        seconds = interleaved(
            {layout: compiling(layout) for layout in names}, options.repeats
        )
        print_ratios(f"{name}: compile", seconds, "jax.vmap")

        compiled = {
            layout: jax.jit(function).lower(x).compile()
            for layout, function in layouts(likelihood).items()
        }
        running = {
            layout: (lambda program=program: program(x))
            for layout, program in compiled.items()
        }
        interleaved(running, 2)
        seconds = interleaved(running, 3 * options.repeats)
        print_ratios(f"{name}: run {TASKS} tasks", seconds, "jax.vmap")


if __name__ == "__main__":
    main()
