"""Does `Auto` choose well, does what it chooses fit, and what does choosing cost?

Budgets: the dense inversion of `memory.py` at full size, for budgets of 1, 4 and 16 GB.
`plan` chooses for `init` and `step` as wholes; the table shows XLA's bytes for each
compiled program, and those of the next larger size. Nothing runs. `--device H100` plans
for a device that is not here, and needs the extra `cuda-plans`.

Choices: each problem of `_problems.py` is timed under every batcher of a sweep, side by
side, and under `Auto`. Told is how much slower the chosen layout is than the best, and
how often that is within 10 % and within 2 times. Measured: the same for the layout that
`plan(measure=True)` finds for each.

Lanes: problems of an expensive function, timed with each number of lanes. One is by
`Sequential`, others are by `Continuous`. Told is how much slower the chosen number is
than the best, where operations are counted and where calls are measured.

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
from _problems import PROBLEMS, chains, nested
from continuous import large_program, likelihood, regression
from memory import N_LIVE, NUM_DELETE, logprior_fn, make_loglikelihood
from speed import lens, matrix_chain

import batchkit as bk
from batchkit.auto._auto import _CHOICES
from batchkit.auto._lane_count import lane_counts
from batchkit.auto._phase_program import Measuring, PhaseProgram
from batchkit.explain._explain import format_batcher


def budgets(small: bool, kind: str | None) -> None:
    """`plan` and `Auto` on the dense inversion."""
    pixels, sources = (1_536, 150) if small else (15_361, 1_500)
    loglikelihood_fn = make_loglikelihood(pixels, sources)
    positions = jax.ShapeDtypeStruct((N_LIVE, 2), jnp.float64)
    settings: dict[str, Any] = {
        "logprior_fn": logprior_fn,
        "loglikelihood_fn": loglikelihood_fn,
        "num_inner_steps": 5,
        "num_delete": NUM_DELETE,
    }

    device = bk.described_device(kind) if kind else None
    print(f"dense inversion, {pixels:,} x {sources:,}: whole programs, chosen by plan")
    print(f"  {'budget':>8} {'phase':6}{'batcher':16}{'bytes':>10}   next size")
    for gigabytes in (1, 4, 16):
        budget = gigabytes * (10**7 if small else 10**9)
        start = time.perf_counter()
        plan = bk.plan(blackjax.nss, budget, positions, device=device, **settings)
        seconds = time.perf_counter() - start
        for phase, layout in (("init", plan.init), ("step", plan.step)):
            more = "more at once would not pay"
            if layout.larger is not None:
                more = readable(layout.larger[1])
            name, used = format_batcher(layout.batcher), readable(layout.memory.total)
            row = f"{readable(budget):>8} {phase:6}{name:16}{used:>10}"
            print(f"  {row}   {more}", flush=True)
        print(f"  {'':8} plan took {seconds:.0f} s")
        rows = jnp.zeros((N_LIVE, 2))
        chosen = bk.Auto(budget, device=device).select(loglikelihood_fn, rows)
        print(f"  {'':8} Auto, init's site: {chosen.reason}")
    print()


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


SWEEP: dict[str, bk.AbstractBatcher] = {
    "Vmap()": bk.Vmap(),
    "Sequential()": bk.Sequential(),
    **{f"Chunked({k})": bk.Chunked(k) for k in (4, 16)},
    **{f"Continuous({k})": bk.Continuous(k) for k in (8, 16, 32)},
}
# No problem is timed for much longer, and no run of a round for much less.
LONGEST, SHORTEST = 30.0, 0.05


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every program in each round, in which short ones run several times."""
    once = {name: x for name, (x,) in interleaved(runs, 1).items()}
    turns = {name: 1 + int(SHORTEST / x) for name, x in once.items()}
    rounds = int(LONGEST / sum(x * turns[name] for name, x in once.items()))

    def repeated(name: str) -> None:
        for _ in range(turns[name]):
            jax.block_until_ready(runs[name]())

    again = {name: functools.partial(repeated, name) for name in runs}
    seconds = interleaved(again, max(2, min(repeats, rounds)))
    return {name: [x / turns[name] for x in xs] for name, xs in seconds.items()}


