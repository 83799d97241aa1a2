"""Memory at both seams of `blackjax.nss`, at the size that started this project.

Every live point of a gravitational lens model builds a dense matrix of 15,361 image
pixels by 1,500 source pixels in float64, 184 MB, and inverts it. The table shows the
temporary bytes that XLA would allocate for `init` (150 live points) and `step` (50
replacements); nothing of that runs. Then `init` in chunks of 16 really runs, and the
peak of resident memory is printed. `--small` does everything at a hundredth of the
size, `--no-run` prints the table only. `--device A100-80GB H100 H200` prints it for
GPUs that are not here, and needs the extra `cuda-plans`.
"""

import argparse
import os
import resource
import time
from typing import Any


os.environ.setdefault("JAX_PLATFORMS", "cpu")

import blackjax
import jax
import jax.numpy as jnp
from _measure import print_machine, readable, temporary_bytes

import batchkit as bk
from batchkit.devices._target import memory_of_device


N_LIVE, NUM_DELETE = 150, 50


def make_loglikelihood(pixels: int, sources: int) -> Any:
    """The evidence of a linear source, given the parameters of the lens.

    With the mapping matrix M, data d of unit noise and a source prior of unit variance
    the source integrates out to -(d.d - b.F^-1 b + log det F) / 2, F = M^T M + I and
    b = M^T d: a Gaussian integral (Warren and Dye 2003, ApJ 590, 673).
    """
    image = jnp.linspace(-1.0, 1.0, pixels)
    source = jnp.linspace(-1.0, 1.0, sources)
    data = jnp.sin(3.0 * image)

    def loglikelihood_fn(x: Any) -> Any:
        shift, width = x[0], 0.1 + jnp.abs(x[1])
        deflected = image - shift * jnp.tanh(image / width)
        mapping = jnp.exp(-jnp.square((deflected[:, None] - source) * 50.0))
        curvature = mapping.T @ mapping + jnp.eye(sources)
        b = mapping.T @ data
        factor = jnp.linalg.cholesky(curvature)
        z = jax.scipy.linalg.solve_triangular(factor, b, lower=True)
        log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        return -0.5 * (data @ data - z @ z + log_det)

    return loglikelihood_fn


def logprior_fn(x: Any) -> Any:
    return jnp.where(jnp.all(jnp.abs(x) < 1.0), -2.0 * jnp.log(2.0), -jnp.inf)


def described(build: Any, positions: Any, key: Any, kinds: list[str]) -> None:
    """Temporaries on devices that are described, and their share of the memory."""
    layouts = {
        "`Vmap()`": bk.Vmap(),
        "`Chunked(16)`": bk.Chunked(16),
        "`Chunked(16)`, `Continuous(16)`": bk.ByPhase(
            init=bk.Chunked(16), step=bk.Continuous(16)
        ),
    }
    print("| device | layout | `init` | `step` | of its memory | compiled in |")
    print("|---|---|---|---|---|---|")
    for kind in kinds:
        device = bk.described_device(kind)
        memory = memory_of_device(device)
        assert memory is not None, "the table of hardware has it"
        for name, batcher in layouts.items():
            start = time.perf_counter()
            algorithm = build(batcher)
            state = jax.eval_shape(algorithm.init, positions)
            init = bk.memory(algorithm.init, positions, device=device)
            step = bk.memory(algorithm.step, key, state, device=device)
            seconds = time.perf_counter() - start
            share = max(init.total, step.total) / memory
            print(
                f"| {kind} | {name} | {readable(init.temporary)} "
                f"| {readable(step.temporary)} | {share:.0%} | {seconds:.0f} s |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--device", nargs="+", default=[], help="kinds of devices")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()

    pixels, sources = (1_536, 150) if options.small else (15_361, 1_500)
    loglikelihood_fn = make_loglikelihood(pixels, sources)
    positions = jax.ShapeDtypeStruct((N_LIVE, 2), jnp.float64)
    key = jax.eval_shape(lambda: jax.random.key(0))
    one_lane = temporary_bytes(
        loglikelihood_fn, jax.ShapeDtypeStruct((2,), jnp.float64)
    )
    print(f"matrix of one live point: {readable(8 * pixels * sources)}")
    print(f"one lane's worth of temporaries: {readable(one_lane)}\n")

    def build(batcher: bk.AbstractBatcher) -> Any:
        nss = bk.rebuild_sampler(blackjax.nss, batcher=batcher)
        return nss(
            logprior_fn=logprior_fn,
            loglikelihood_fn=loglikelihood_fn,
            num_inner_steps=5,
            num_delete=NUM_DELETE,
        )

    if options.device:
        described(build, positions, key, options.device)
        return
    head = f"{'batcher':14}{'init':>12}{'lanes worth':>13}{'step':>12}{'/ Vmap':>8}"
    print(head)
    full_step = None
    for name, batcher in {
        "Vmap()": bk.Vmap(),
        "Chunked(16)": bk.Chunked(16),
        "Chunked(4)": bk.Chunked(4),
    }.items():
        algorithm = build(batcher)
        state = jax.eval_shape(algorithm.init, positions)
        init = temporary_bytes(algorithm.init, positions)
        step = temporary_bytes(algorithm.step, key, state)
        full_step = full_step or step
        print(
            f"{name:14}{readable(init):>12}{init / one_lane:13.2f}"
            f"{readable(step):>12}{step / full_step:8.3f}",
            flush=True,
        )

    def lax_map(positions: Any) -> Any:
        return jax.lax.map(loglikelihood_fn, positions, batch_size=16)

    mapped = temporary_bytes(lax_map, positions)
    print(f"{'lax.map(16)':14}{readable(mapped):>12}{mapped / one_lane:13.2f}")
    print(f"\n1.15 x 16 lanes: {1.15 * 16:.2f};  1.15 x 16/50: {1.15 * 16 / 50:.3f}\n")

    if options.no_run:
        return
    draw = jax.random.uniform(jax.random.key(0), (N_LIVE, 2), minval=-1, maxval=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    state = jax.block_until_ready(jax.jit(build(bk.Chunked(16)).init)(draw))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    finite = int(jnp.isfinite(state.particles.loglikelihood).sum())
    print(f"init with Chunked(16) ran in {seconds:.0f} s: {finite} finite likelihoods")
    print(f"peak resident memory: {readable(peak)} ({readable(before)} before it ran)")


if __name__ == "__main__":
    main()
