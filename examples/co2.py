"""Does the season of the atmosphere's CO2 repeat exactly? Two models, two evidences.

The weekly record of Mauna Loa, 1958 to 2001, under two Gaussian processes:

- *rigid*: a smooth trend, a season that repeats exactly, white noise;
- *flexible*: a smooth trend, a season that drifts, irregularities of a few years, white
  noise.

Nested sampling integrates the likelihood of each over its prior, and the ratio of the
two integrals is the Bayes factor. Every likelihood factors a dense covariance matrix,
so memory decides how many can be computed side by side: `bk.Auto` is told a budget and
chooses the layout of `init` and of `step`. `bk.run_nested` does the rest. With
`--checkpoint` a run that was killed goes on where it was.

    python examples/co2.py                               # three minutes on two cores
    python examples/co2.py --checkpoint .                # may be killed at any time
    python examples/co2.py --resolution weekly --memory  # what would be allocated

The models are in `co2_model.py` (GPML there and here: Rasmussen and Williams 2006,
Gaussian Processes for Machine Learning), the figure is in `co2_figure.py`.
"""

import argparse
import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


if __name__ == "__main__":
    # Read when the first BLAS is loaded, hence here. On small matrices its threads only
    # wait for each other: on two busy cores the run took four times as long with them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from co2_model import (
    BINS_PER_YEAR,
    FLEXIBLE,
    RIGID,
    TREND_AND_NOISE,
    Lags,
    Model,
    Parameters,
    Record,
    covariance,
    draw_prior,
    load,
    log_likelihood,
    log_prior,
)
from jax.scipy.linalg import solve_triangular

import batchkit as bk
from batchkit.run import Summary


class Settings(NamedTuple):
    """What the command line chooses; `num_inner_steps=None` follows the dimension."""

    n_live: int = 64
    num_delete: int = 16
    num_inner_steps: int | None = None
    budget: str = "1 GiB"
    chunk: int | None = None  # instead of a budget: at most so many at a time
    seed: int = 0
    checkpoint: Path | None = None  # a folder

    @property
    def batcher(self) -> bk.AbstractBatcher:
        """What lays out the live points."""
        return bk.Auto(self.budget) if self.chunk is None else bk.Chunked(self.chunk)


def sample(
    model: Model, record: Record, settings: Settings, progress: bool = False
) -> bk.NestedRun:
    """Runs until the live points hold less than a thousandth of the evidence."""
    key, prior_key = jax.random.split(jax.random.key(settings.seed))
    folder = settings.checkpoint
    return bk.run_nested(
        blackjax.nss,
        rng_key=key,
        positions=draw_prior(model, prior_key, settings.n_live),
        batcher=settings.batcher,
        checkpoint=None if folder is None else folder / f"co2_{model.name}.h5",
        progress=progress,
        **arguments(model, record, settings),
    )


def arguments(model: Model, record: Record, settings: Settings) -> dict[str, Any]:
    """What `blackjax.nss` is called with: the functions of a model, and settings."""
    lags = Lags.between(record.years, record.years)
    values = jnp.asarray(record.ppm - record.ppm.mean())
    # With too few steps a new point stays close to its start, and evidences of several
    # seeds differ by more than their errors. Twice the dimension is not enough here.
    steps = settings.num_inner_steps or max(5, 4 * len(model.priors))
    return {
        "logprior_fn": lambda x: log_prior(model, x),
        "loglikelihood_fn": lambda x: log_likelihood(model, lags, values, x),
        "num_inner_steps": steps,
        "num_delete": settings.num_delete,
    }


def report(model: Model, run: bk.NestedRun) -> None:
    """Prints the run, and the posterior in physical units."""
    units = {name: prior.unit for name, prior in model.priors.items()}
    physical = {
        f"{name} ({units[name]})" if units[name] else name: np.exp(x)
        for name, x in run.dead.positions.items()
    }
    print(f"\n{model.name}\n\n{run}\n\n{Summary(physical, run.weights)}")


def compare(first: bk.NestedRun, second: bk.NestedRun, names: Sequence[str]) -> None:
    """Prints the Bayes factor of `second` against `first`."""
    factor = second.log_evidence - first.log_evidence
    error = math.hypot(first.log_evidence_err, second.log_evidence_err)
    print(
        f"\nlog Bayes factor, {names[1]} against {names[0]}: {factor:.1f} +/- "
        f"{error:.1f} (odds of 10^{factor / math.log(10):.0f} to 1)"
    )


