"""The two models of `co2.py`: the record, the kernels, the priors and the likelihood.

A Gaussian process with a dense covariance matrix. Nothing here knows how it is sampled.
Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, is cited as GPML;
its section 5.4.3 fits a model much like the flexible one to a later version of this
record.
"""

import calendar
import csv
import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular


DATA = Path(__file__).parent / "data" / "co2.csv"
BINS_PER_YEAR = {"quarterly": 4, "monthly": 12, "weekly": None}

# Variance in ppm^2 that keeps the Cholesky factor alive where the noise is tiny: far
# below the 0.1 ppm to which the record is rounded.
JITTER = 1e-6

Parameters = dict[str, jax.Array]


class Record(NamedTuple):
    """Times in decimal years, and CO2 in parts per million (ppm)."""

    years: np.ndarray
    ppm: np.ndarray


def load(resolution: str = "quarterly") -> Record:
    """Reads the record and averages it; weeks without a value are left out."""
    with DATA.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["co2"]]
    days = [datetime.date.fromisoformat(row["date"]) for row in rows]
    years = np.array(
        [
            d.year + (d.timetuple().tm_yday - 0.5) / (365 + calendar.isleap(d.year))
            for d in days
        ]
    )
    ppm = np.array([float(row["co2"]) for row in rows])
    bins = BINS_PER_YEAR[resolution]
    if bins is None:
        return Record(years, ppm)
    _, index = np.unique(np.floor(years * bins), return_inverse=True)
    count = np.bincount(index)
    return Record(np.bincount(index, years) / count, np.bincount(index, ppm) / count)


class LogNormal(NamedTuple):
    """A prior: 68 % lie between `median / factor` and `median * factor`."""

    median: float
    factor: float
    unit: str


class Lags(NamedTuple):
    """What a kernel needs of each pair of times. No parameter enters: computed once."""

    squared: jax.Array
    season: jax.Array

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray) -> "Lags":
        lag = first[:, None] - second[None, :]
        return cls(jnp.asarray(lag**2), jnp.asarray(np.sin(np.pi * lag) ** 2))


def trend(p: Parameters, lags: Lags) -> jax.Array:
    """The squared exponential (GPML, equation 5.15)."""
    return p["trend size"] ** 2 * jnp.exp(-lags.squared / (2 * p["trend length"] ** 2))


def periodic(p: Parameters, lags: Lags) -> jax.Array:
    """A season of one year that repeats exactly (MacKay 1998; GPML, equation 4.31)."""
    return p["season size"] ** 2 * jnp.exp(
        -2 * lags.season / p["season smoothness"] ** 2
    )


def drifting(p: Parameters, lags: Lags) -> jax.Array:
    """A season that drifts away from what it was (GPML, equation 5.16)."""
    decay = jnp.exp(-lags.squared / (2 * p["season memory"] ** 2))
    return periodic(p, lags) * decay


def irregular(p: Parameters, lags: Lags) -> jax.Array:
    """The rational quadratic: a mixture of length scales (GPML, equation 5.17)."""
    shape = p["irregularity shape"]
    scaled = lags.squared / (2 * shape * p["irregularity length"] ** 2)
    return p["irregularity size"] ** 2 * jnp.exp(-shape * jnp.log1p(scaled))


class Model(NamedTuple):
    """A Gaussian process: its priors, and the covariance of its noise-free part."""

    name: str
    priors: dict[str, LogNormal]
    kernel: Callable[[Parameters, Lags], jax.Array]


# Round and wide: a trend of decades, a season of a few ppm, irregularities of months to
# years, and instruments that are good to a fraction of a ppm.
TREND_AND_NOISE = {
    "trend size": LogNormal(40, 3, "ppm"),
    "trend length": LogNormal(40, 3, "yr"),
    "noise size": LogNormal(0.3, 3, "ppm"),
}
SEASON = {
    "season size": LogNormal(3, 3, "ppm"),
    "season smoothness": LogNormal(1, 2, ""),
}
RIGID = Model(
    "rigid",
    TREND_AND_NOISE | SEASON,
    lambda p, lags: trend(p, lags) + periodic(p, lags),
)
FLEXIBLE = Model(
    "flexible",
    TREND_AND_NOISE
    | SEASON
    | {
        "season memory": LogNormal(50, 3, "yr"),
        "irregularity size": LogNormal(0.5, 3, "ppm"),
        "irregularity length": LogNormal(1, 3, "yr"),
        "irregularity shape": LogNormal(1, 2, ""),
    },
    lambda p, lags: trend(p, lags) + drifting(p, lags) + irregular(p, lags),
)


def draw_prior(model: Model, key: jax.Array, size: int) -> Parameters:
    """Positions of the sampler: the logarithm of each parameter, normal a priori."""
    keys = jax.random.split(key, len(model.priors))
    return {
        name: math.log(prior.median)
        + math.log(prior.factor) * jax.random.normal(key, (size,))
        for key, (name, prior) in zip(keys, model.priors.items(), strict=True)
    }


def log_prior(model: Model, position: Parameters) -> jax.Array:
    """The normal density of the logarithms."""
    densities = [
        jax.scipy.stats.norm.logpdf(
            position[name], math.log(prior.median), math.log(prior.factor)
        )
        for name, prior in model.priors.items()
    ]
    return jnp.sum(jnp.stack(densities))


def covariance(model: Model, p: Parameters, lags: Lags) -> jax.Array:
    """The covariance of the data: the kernel's, and white noise on the diagonal."""
    noise = p["noise size"] ** 2 + JITTER
    return model.kernel(p, lags) + noise * jnp.eye(len(lags.squared))


def normal_logpdf(matrix: jax.Array, values: jax.Array) -> jax.Array:
    """The log-density of `values` under N(0, `matrix`) (GPML, algorithm 2.1)."""
    factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    white = solve_triangular(factor, values, lower=True)
    return (
        -0.5 * jnp.sum(white**2)
        - jnp.sum(jnp.log(jnp.diagonal(factor)))
        - 0.5 * len(values) * math.log(2 * math.pi)
    )


def log_likelihood(
    model: Model, lags: Lags, values: jax.Array, position: Parameters
) -> jax.Array:
    """The log-likelihood at one position; -inf where the covariance cannot be factored.

    NaN would never compare as worse than anything, and the sampler would never end.
    """
    matrix = covariance(model, jax.tree.map(jnp.exp, position), lags)
    # On a CPU a batch of factorisations gains nothing, and several at once can lock up
    # XLA's thread pool (see the page of this example): one lane after the other there.
    value = jax.lax.platform_dependent(
        matrix,
        values,
        cpu=jax.custom_batching.sequential_vmap(normal_logpdf),
        default=normal_logpdf,
    )
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)
