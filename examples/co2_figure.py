"""The figure of `co2.py`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes


matplotlib.use("Agg")  # Needs no display.
import matplotlib.pyplot as plt


COLOURS = ("#d55e00", "#0072b2")


class Fit(NamedTuple):
    """What the figure shows of one model."""

    name: str
    log_evidence: tuple[float, float]
    forecast: tuple[np.ndarray, np.ndarray]
    residual: np.ndarray
    trend_length: np.ndarray
    weights: np.ndarray


def draw(
    known_years: np.ndarray,
    ppm: np.ndarray,
    years: np.ndarray,
    fits: Sequence[Fit],
    prior: tuple[float, float],
    output: Path,
) -> None:
    """Saves three panels: the forecasts, the residuals, the length of the trend.

    **Arguments:**

    - `known_years`, `ppm`: the record.
    - `years`: where the forecasts are given.
    - `fits`: one for each model.
    - `prior`: median and factor of the trend length's log-normal prior.
    - `output`: where the figure goes; its suffix says which format.
    """
    figure, axes = plt.subplot_mosaic(
        [["record", "record"], ["residual", "length"]],
        figsize=(10, 7.5),
        layout="constrained",
        height_ratios=(3, 2),
        width_ratios=(3, 2),
    )
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    _record(axes["record"], known_years, ppm, years, fits)
    _residual(axes["residual"], known_years, fits)
    _length(axes["length"], fits, prior)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _record(
    axis: Axes,
    known_years: np.ndarray,
    ppm: np.ndarray,
    years: np.ndarray,
    fits: Sequence[Fit],
) -> None:
    for fit, colour in zip(fits, COLOURS, strict=True):
        value, error = (f"{x:.1f}".replace("-", "\u2212") for x in fit.log_evidence)
        label = f"{fit.name}: log-evidence {value} \u00b1 {error}"
        mean, deviation = fit.forecast
        axis.plot(years, mean, color=colour, lw=1.2, label=label)
        low, high = mean - 2 * deviation, mean + 2 * deviation
        axis.fill_between(years, low, high, color=colour, alpha=0.18, lw=0)
    axis.plot(known_years, ppm, ".", color="0.15", ms=3, label="record")
    end = known_years[-1]
    axis.axvline(end, color="0.6", lw=0.8, ls=":")
    axis.text(end + 0.3, 308, "forecast", color="0.4")
    axis.set(xlim=(years[0] - 1, years[-1]), ylim=(305, 400))
    axis.set(xlabel="year", ylabel="CO$_2$ (ppm)")
    title = "Atmospheric CO$_2$ at Mauna Loa, and what two models make of it"
    axis.set_title(title, loc="left")
    axis.legend(
        loc="upper left", title="mean and 95 % band", alignment="left", frameon=False
    )


def _residual(axis: Axes, years: np.ndarray, fits: Sequence[Fit]) -> None:
    for fit, colour in zip(fits, COLOURS, strict=True):
        rms = np.sqrt(np.mean(fit.residual**2))
        label = f"{fit.name}: rms {rms:.2f} ppm"
        axis.plot(years, fit.residual, color=colour, lw=1, label=label)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(xlabel="year", ylabel="residual (ppm)")
    axis.set_title("Record minus fit", loc="left")
    # Room for the legend above the lines.
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.2 * (high - low))
    axis.legend(loc="upper left", ncols=2, frameon=False)


def _length(axis: Axes, fits: Sequence[Fit], prior: tuple[float, float]) -> None:
    # In powers of ten, where the prior is a normal distribution.
    for fit, colour in zip(fits, COLOURS, strict=True):
        axis.hist(
            np.log10(fit.trend_length),
            np.arange(0, 3.01, 0.05).tolist(),
            weights=fit.weights,
            density=True,
            color=colour,
            alpha=0.75,
            label=fit.name,
        )
    centre, width = math.log10(prior[0]), math.log10(prior[1])
    x = np.linspace(0, 3, 200)
    density = np.exp(-(((x - centre) / width) ** 2) / 2)
    density /= width * math.sqrt(2 * math.pi)
    axis.plot(x, density, color="0.3", lw=1, ls="--", label="prior")
    axis.set(xlabel="years", ylabel="density per factor of ten")
    axis.set_xticks(range(4), ["1", "10", "100", "1000"])
    axis.set_title("Length scale of the trend", loc="left")
    axis.legend(frameon=False)