def by_auto(make: Callable[[bk.AbstractBatcher], Any], args: tuple[Any, ...]) -> Any:
    """`Auto`, and what it says when it is traced."""
    _CHOICES.clear()
    jax.jit(make(auto := bk.Auto("4 GB"))).lower(*args)
    return auto, [f"{x.batcher}: {x.reason}" for x in _CHOICES.values()]


def by_plan(make: Callable[[bk.AbstractBatcher], Any], args: tuple[Any, ...]) -> Any:
    """The batcher that `plan(measure=True)` finds, and its reason."""
    start = time.perf_counter()
    options = Measuring(start, max_seconds=300.0, folder=None, progress=False)
    program = PhaseProgram("step", make, args, 4 * 10**9)
    layout = program.fastest(options, lambda: args)
    seconds = time.perf_counter() - start
    return layout.batcher, [f"{layout.reason}; found in {seconds:.0f} s"]


def choices(choose: Callable[..., Any], repeats: int, only: str) -> None:
    """Every problem under every batcher of a sweep, and under the one chosen for it."""
    ratios: list[float] = []
    for title, make in PROBLEMS.items():
        if only not in title:
            continue
        try:
            program, args = make()
        except ModuleNotFoundError as error:
            print(f"{title}: left out, since {error.name} is not installed")
            continue
        batcher, reasons = choose(program, args)
        runs = {}
        for name, layout in {**SWEEP, "chosen": batcher}.items():
            compiled = jax.jit(program(layout)).lower(*args).compile()
            jax.block_until_ready(compiled(*args))
            runs[name] = functools.partial(compiled, *args)
        seconds = timed(runs, repeats)
        medians = {name: statistics.median(x) for name, x in seconds.items()}
        best = min(SWEEP, key=lambda name: medians[name])
        pairs = zip(seconds["chosen"], seconds[best], strict=True)
        ratios.append(statistics.median(a / b for a, b in pairs))
        chosen = format_batcher(batcher)
        print(f"{title}: {chosen} {ratios[-1]:.2f} x the time of {best}")
        print("  " + ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in medians.items()))
        for reason in reasons:
            print(f"  {reason}", flush=True)
    close, fair = (sum(x <= limit for x in ratios) for limit in (1.1, 2.0))
    print(f"\nwithin 10 % of the best: {close} of {len(ratios)}")
    print(f"within 2 times the best: {fair} of {len(ratios)}\n")


def lanes(repeats: int, only: str) -> None:
    """Each number of lanes, and those that `Auto` chooses."""
    found: dict[tuple[str, int], Any] = {}
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
            found[f"nss, {name}", tasks] = nested(work, tasks)
    starts = jnp.ones((64, 10))
    found["NUTS, logistic regression", 64] = chains(regression(), 0.02, starts)
    close = {False: 0, True: 0}
    print("| program | tasks | by lanes, times faster than vmap | counted | measured |")
    print("|---|---|---|---|---|")
    found = {k: v for k, v in found.items() if only in k[0]}
    for (title, tasks), (make, args) in found.items():
        batchers: dict[int, bk.AbstractBatcher] = {0: bk.Vmap(), 1: bk.Sequential()}
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
            count = 1 if chosen == bk.Sequential() else chosen.lanes
            slower = medians[count] / best
            close[measure] += slower <= 1.1
            told.append(f"{count} ({slower:.2f})")
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
    parser.add_argument("--device", help="budgets of a device that is not here: H100")
    parts = ("budgets", "choices", "measured", "lanes", "probing")
    parser.add_argument("--part", choices=parts)
    parser.add_argument(
        "--problem", default="", help="only those with this in the name"
    )
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    if options.part in (None, "budgets"):
        budgets(options.small, options.device)
    if options.part in (None, "probing"):
        probing(options.repeats)
    if options.part in (None, "choices"):
        choices(by_auto, options.repeats, options.problem)
    if options.part in (None, "measured"):
        choices(by_plan, options.repeats, options.problem)
    if options.part in (None, "lanes"):
        lanes(options.repeats, options.problem)


if __name__ == "__main__":
    main()
