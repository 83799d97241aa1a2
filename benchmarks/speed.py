"""Compile and run time beside `jax.vmap` and `jax.lax.map(batch_size=)`, in one run.

150 tasks in chunks of 16, where `lax.map` has a remainder of 6. Two likelihoods: one
whose program is small, where the fixed cost of compiling a loop shows, and one of the
size that analyses have. Compile time includes tracing and lowering. Each round measures
every candidate once, in turn, and the ratios are taken within a round; the ratio of
`jax.vmap` to itself is the noise of the machine.

Linear algebra runs on one thread, for every candidate alike: with several, vectorised
factorisations can deadlock in XLA's CPU backend, whatever the layout.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any


os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved, print_machine, print_ratios

import batchkit as bk


TASKS, CHUNK = 150, 16

GRID = np.stack(np.meshgrid(*[np.linspace(-2.0, 2.0, 64)] * 2))
IMAGE = np.exp(-((np.hypot(*GRID) - 1.0) ** 2) * 8.0)


def matrix_chain(x: Any) -> Any:
    """Six products of dense matrices of 256 by 256."""
    matrix = jnp.cos(np.arange(256.0)[:, None] * np.arange(256.0) * x[0])
    for k in range(6):
        matrix = jnp.tanh(matrix @ matrix * (x[1] / (256.0 + k)))
    return matrix.sum()


def lens(x: Any) -> Any:
    """A gravitational lens: ten masses, ten lensed sources, and an inversion.

    Softened isothermal deflections (Keeton 2001, arXiv:astro-ph/0102341) of elliptical
    Gaussian sources, whose brightnesses are solved for by least squares.
    """
    u, v = GRID
    for k in range(10):
        du, dv = u - 0.1 * k * x[0], v + 0.1 * jnp.sin(k * x[1])
        radius = jnp.sqrt(du**2 + (0.7 + 0.02 * k) * dv**2 + 0.01 * x[0] ** 2)
        angle = jnp.arctan2(dv, du) + 0.1 * x[1] * jnp.log1p(radius)
        bend = x[0] / (10.0 + k) * radius / (radius + 0.1 * x[1])
        u, v = u - bend * jnp.cos(angle), v - bend * jnp.sin(angle)
    profiles = []
    for k in range(10):
        du, dv = u - 0.2 * jnp.cos(k * x[0]), v - 0.2 * jnp.sin(k * x[1])
        shape = du**2 / (1.0 + 0.1 * k) + dv**2 * (1.0 + 0.1 * k) + 0.3 * du * dv
        profiles.append(jnp.exp(-shape * (2.0 + k * x[1])).ravel())
    design = jnp.stack(profiles)
    curvature = design @ design.T + 0.01 * np.eye(10)
    brightness = jnp.linalg.solve(curvature, design @ IMAGE.ravel())
    return -0.5 * jnp.sum(jnp.square(IMAGE.ravel() - brightness @ design))


LIKELIHOODS = {
    "matrix chain": matrix_chain,
    "lens": lens,
}


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
