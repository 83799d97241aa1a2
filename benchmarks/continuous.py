"""Continuous batching beside `jax.vmap`, `Chunked` and `jax.lax.map`, in one run.

Under vmap a loop turns until its slowest lane is done. The lock-step ratio says what
that costs: evaluations of the likelihood made over evaluations needed, counted, not
timed. It is what lanes that never wait could gain at most, if evaluations were all that
takes time. The utilisation is needed over made for the lanes of `Continuous`.

Nested slice sampling: one step of `blackjax.nss` on a 5-D Gaussian, with likelihoods
that take about 0.1, 1 and 10 ms each, and with one whose program is large. NUTS: tasks
of ten transitions on Neal's funnel in 10 dimensions, eight schools, and a logistic
regression, whose gradients take microseconds. Every round measures each candidate once,
in turn; ratios are taken within a round, and vmap against itself is the noise.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _measure import bytes_of, interleaved, print_machine, readable

import batchkit as bk
from batchkit.continuous import LaneStats


jax.config.update("jax_enable_x64", True)

DIM = 5


@final
class LaxMap(bk.AbstractBatcher):
    """`jax.lax.map(batch_size=size)` as a batcher."""

    size: int

    def batch(self, call: Any) -> Any:
        task = call.trace(self)
        outs = jax.lax.map(
            lambda row: task.run(*row), list(task.rows), batch_size=self.size
        )
        return task.finish(outs)


class Counter:
    """How often a function is evaluated, for however many lanes at once."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        def count(zero: Any) -> Any:
            self.calls += 1
            return zero

        kind = jax.ShapeDtypeStruct((), x.dtype)
        zero = jax.pure_callback(count, kind, 0.0 * x, vmap_method="broadcast_all")
        return x + zero


def compiled(fun: Callable[..., Any], *args: Any) -> tuple[Any, float, int]:
    """A compiled program, the seconds that took, and its temporary bytes."""
    start = time.perf_counter()
    program = jax.jit(fun).lower(*args).compile()
    seconds = time.perf_counter() - start
    return program, seconds, bytes_of(program)


def compare(
    title: str, candidates: dict[str, Any], args: Any, stats: Any, repeats: int
) -> None:
    """Prints a line for each candidate, with ratios to the first."""
    print(title)
    programs = {name: compiled(jax.jit(fun), *args) for name, fun in candidates.items()}
    base, *_ = candidates
    runs = {name: functools.partial(p[0], *args) for name, p in programs.items()}
    for run in runs.values():
        jax.block_until_ready(run())
    seconds = interleaved({**runs, f"{base} again": runs[base]}, repeats)
    print(f"  {'':22}{'run':>10}{'faster':>9}{'compile':>10}{'temporary':>12}")
    for name, values in seconds.items():
        pairs = zip(seconds[base], values, strict=True)
        ratio = statistics.median(x / y for x, y in pairs)
        _, compile_s, temporary = programs[name.removesuffix(" again")]
        note = stats.get(name, "")
        print(
            f"  {name:22}{statistics.median(values):9.3f}s{ratio:9.2f}"
            f"{compile_s:9.2f}s{readable(temporary):>12}  {note}",
            flush=True,
        )
    print()


# Nested slice sampling


def likelihood(size: int, seen: Any = None) -> Callable[[Any], Any]:
    """A Gaussian of width 0.1, with `size` sines that do not matter."""
    grid = np.linspace(0.0, 1.0, size)

    def loglikelihood(x: Any) -> Any:
        value = -0.5 * jnp.sum(x**2) / 0.01 + 1e-30 * jnp.sum(jnp.sin(grid * x[0]))
        return value if seen is None else seen(value)

    return loglikelihood


def large_program(x: Any) -> Any:
    """The same Gaussian, with light bent by forty masses, which does not matter."""
    u, v = np.stack(np.meshgrid(*[np.linspace(-2.0, 2.0, 32)] * 2))
    for k in range(40):
        du, dv = u - 0.1 * k * x[0], v + 0.1 * jnp.sin(k * x[1])
        radius = jnp.sqrt(du**2 + (0.7 + 0.02 * k) * dv**2 + 0.01 * x[0] ** 2)
        angle = jnp.arctan2(dv, du) + 0.1 * x[1] * jnp.log1p(radius)
        bend = x[0] / (10.0 + k) * radius / (radius + 0.1 * k)
        u, v = u - bend * jnp.cos(angle), v - bend * jnp.sin(angle)
    return -0.5 * jnp.sum(x**2) / 0.01 + 1e-30 * jnp.sum(jnp.tanh(u * v))


