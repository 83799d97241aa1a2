"""`run_nested`: known evidences, what the loop costs, checkpoints, and a first result.

Evidences: problems whose answer is known, with the deviation in units of the error that
is reported.

Overhead: the seconds of a step in the loop of `run_nested`, with its rule to stop, its
bookkeeping and its points on the host, against the bare jitted step, called from Python
and waited for. Every round makes the same steps in both ways; ratios are taken within a
round, and the bare step against itself is the noise.

Checkpoints: the seconds of one, and the bytes, after many steps.

First result: a run in a process of its own, with JAX's compilation cache empty and then
filled, from the start of Python to the printed evidence.
"""

import argparse
import functools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from _measure import print_machine, readable

import batchkit as bk
from batchkit.nested._nested_programs import NestedPrograms


jax.config.update("jax_enable_x64", True)


class Problem(NamedTuple):
    """A likelihood, the sides of a box with a uniform prior, and the log-evidence."""

    loglikelihood: Callable[[Any], Any]
    dim: int
    low: float
    high: float
    exact: float

    def logprior(self, x: Any) -> Any:
        volume = -self.dim * math.log(self.high - self.low)
        return jnp.where(jnp.all((x > self.low) & (x < self.high)), volume, -jnp.inf)

    def algorithm(self, num_delete: int, steps: int | None = None) -> Any:
        api: Any = blackjax.nss
        return api(
            logprior_fn=self.logprior,
            loglikelihood_fn=self.loglikelihood,
            num_inner_steps=steps or max(5, 2 * self.dim),
            num_delete=num_delete,
        )

    def run(
        self, num_live: int, num_delete: int, seed: int = 0, **options: Any
    ) -> bk.NestedRun:
        return bk.run_nested(
            blackjax.nss,
            self.logprior,
            self.loglikelihood,
            jax.random.key(seed),
            self.positions(num_live, seed),
            num_inner_steps=max(5, 2 * self.dim),
            num_delete=num_delete,
            progress=False,
            **options,
        )

    def positions(self, num_live: int, seed: int = 0) -> jax.Array:
        shape = num_live, self.dim
        key = jax.random.key(1000 + seed)
        return jax.random.uniform(key, shape, minval=self.low, maxval=self.high)


def gaussian(dim: int, correlation: float = 0.0) -> Problem:
    covariance = correlation * np.ones((dim, dim)) + (1 - correlation) * np.eye(dim)
    precision = np.linalg.inv(covariance)
    norm = -0.5 * float(np.linalg.slogdet(2 * math.pi * covariance)[1])
    exact = -dim * math.log(10)
    return Problem(lambda x: norm - 0.5 * x @ precision @ x, dim, -5, 5, exact)


def shells(dim: int, exact: float) -> Problem:
    def shell(x: Any, center: float) -> Any:
        distance = jnp.sqrt((x[0] - center) ** 2 + jnp.sum(x[1:] ** 2))
        return -0.5 * math.log(2 * math.pi * 0.01) - 50 * (distance - 2) ** 2

    def loglikelihood(x: Any) -> Any:
        return jnp.logaddexp(shell(x, 3.5), shell(x, -3.5))

    return Problem(loglikelihood, dim, -6, 6, exact)


def half(whole: Problem) -> Problem:
    def loglikelihood(x: Any) -> Any:
        return jnp.where(x[0] > 0, whole.loglikelihood(x), -jnp.inf)

    return whole._replace(loglikelihood=loglikelihood, exact=whole.exact - math.log(2))


def floor(whole: Problem, lowest: float) -> Problem:
    square = 2 * (-lowest - math.log(2 * math.pi))
    above = 1 - math.exp(-square / 2)
    below = (100 - math.pi * square) * math.exp(lowest)
    return whole._replace(
        loglikelihood=lambda x: jnp.maximum(whole.loglikelihood(x), lowest),
        exact=math.log((above + below) / 100),
    )


PROBLEMS = {
    "Gaussian, 5": (gaussian(5), 500),
    "Gaussian, 10": (gaussian(10), 500),
    "Gaussian, 20": (gaussian(20), 500),
    "correlated 0.9, 5": (gaussian(5, 0.9), 500),
    "correlated 0.9, 10": (gaussian(10, 0.9), 500),
    "correlated 0.9, 20": (gaussian(20, 0.9), 500),
    "eggbox": (
        Problem(
            lambda x: (2 + jnp.cos(x[0] / 2) * jnp.cos(x[1] / 2)) ** 5,
            2,
            0.0,
            10 * math.pi,
            235.856,
        ),
        1000,
    ),
    "shells, 2": (shells(2, -1.746), 500),
    "shells, 5": (shells(5, -5.674), 500),
    "shells, 10": (shells(10, -14.590), 1000),
    "Rosenbrock": (
        Problem(
            lambda x: -((1 - x[0]) ** 2) - 100 * (x[1] - x[0] ** 2) ** 2,
            2,
            -5,
            5,
            -5.804,
        ),
        500,
    ),
    "zero over half": (half(gaussian(2)), 500),
    "plateau below": (floor(gaussian(2), -8.0), 500),
}


