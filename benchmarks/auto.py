"""Does `Auto` choose well, does what it chooses fit, and what does choosing cost?

Budgets: the dense inversion of `memory.py` at full size, for budgets of 1, 4 and 16 GB.
`plan` chooses for `init` and `step` as wholes; the table shows XLA's bytes for each
compiled program, and those of the next larger size. Nothing runs.

Choices: each problem is timed under every batcher of a sweep, side by side, and under
`Auto`. Told is how much slower the chosen layout is than the best, and how often that
is within 10 %.

Lanes: problems for which `Auto` takes `Continuous`, timed with each number of lanes.
Told is how much slower the chosen number is than the best, where operations are counted
and where calls are measured.

Probing: seconds that `Auto` spends on choosing, against an ordinary compilation of the
site in the layout that it chooses.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from _measure import interleaved, print_machine, readable
from continuous import (
    chain_of,
    eight_schools,
    funnel,
    large_program,
    likelihood,
    nested_step,
    regression,
)
from memory import N_LIVE, NUM_DELETE, logprior_fn, make_loglikelihood
from speed import lens, matrix_chain

import batchkit as bk
from batchkit.auto._auto import _CHOICES
from batchkit.auto._lane_count import lane_counts


def budgets(small: bool) -> None:
    """`plan` and `Auto` on the dense inversion."""
    pixels, sources = (1_536, 150) if small else (15_361, 1_500)
    loglikelihood_fn = make_loglikelihood(pixels, sources)
    positions = jax.ShapeDtypeStruct((N_LIVE, 2), jnp.float64)
    key = jax.eval_shape(lambda: jax.random.key(0))
    settings: dict[str, Any] = {
        "logprior_fn": logprior_fn,
        "loglikelihood_fn": loglikelihood_fn,
        "num_inner_steps": 5,
        "num_delete": NUM_DELETE,
    }

    def total(phase: str, batcher: bk.AbstractBatcher) -> int:
        policy = bk.ByPhase(**{phase: batcher})
        algorithm = bk.rebuild_sampler(blackjax.nss, batcher=policy)(**settings)
        if phase == "init":
            return bk.memory(algorithm.init, positions).total
        state = jax.eval_shape(algorithm.init, positions)
        return bk.memory(algorithm.step, key, state).total

    print(f"dense inversion, {pixels:,} x {sources:,}: whole programs, chosen by plan")
    print(f"  {'budget':>8} {'phase':6}{'batcher':16}{'bytes':>10}   one lane more")
    for gigabytes in (1, 4, 16):
        budget = gigabytes * (10**7 if small else 10**9)
        start = time.perf_counter()
        plan = bk.plan(blackjax.nss, budget, positions, **settings)
        seconds = time.perf_counter() - start
        for phase in ("init", "step"):
            batcher = getattr(plan, phase)
            name, more = "Vmap()", "all tasks, nothing larger"
            if isinstance(batcher, bk.Chunked):
                name = f"Chunked({batcher.size})"
                more = readable(total(phase, bk.Chunked(batcher.size + 1)))
            if isinstance(batcher, bk.Continuous):
                name = f"Continuous({batcher.lanes})"
                more = readable(total(phase, bk.Continuous(batcher.lanes + 1)))
            used = getattr(plan, f"{phase}_memory").total
            row = f"{readable(budget):>8} {phase:6}{name:16}{readable(used):>10}"
            print(f"  {row}   {more}", flush=True)
        print(f"  {'':8} plan took {seconds:.0f} s")
        rows = jnp.zeros((N_LIVE, 2))
        chosen = bk.Auto(budget).select(loglikelihood_fn, rows)
        print(f"  {'':8} Auto, init's site: {chosen.reason}")
    print()


def nested_state(num_delete: int) -> Any:
    """A state of `nss` past the first steps, where nearly every point is accepted."""
    positions = jax.random.uniform(
        jax.random.key(0), (2 * num_delete, 5), minval=-1.0, maxval=1.0
    )
    step = jax.jit(nested_step(bk.Vmap(), num_delete, likelihood(1)))
    init: Any = blackjax.nss(
        logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
        loglikelihood_fn=likelihood(1),
        num_inner_steps=3,
        num_delete=num_delete,
    ).init
    state = jax.jit(init)(positions)
    for i in range(4):
        state, _ = step(jax.random.key(i), state)
    return state


def products(dtype: Any) -> Callable[[Any], Any]:
    """The Gaussian of `likelihood`, with six products that do not matter."""
    rng = np.random.default_rng(0)
    first = jnp.asarray(rng.normal(size=(400, 5)), dtype)
    matrices = [jnp.asarray(rng.normal(size=(400, 400)) / 20, dtype) for _ in range(6)]

    def loglikelihood(x: Any) -> Any:
        y = first @ x.astype(dtype)
        for matrix in matrices:
            y = jnp.tanh(matrix @ y)
        return -0.5 * jnp.sum(x**2) / 0.01 + 1e-30 * jnp.sum(y).astype(x.dtype)

    return loglikelihood


def problems() -> dict[
    str, tuple[Callable[[bk.AbstractBatcher], Any], tuple[Any, ...]]
]:
    """For each problem what makes a function from a batcher, and its arguments."""
    found: dict[str, Any] = {}
    state = nested_state(50)
    for size in (1, 300, 1_000, 3_000, 10_000, 100_000):
        make = functools.partial(_nested, likelihood(size), 50)
        found[f"nss, {size} sines"] = make, (jax.random.key(1), state)
    normal = jax.random.normal(jax.random.key(1), (256, 10))
    keys = jax.random.split(jax.random.key(0), 256)
    rows = (keys, normal)
    found["NUTS, eight schools"] = functools.partial(_chains, eight_schools, 0.3), rows
    found["NUTS, funnel"] = functools.partial(_chains, funnel, 0.1), rows
    some = (keys[:64], 1.0 + 0.02 * normal[:64])
    found["NUTS, regression"] = functools.partial(_chains, regression(), 0.02), some
    positions = jax.random.uniform(jax.random.key(0), (150, 2))
    found["dense algebra"] = (lambda batcher: batcher(matrix_chain)), (positions,)
    found["lens"] = (lambda batcher: batcher(lens)), (positions,)
    found["a large program"] = (
        (lambda batcher: batcher(large_program)),
        (jnp.ones((64, 5)),),
    )
    return found


def _nested(loglikelihood: Any, num_delete: int, batcher: bk.AbstractBatcher) -> Any:
    return nested_step(batcher, num_delete, loglikelihood)


def _chains(
    logdensity: Any, step_size: float, batcher: bk.AbstractBatcher
) -> Callable[..., Any]:
    return batcher(chain_of(bk.expensive(logdensity), step_size))


def choices(repeats: int, only: str) -> None:
    """Every problem under every batcher of a sweep, and under `Auto`."""
    sweep = [bk.Vmap(), *map(bk.Chunked, (4, 16)), *map(bk.Continuous, (8, 16, 32))]
    names = ["Vmap()", "Chunked(4)", "Chunked(16)"]
    names += [f"Continuous({k})" for k in (8, 16, 32)]
    close = 0
    found = {k: v for k, v in problems().items() if only in k}
    for title, (make, args) in found.items():
        batchers = dict(zip(names, sweep, strict=True)) | {"Auto": bk.Auto("4 GB")}
        _CHOICES.clear()
        runs = {}
        for name, batcher in batchers.items():
            program = jax.jit(make(batcher)).lower(*args).compile()
            jax.block_until_ready(program(*args))
            runs[name] = functools.partial(program, *args)
        seconds = interleaved(runs, repeats)
        (chosen,) = _CHOICES.values() if len(_CHOICES) == 1 else (None,)
        medians = {name: statistics.median(x) for name, x in seconds.items()}
        best = min(names, key=lambda name: medians[name])
        pairs = zip(seconds["Auto"], seconds[best], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        close += ratio <= 1.1
        print(f"{title}: Auto {ratio:.2f} x the time of {best}")
        print("  " + ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in medians.items()))
        if chosen is not None:
            print(f"  {chosen.reason}", flush=True)
    print(f"\nwithin 10 % of the best: {close} of {len(found)}\n")


def lanes(repeats: int, only: str) -> None:
    """Each number of lanes, and those that `Auto` chooses."""
    found: dict[tuple[str, int], Any] = {}
    states = {tasks: nested_state(tasks) for tasks in (50, 128, 256)}
    likelihoods = {
        "3,000 sines": (likelihood(3_000), (50, 256)),
        "10,000 sines": (likelihood(10_000), (50, 256)),
        "100,000 sines": (likelihood(100_000), (50,)),
        "six products in float64": (products(jnp.float64), (128,)),
        "six products in float32": (products(jnp.float32), (128,)),
        "a large program": (large_program, (50,)),
    }
    for name, (work, sizes) in likelihoods.items():
        for tasks in sizes:
            make = functools.partial(_nested, work, tasks)
            found[f"nss, {name}", tasks] = make, (jax.random.key(1), states[tasks])
    rows = jax.random.split(jax.random.key(0), 64), jnp.ones((64, 10))
    make = functools.partial(_chains, regression(), 0.02)
    found["NUTS, logistic regression", 64] = make, rows
    close = {False: 0, True: 0}
    print("| program | tasks | by lanes, times faster than vmap | counted | measured |")
    print("|---|---|---|---|---|")
    found = {k: v for k, v in found.items() if only in k[0]}
    for (title, tasks), (make, args) in found.items():
        batchers: dict[int, bk.AbstractBatcher] = {0: bk.Vmap()}
        batchers |= {k: bk.Continuous(k) for k in lane_counts(tasks)}
        runs = {}
        for count, batcher in batchers.items():
            program = jax.jit(make(batcher)).lower(*args).compile()
            jax.block_until_ready(program(*args))
            runs[count] = functools.partial(program, *args)
        seconds = interleaved({str(k): run for k, run in runs.items()}, repeats)
        medians = {k: statistics.median(seconds[str(k)]) for k in runs}
        vmap = medians.pop(0)
        best = min(medians.values())
        told: list[str] = []
        for measure in (False, True):
            _CHOICES.clear()
            jax.jit(make(bk.Auto("4 GB", measure))).lower(*args)
            (chosen,) = (x.batcher for x in _CHOICES.values())
            slower = medians[chosen.lanes] / best
            close[measure] += slower <= 1.1
            told.append(f"{chosen.lanes} ({slower:.2f})")
        curve = ", ".join(f"{k}: {vmap / x:.2f}" for k, x in medians.items())
        print(f"| {title} | {tasks} | {curve} | {' | '.join(told)} |", flush=True)
    print(
        f"\nwithin 10 % of the best: {close[False]} of {len(found)} counted, "
        f"{close[True]} measured\n"
    )


def probing(repeats: int) -> None:
    """What choosing costs, where something has to be compiled for it."""
    print("choosing, against an ordinary compilation of the site as chosen")
    rows = jnp.ones((150, 5))
    for title, fun in {
        "dense algebra": matrix_chain,
        "lens": lens,
        "a large program": large_program,
    }.items():
        whole = jax.jit(jax.vmap(fun)).lower(rows).compile().memory_analysis()
        assert whole is not None
        auto = bk.Auto(2 * whole.temp_size_in_bytes // 5)
        chosen = auto.select(fun, rows)
        ratios = []
        for _ in range(repeats):
            _CHOICES.clear()
            jax.clear_caches()
            start = time.perf_counter()
            auto.select(fun, rows)
            middle = time.perf_counter()
            jax.jit(chosen.batcher(fun)).lower(rows).compile()
            ratios.append((middle - start) / (time.perf_counter() - middle))
        print(
            f"  {title:18} {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f}): {chosen.reason}",
            flush=True,
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a hundredth of the size")
    parser.add_argument("--part", choices=("budgets", "choices", "lanes", "probing"))
    parser.add_argument(
        "--problem", default="", help="only those with this in the name"
    )
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    if options.part in (None, "budgets"):
        budgets(options.small)
    if options.part in (None, "probing"):
        probing(options.repeats)
    if options.part in (None, "choices"):
        choices(options.repeats, options.problem)
    if options.part in (None, "lanes"):
        lanes(options.repeats, options.problem)


if __name__ == "__main__":
    main()
