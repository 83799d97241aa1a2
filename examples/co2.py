"""Does the season of the atmosphere's CO2 repeat exactly? Two models, two evidences.

The weekly record of Mauna Loa, 1958 to 2001, under two Gaussian processes:

- *rigid*: a smooth trend, a season that repeats exactly, white noise;
- *flexible*: a smooth trend, a season that drifts, irregularities of a few years, white
  noise.

Nested sampling integrates the likelihood of each over its prior, and the ratio of the
two integrals is the Bayes factor. Every likelihood factors a dense covariance matrix,
so memory decides how many can be computed side by side: `bk.Auto` is told a budget and
chooses the layout of `init` and of `step`.

    python examples/co2.py                               # two minutes on two CPU cores
    python examples/co2.py --resolution weekly --memory  # what would be allocated

The models are in `co2_model.py` (GPML there and here: Rasmussen and Williams 2006,
Gaussian Processes for Machine Learning), the figure is in `co2_figure.py`.
"""

import argparse
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast


if __name__ == "__main__":
    # Read when the first BLAS is loaded, hence here. On small matrices its threads only
    # wait for each other: on two busy cores the run took four times as long with them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.ns.utils import finalise, log_weights
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
from jax.scipy.special import logsumexp

import batchkit as bk


class Settings(NamedTuple):
    """What the command line chooses; `num_inner_steps=None` follows the dimension."""

    n_live: int = 64
    num_delete: int = 16
    num_inner_steps: int | None = None
    budget: str = "1 GiB"
    chunk: int | None = None  # instead of a budget: at most so many at a time
    seed: int = 0

    @property
    def batcher(self) -> bk.AbstractBatcher:
        """What lays out the live points."""
        return bk.Auto(self.budget) if self.chunk is None else bk.Chunked(self.chunk)


class Run(NamedTuple):
    """A finished run: every point that died, and its weight in simulated volumes."""

    model: Model
    positions: Parameters
    log_weights: jax.Array
    evaluations: int
    seconds: float


def build(
    model: Model, record: Record, batcher: bk.AbstractBatcher, settings: Settings
) -> blackjax.SamplingAlgorithm:
    """`blackjax.nss` for a model, laid out by `batcher`."""
    lags = Lags.between(record.years, record.years)
    values = jnp.asarray(record.ppm - record.ppm.mean())
    # With too few steps a new point stays close to its start, and evidences of several
    # seeds differ by more than their errors. Twice the dimension is not enough here.
    steps = settings.num_inner_steps or max(5, 4 * len(model.priors))
    nss = bk.rebuild_sampler(blackjax.nss, batcher=batcher)
    return nss(
        logprior_fn=lambda position: log_prior(model, position),
        loglikelihood_fn=lambda position: log_likelihood(model, lags, values, position),
        num_inner_steps=steps,
        num_delete=settings.num_delete,
    )


def sample(model: Model, record: Record, settings: Settings) -> Run:
    """Runs until the live points hold less than a thousandth of the evidence."""
    start = printed = time.perf_counter()
    algorithm = build(model, record, settings.batcher, settings)
    step = jax.jit(algorithm.step)
    key, prior_key, volume_key = jax.random.split(jax.random.key(settings.seed), 3)
    positions = draw_prior(model, prior_key, settings.n_live)
    state = jax.jit(algorithm.init)(positions)
    dead, evaluations, remaining = [], settings.n_live, 1.0
    while remaining > 1e-3:
        key, step_key = jax.random.split(key)
        state, info = step(step_key, state)
        dead.append(info)
        # A slice looks at both ends of its bracket, at each end it moves on to, and at
        # each point it proposes.
        slices = info.update_info
        evaluations += int(jnp.sum(2 + slices.num_expansions + slices.num_shrink))
        # Good enough to know when to stop, but no result: see `log_evidence`.
        rough = state.integrator
        total = jnp.logaddexp(rough.logZ, rough.logZ_live)
        remaining = float(jnp.exp(rough.logZ_live - total))
        now = time.perf_counter()
        if remaining <= 1e-3 or now - printed > 5:
            printed = now
            print(
                f"  {model.name}: iteration {len(dead)}, live points hold "
                f"{remaining:.2g} of the evidence, {evaluations:,} likelihoods, "
                f"{now - start:.0f} s",
                flush=True,
            )
    points = finalise(state, dead, update_info=False)
    # Every column is one possible history of the prior volume (Skilling 2006).
    weights = log_weights(volume_key, points, shape=200)
    seconds = time.perf_counter() - start
    ended = cast(Parameters, points.particles.position)
    return Run(model, ended, weights, evaluations, seconds)