def evidences() -> None:
    print("evidences, 50 replaced at once, max(5, 2 dim) inner steps")
    head = (
        "live",
        "exact",
        "found",
        "error",
        "errors off",
        "evaluations",
        "compile",
        "run",
    )
    print(f"{'problem':20}" + "".join(f"{name:>12}" for name in head))
    for name, (problem, num_live) in PROBLEMS.items():
        run = problem.run(num_live, 50)
        off = (run.log_evidence - problem.exact) / run.log_evidence_err
        print(
            f"{name:20}{num_live:12}{problem.exact:12.3f}{run.log_evidence:12.3f}"
            f"{run.log_evidence_err:12.3f}{off:12.2f}{run.num_evaluations:12,}"
            f"{run.seconds.compile:11.1f}s{run.seconds.sampling:11.1f}s",
            flush=True,
        )
    print()


def calibration(seeds: int) -> None:
    problem, off, errors = gaussian(5), [], []
    for seed in range(seeds):
        run = problem.run(200, 20, seed)
        off.append(run.log_evidence - problem.exact)
        errors.append(run.log_evidence_err)
    print(
        f"calibration, 5-D Gaussian, 200 live points, {seeds} seeds: mean deviation "
        f"{np.mean(off):+.3f}, scatter {np.std(off, ddof=1):.3f}, error reported "
        f"{np.mean(errors):.3f}\n"
    )


def overhead(repeats: int, steps: int) -> None:
    print(f"a step in the loop against the bare jitted step, {steps} steps a round")
    print(f"{'replaced':12}{'bare':>12}{'in the loop':>14}{'ratio':>10}{'noise':>10}")
    problem = gaussian(5)
    for num_delete in (1, 50):
        algorithm = problem.algorithm(num_delete)
        key = jax.random.key(0)
        positions = problem.positions(500)
        programs = NestedPrograms(algorithm, key, positions)
        first = programs.init(key, positions)
        rule, step = bk.RemainingEvidence(1e-12), jax.jit(algorithm.step)
        keys = [jax.random.fold_in(key, n) for n in range(steps)]

        def bare(step: Any = step, first: Any = first, keys: Any = keys) -> float:
            state = first.sampler
            start = time.perf_counter()
            for each in keys:
                state, info = step(each, state)
                jax.block_until_ready(info)
            return time.perf_counter() - start

        def looped(
            programs: Any = programs, args: Any = (first, key), rule: Any = rule
        ) -> float:
            limit, seconds = jnp.asarray(steps, jnp.int32), jnp.zeros((), jnp.float32)
            start = time.perf_counter()
            block = programs.block(*args, limit, seconds, rule)
            jax.tree.map(np.asarray, block.dead)
            return time.perf_counter() - start

        for warm_up in (bare, looped):
            warm_up()
        rows = [(bare(), looped(), bare()) for _ in range(repeats)]
        a, b, c = np.array(rows).T
        print(
            f"{num_delete:<12}{1e3 * np.median(a) / steps:10.3f}ms"
            f"{1e3 * np.median(b) / steps:12.3f}ms{np.median(b / a):10.2f}"
            f"{np.median(c / a):10.2f}"
        )
    print()


def checkpoints(folder: Path) -> None:
    from batchkit.run._store import Store

    print("a checkpoint of a 10-D run, 50 replaced at once")
    print(f"{'dead points':14}{'seconds':>10}{'file':>12}{'per dead point':>18}")
    rng = np.random.default_rng(0)
    for points in (10_000, 100_000, 1_000_000):
        arrays = {
            "dead/0": rng.normal(size=(points, 10)),
            **{f"dead/{i}": rng.normal(size=points) for i in (1, 2, 3)},
        }
        path = folder / f"{points}.h5"
        with Store(path) as store:
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                store.write({"step": 1}, arrays)
                seconds.append(time.perf_counter() - start)
        size = path.stat().st_size
        print(
            f"{points:<14,}{np.median(seconds):9.3f}s{readable(size):>12}"
            f"{size / points:14.0f} B"
        )
    print(
        "the interval grows such that a run spends less than 1 % of its time on them\n"
    )


def first_result(folder: Path, repeats: int) -> None:
    print(
        "from the start of Python to an evidence: 5-D Gaussian, 500 live, 50 replaced"
    )
    for name in ("cold", "warm"):
        seconds = []
        for i in range(repeats):
            cache = folder / (f"cold {i}" if name == "cold" else "cold 0")
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, "--part", "one"],
                env={
                    **os.environ,
                    "JAX_COMPILATION_CACHE_DIR": str(cache),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
                check=True,
                capture_output=True,
            )
            seconds.append(time.perf_counter() - start)
        print(
            f"  {name} compilation cache: {np.median(seconds):.1f}s "
            f"({min(seconds):.1f} to {max(seconds):.1f}s)"
        )


def one() -> None:
    print(gaussian(5).run(500, 50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("evidences", "calibration", "overhead", "checkpoints", "first", "one")
    parser.add_argument("--part", choices=parts)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.part == "one":
        one()
        return
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run: dict[str, Callable[[], None]] = {
            "overhead": functools.partial(overhead, options.repeats, 50),
            "checkpoints": functools.partial(checkpoints, folder),
            "first": functools.partial(first_result, folder, min(options.repeats, 3)),
            "calibration": functools.partial(calibration, 20),
            "evidences": evidences,
        }
        for part, measure in run.items():
            if options.part in (None, part):
                measure()


if __name__ == "__main__":
    main()