def sines_for(milliseconds: float) -> int:
    """How many sines make one of fifty evaluations take so long."""
    size = 20_000
    x = jnp.ones((50, DIM))
    program, *_ = compiled(jax.vmap(likelihood(size)), x)
    seconds = interleaved({"it": lambda: program(x)}, 9)["it"]
    return int(size * milliseconds / (1e3 * statistics.median(seconds) / 50))


def nested_step(
    batcher: bk.AbstractBatcher, num_delete: int, loglikelihood: Any
) -> Callable[..., Any]:
    api = bk.rebuild_sampler(blackjax.nss, batcher={"step": batcher})
    algorithm = api(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
        loglikelihood_fn=bk.expensive(loglikelihood),
        num_inner_steps=3,
        num_delete=num_delete,
    )
    return algorithm.step


def nested(
    title: str, work: Any, num_delete: int, lanes: list[int], repeats: int
) -> None:
    key = jax.random.key(1)
    positions = jax.random.uniform(
        jax.random.key(0), (2 * num_delete, DIM), minval=-1.0, maxval=1.0
    )
    plain = nested_step(bk.Vmap(), num_delete, likelihood(1))
    algorithm = blackjax.nss(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
        loglikelihood_fn=likelihood(1),
        num_inner_steps=3,
        num_delete=num_delete,
    )
    state = jax.jit(algorithm.init)(positions)
    for i in range(4):  # past the first steps, where nearly every point is accepted
        state, _ = jax.jit(plain)(jax.random.key(i), state)
    seen = Counter()
    counted = nested_step(bk.Vmap(), num_delete, likelihood(1, seen))
    jax.block_until_ready(jax.jit(counted)(key, state))
    made = seen.calls * num_delete
    candidates: dict[str, Any] = {"vmap": nested_step(bk.Vmap(), num_delete, work)}
    notes: dict[str, str] = {}
    for k in lanes:
        if k > num_delete:
            continue
        candidates[f"Chunked({k})"] = nested_step(bk.Chunked(k), num_delete, work)
        candidates[f"lax.map({k})"] = nested_step(LaxMap(k), num_delete, work)
        batcher = bk.Continuous(k)
        candidates[f"Continuous({k})"] = nested_step(batcher, num_delete, work)
        stats = stats_of_step(batcher, num_delete, key, state)
        bound = made / int(stats.needed)
        notes[f"Continuous({k})"] = f"utilisation {float(stats.utilisation):.2f}"
        notes["vmap"] = f"lock-step ratio {bound:.2f}"
    title = f"nss, {title}, {num_delete} replaced"
    compare(title, candidates, (key, state), notes, repeats)


class Seen:
    """What a program has passed out by the side."""

    def __init__(self) -> None:
        self.counts: list[tuple[Any, Any]] = []

    def __call__(self, made: Any, needed: Any) -> None:
        self.counts.append((made, needed))


@final
class Counting(bk.AbstractBatcher):
    """A `Continuous` that passes its statistics out."""

    inner: bk.Continuous
    seen: Seen = eqx.field(static=True)

    def batch(self, call: Any) -> Any:
        mapped = self.inner.with_stats(call.fun, call.in_axes, call.out_axes)
        out, stats = mapped(*call.args, **call.kwargs)
        jax.debug.callback(self.seen, *stats)
        return out


def stats_of_step(
    batcher: bk.Continuous, num_delete: int, key: Any, state: Any
) -> LaneStats:
    seen = Seen()
    step = nested_step(Counting(batcher, seen), num_delete, likelihood(1))
    jax.block_until_ready(jax.jit(step)(key, state))
    jax.effects_barrier()
    return LaneStats(*map(jnp.asarray, seen.counts[-1]))


# NUTS


def funnel(x: Any) -> Any:
    """Neal's funnel (Neal 2003, doi:10.1214/aos/1056562461) in ten dimensions."""
    return -0.5 * (x[0] ** 2 / 9.0 + jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) + 9.0 * x[0])


def costly_funnel(x: Any) -> Any:
    """The same, with 2,000 sines that do not matter."""
    return funnel(x) + 1e-30 * jnp.sum(jnp.sin(np.linspace(0.0, 1.0, 2_000) * x[0]))


