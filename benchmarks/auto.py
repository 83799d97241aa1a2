"""Does `Auto` choose well, does what it chooses fit, and what does choosing cost?

Budgets: the dense inversion of `memory.py` at full size, for budgets of 1, 4 and 16 GB.
`plan` chooses for `init` and `step` as wholes; the table shows XLA's bytes for each
compiled program, and those of the next larger size. Nothing runs.

Choices: each problem is timed under every batcher of a sweep, side by side, and under
`Auto`. Told is how much slower the chosen layout is than the best, and how often that
is within 10 %.

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


def problems() -> dict[
    str, tuple[Callable[[bk.AbstractBatcher], Any], tuple[Any, ...]]
]:
    """For each problem what makes a function from a batcher, and its arguments."""
    found: dict[str, Any] = {}
    for size in (1, 300, 1_000, 3_000, 10_000, 100_000):
        positions = jax.random.uniform(
            jax.random.key(0), (100, 5), minval=-1.0, maxval=1.0
        )
        algorithm = nested_step(bk.Vmap(), 50, likelihood(1))
        init: Any = blackjax.nss(
            logprior_fn=lambda x: jnp.where(jnp.all(jnp.abs(x) < 1.0), 0.0, -jnp.inf),
            loglikelihood_fn=likelihood(1),
            num_inner_steps=3,
            num_delete=50,
        ).init
        state = jax.jit(init)(positions)
        for i in range(4):
            state, _ = jax.jit(algorithm)(jax.random.key(i), state)
        make = functools.partial(_nested, likelihood(size))
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


def _nested(loglikelihood: Any, batcher: bk.AbstractBatcher) -> Any:
    return nested_step(batcher, 50, loglikelihood)


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
    parser.add_argument("--part", choices=("budgets", "choices", "probing"))
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


if __name__ == "__main__":
    main()