def log_evidence(run: Run) -> tuple[float, float]:
    """The log-evidence and its error: mean and spread over the simulated volumes.

    blackjax's running integrator has no error and is biased where likelihoods tie.
    """
    each = logsumexp(run.log_weights, axis=0)
    return float(jnp.mean(each)), float(jnp.std(each))


def posterior_weights(run: Run) -> np.ndarray:
    """The weight of every dead point in the posterior; they sum to one."""
    return np.asarray(jax.nn.softmax(logsumexp(run.log_weights, axis=1)))


def report(run: Run) -> None:
    """Prints the evidence and the posterior in physical units."""
    weights = posterior_weights(run)
    value, error = log_evidence(run)
    effective = 1 / np.sum(weights**2)
    print(
        f"\n{run.model.name}: log-evidence {value:.2f} +/- {error:.2f}, effective "
        f"sample size {effective:.0f}, {run.evaluations:,} likelihoods, "
        f"{run.seconds:.0f} s"
    )
    header = ("mean", "std", "5 %", "50 %", "95 %")
    print(f"  {'parameter':25}" + "".join(f"{name:>9}" for name in header))
    for name, prior in run.model.priors.items():
        x = np.exp(np.asarray(run.positions[name]))
        mean = weights @ x
        order = np.argsort(x)
        quantiles = np.interp((0.05, 0.5, 0.95), np.cumsum(weights[order]), x[order])
        row = (mean, np.sqrt(weights @ (x - mean) ** 2), *quantiles)
        label = f"{name} ({prior.unit})" if prior.unit else name
        print(f"  {label:25}" + "".join(f"{number:9.3g}" for number in row))


def compare(first: Run, second: Run) -> None:
    """Prints the Bayes factor of `second` against `first`."""
    (low, low_error), (high, high_error) = log_evidence(first), log_evidence(second)
    factor, error = high - low, math.hypot(low_error, high_error)
    print(
        f"\nlog Bayes factor, {second.model.name} against {first.model.name}: "
        f"{factor:.1f} +/- {error:.1f} (odds of 10^{factor / math.log(10):.0f} to 1)"
    )


def forecast(
    run: Run, record: Record, years: np.ndarray, draws: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The posterior predictive in ppm, mean and standard deviation, noise included.

    Each draw's prediction is that of GPML, equations 2.25 and 2.26.
    """
    weights = posterior_weights(run)
    chosen = np.random.default_rng(0).choice(len(weights), draws, p=weights)
    positions = {name: value[chosen] for name, value in run.positions.items()}
    known = Lags.between(record.years, record.years)
    cross = Lags.between(record.years, years)
    values = jnp.asarray(record.ppm - record.ppm.mean())

    # A batcher is a `jax.vmap` for one's own functions too: here one draw at a time.
    @bk.Sequential()
    def predict(position: Parameters) -> tuple[jax.Array, jax.Array]:
        p = jax.tree.map(jnp.exp, position)
        matrix = covariance(run.model, p, known)
        factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
        white = solve_triangular(factor, run.model.kernel(p, cross), lower=True)
        mean = solve_triangular(factor, values, lower=True) @ white
        return mean, matrix[0, 0] - jnp.sum(white**2, axis=0)

    means, variances = map(np.asarray, jax.jit(predict)(positions))
    deviation = np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    return means.mean(axis=0) + record.ppm.mean(), deviation


def draw(record: Record, runs: Sequence[Run], output: Path) -> None:
    """Saves the figure: the forecasts, what each fit leaves over, and the reason."""
    import co2_figure  # Needs matplotlib, which nothing else here does.

    known = len(record.years)
    years = np.arange(record.years[0], record.years[-1] + 12, 1 / 12)
    fits = []
    for run in runs:
        both = np.concatenate([record.years, years])
        mean, deviation = forecast(run, record, both)
        fit = co2_figure.Fit(
            run.model.name,
            log_evidence(run),
            (mean[known:], deviation[known:]),
            record.ppm - mean[:known],
            np.exp(np.asarray(run.positions["trend length"])),
            posterior_weights(run),
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
        algorithm = build(FLEXIBLE, record, batcher, settings)
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
    for name, value in Settings()._asdict().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=str if name == "budget" else int,
            default=value,
            metavar="BYTES" if name == "budget" else "N",
        )
    parser.add_argument("--output", type=Path, default=Path("co2.png"), help="figure")
    parser.add_argument("--memory", action="store_true", help="compile only")
    options = vars(parser.parse_args(arguments))
    record = load(options.pop("resolution"))
    output, only_memory = options.pop("output"), options.pop("memory")
    settings = Settings(**options)
    if only_memory:
        memory(record, settings)
        return
    runs = [sample(model, record, settings) for model in (RIGID, FLEXIBLE)]
    for run in runs:
        report(run)
    compare(*runs)
    draw(record, runs, output)
    print(f"figure: {output}")


if __name__ == "__main__":
    main()