def eight_schools(x: Any) -> Any:
    """Rubin 1981 (doi:10.3102/10769986006004377), not centred."""
    effect = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mean, scale, offsets = x[0], jnp.exp(x[1]), x[2:]
    residual = (effect - mean - scale * offsets) / error
    prior = jnp.sum(offsets**2) + (mean / 5.0) ** 2 + (scale / 5.0) ** 2 - 2.0 * x[1]
    return -0.5 * (jnp.sum(residual**2) + prior)


def regression(seed: int = 0) -> Callable[[Any], Any]:
    """A logistic regression of 2,000 rows on 10 columns."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2000, 10))
    labels = rng.uniform(size=2000) < 1.0 / (1.0 + np.exp(-rows.sum(1)))
    signs = np.where(labels, 1.0, -1.0)

    def logdensity(x: Any) -> Any:
        return -jnp.sum(jnp.logaddexp(0.0, -signs * (rows @ x))) - 0.5 * jnp.sum(x**2)

    return logdensity


def chain_of(logdensity: Any, step_size: float, steps: int = 10) -> Any:
    def chain(key: Any, x: Any) -> Any:
        algorithm: Any = blackjax.nuts(logdensity, step_size, jnp.ones(x.shape))

        def transition(state: Any, key: Any) -> Any:
            state, info = algorithm.step(key, state)
            taken: Any = info
            return state, (state.position, taken.num_integration_steps)

        keys = jax.random.split(key, steps)
        return jax.lax.scan(transition, algorithm.init(x), keys)[1]

    return chain


def nuts(
    title: str,
    logdensity: Any,
    step_size: float,
    start: Any,
    tasks: int,
    lanes: list[int],
    repeats: int,
) -> None:
    keys = jax.random.split(jax.random.key(0), tasks)
    args = keys, start(jax.random.key(1), tasks)
    seen = Counter()

    @jax.custom_vjp
    def counted(x: Any) -> Any:
        return logdensity(x)

    def forward(x: Any) -> Any:
        value, gradient = jax.value_and_grad(logdensity)(x)
        return seen(value), gradient

    counted.defvjp(forward, lambda gradient, ct: (gradient * ct,))
    out = jax.block_until_ready(jax.jit(jax.vmap(chain_of(counted, step_size)))(*args))
    needed = int(out[1].sum()) + tasks
    notes = {"vmap": f"lock-step ratio {seen.calls * tasks / needed:.2f}"}
    chain = chain_of(bk.expensive(logdensity), step_size)
    candidates: dict[str, Any] = {"vmap": jax.vmap(chain)}
    for k in lanes:
        if k > tasks:
            continue
        candidates[f"Chunked({k})"] = bk.Chunked(k)(chain)
        candidates[f"Continuous({k})"] = bk.Continuous(k)(chain)
        stats = jax.jit(bk.Continuous(k).with_stats(chain))(*args)[1]
        notes[f"Continuous({k})"] = f"utilisation {float(stats.utilisation):.2f}"
    compare(f"NUTS, {title}, {tasks} tasks", candidates, args, notes, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the slow cases as well")
    parser.add_argument("--only", choices=("nss", "nuts"))
    options = parser.parse_args()
    print_machine()
    repeats = options.repeats
    if options.only != "nuts":
        cases = [(0.1, 50), (0.1, 150), (0.1, 500), (1.0, 50), (1.0, 150), (10.0, 50)]
        if options.full:
            cases += [(1.0, 500), (10.0, 150), (10.0, 500)]
        for milliseconds, num_delete in cases:
            size = sines_for(milliseconds)
            title = f"{milliseconds} ms a likelihood ({size} sines)"
            nested(title, likelihood(size), num_delete, [8, 16, 50], repeats)
        nested("a large program", large_program, 64, [8], repeats)
    if options.only != "nss":
        normal = jax.random.normal
        for tasks in (16, 64, 256, 1024):
            nuts(
                "10-D funnel",
                funnel,
                0.1,
                lambda key, n: normal(key, (n, 10)),
                tasks,
                [8, 32],
                repeats,
            )
        if options.full:
            nuts(
                "10-D funnel and 2,000 sines",
                costly_funnel,
                0.1,
                lambda key, n: normal(key, (n, 10)),
                256,
                [8, 32],
                repeats,
            )
        nuts(
            "eight schools",
            eight_schools,
            0.3,
            lambda key, n: normal(key, (n, 10)),
            256,
            [32, 256],
            repeats,
        )
        nuts(
            "logistic regression",
            regression(),
            0.02,
            lambda key, n: 1.0 + 0.02 * normal(key, (n, 10)),
            64,
            [16, 64],
            repeats,
        )


if __name__ == "__main__":
    main()