def forecast(
    model: Model, run: bk.NestedRun, record: Record, years: np.ndarray, draws: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The posterior predictive in ppm, mean and standard deviation, noise included.

    Each draw's prediction is that of GPML, equations 2.25 and 2.26.
    """
    positions = run.posterior(jax.random.key(0), draws)
    known = Lags.between(record.years, record.years)
    cross = Lags.between(record.years, years)
    values = jnp.asarray(record.ppm - record.ppm.mean())

    # A batcher is a `jax.vmap` for one's own functions too: here one draw at a time.
    @bk.Sequential()
    def predict(position: Parameters) -> tuple[jax.Array, jax.Array]:
        p = jax.tree.map(jnp.exp, position)
        matrix = covariance(model, p, known)
        factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
        white = solve_triangular(factor, model.kernel(p, cross), lower=True)
        mean = solve_triangular(factor, values, lower=True) @ white
        return mean, matrix[0, 0] - jnp.sum(white**2, axis=0)

    means, variances = map(np.asarray, jax.jit(predict)(positions))
    deviation = np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    return means.mean(axis=0) + record.ppm.mean(), deviation


def draw(
    record: Record, runs: Sequence[tuple[Model, bk.NestedRun]], output: Path
) -> None:
    """Saves the figure: the forecasts, what each fit leaves over, and the reason."""
    import co2_figure  # Needs matplotlib, which nothing else here does.

    known = len(record.years)
    years = np.arange(record.years[0], record.years[-1] + 12, 1 / 12)
    fits = []
    for model, run in runs:
        both = np.concatenate([record.years, years])
        mean, deviation = forecast(model, run, record, both)
        fit = co2_figure.Fit(
            model.name,
            (run.log_evidence, run.log_evidence_err),
            (mean[known:], deviation[known:]),
            record.ppm - mean[:known],
            np.exp(run.dead.positions["trend length"]),
            run.weights,
        )
        fits.append(fit)
    co2_figure.draw(*record, years, fits, TREND_AND_NOISE["trend length"][:2], output)


def readable(count: float) -> str:
    """Bytes with a unit."""
    power = min(int(math.log(max(count, 1), 1024)), 4)
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def free_memory() -> str:
    """What the first device could still allocate, where that can be known."""
    if stats := jax.devices()[0].memory_stats():
        return readable(stats["bytes_limit"] - stats["bytes_in_use"])
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return readable(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def memory(record: Record, settings: Settings) -> None:
    """Prints what XLA would allocate for the flexible model; compiles, runs nothing."""
    points, lanes = len(record.years), (settings.n_live, settings.num_delete)
    print(
        f"{points:,} points: {readable(8 * points**2)} a matrix; "
        f"init maps {lanes[0]} live points, step {lanes[1]}"
    )
    print(f"{'batcher':16}{'phase':7}{'temporary':>12}{'total':>12}")
    key = jax.eval_shape(jax.random.key, 0)
    prior = partial(draw_prior, FLEXIBLE, size=settings.n_live)
    positions = jax.eval_shape(prior, key)
    chosen = f"Auto({settings.budget!r})"
    if settings.chunk is not None:
        chosen = f"Chunked({settings.chunk})"
    for name, batcher in {"Vmap()": bk.Vmap(), chosen: settings.batcher}.items():
        nss = bk.rebuild_sampler(blackjax.nss, batcher=batcher)
        algorithm = nss(**arguments(FLEXIBLE, record, settings))
        state = jax.eval_shape(algorithm.init, positions)
        inits, steps = (algorithm.init, positions), (algorithm.step, key, state)
        for phase, (function, *shapes) in {"init": inits, "step": steps}.items():
            size = jax.jit(function).lower(*shapes).compile().memory_analysis()
            if size is None:
                raise SystemExit("This backend does not say what it allocates.")
            temporary = size.temp_size_in_bytes
            total = temporary + size.argument_size_in_bytes + size.output_size_in_bytes
            row = f"{name:16}{phase:7}{readable(temporary):>12}{readable(total):>12}"
            print(row, flush=True)
    print(f"free: {free_memory()}")


def main(arguments: Sequence[str] | None = None) -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description="The evidence of two models of CO2.")
    parser.add_argument("--resolution", choices=BINS_PER_YEAR, default="quarterly")
    kinds = {"budget": (str, "BYTES"), "checkpoint": (Path, "FOLDER")}
    for name, value in Settings()._asdict().items():
        kind, metavar = kinds.get(name, (int, "N"))
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=value, metavar=metavar)
    parser.add_argument("--output", type=Path, default=Path("co2.png"), help="figure")
    parser.add_argument("--memory", action="store_true", help="compile only")
    options = vars(parser.parse_args(arguments))
    record = load(options.pop("resolution"))
    output, only_memory = options.pop("output"), options.pop("memory")
    settings = Settings(**options)
    if only_memory:
        memory(record, settings)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)
    models = RIGID, FLEXIBLE
    runs = [(model, sample(model, record, settings, True)) for model in models]
    for model, run in runs:
        report(model, run)
    compare(runs[0][1], runs[1][1], [model.name for model in models])
    draw(record, runs, output)
    for model, run in runs:  # how each run went
        bk.plot_run(run).savefig(output.with_stem(f"{output.stem}_{model.name}"))
    print(f"figures: {output} and two of the runs beside it")


if __name__ == "__main__":
    main()
