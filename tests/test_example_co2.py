"""`examples/co2.py`: its likelihood, its evidence and its report of memory."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def co2() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("co2")
        # `main` sets it for the whole process.
        jax.config.update("jax_enable_x64", False)


def _head(co2: ModuleType, points: int):
    return co2.Record(*(column[:points] for column in co2.load()))


def _log_likelihood(co2: ModuleType, model, record):
    lags = co2.Lags.between(record.years, record.years)
    values = record.ppm - record.ppm.mean()
    return jax.jit(lambda position: co2.log_likelihood(model, lags, values, position))


def _covariance(p: dict[str, float], years: np.ndarray, flexible: bool) -> Any:
    """The kernels once more, from the book; scipy's types want no array of ours."""
    lag = np.abs(np.subtract.outer(years, years))
    trend = p["trend size"] ** 2 * np.exp(-0.5 * (lag / p["trend length"]) ** 2)
    phase = 2 * np.sin(np.pi * lag) ** 2 / p["season smoothness"] ** 2
    season = p["season size"] ** 2 * np.exp(-phase)
    total = trend + season
    if flexible:
        total = trend + season * np.exp(-0.5 * (lag / p["season memory"]) ** 2)
        shape, length = p["irregularity shape"], p["irregularity length"]
        mixture = (1 + lag**2 / (2 * shape * length**2)) ** -shape
        total = total + p["irregularity size"] ** 2 * mixture
    return total + (p["noise size"] ** 2 + 1e-6) * np.eye(len(years))


@pytest.mark.parametrize(
    ("resolution", "points"), [("quarterly", 176), ("monthly", 521), ("weekly", 2225)]
)
def test_load(co2: ModuleType, resolution: str, points: int) -> None:
    record = co2.load(resolution)
    assert record.years.shape == record.ppm.shape == (points,)
    assert (np.diff(record.years) > 0).all()
    assert 1958.2 < record.years[0] < 1958.3
    assert 2001.8 < record.years[-1] < 2002
    assert np.isfinite(record.ppm).all()
    assert 312 < record.ppm.min() < record.ppm.max() < 375


@pytest.mark.parametrize("name", ["RIGID", "FLEXIBLE"])
def test_likelihood_is_that_of_scipy(co2: ModuleType, name: str) -> None:
    model, record = getattr(co2, name), _head(co2, 20)
    values = record.ppm - record.ppm.mean()
    log_likelihood = _log_likelihood(co2, model, record)
    positions = co2.draw_prior(model, jax.random.key(0), 5)
    lanes = jax.vmap(log_likelihood)(positions)
    for lane in range(5):
        position = {key: value[lane] for key, value in positions.items()}
        p = {key: math.exp(value) for key, value in position.items()}
        matrix = _covariance(p, record.years, name == "FLEXIBLE")
        expected = multivariate_normal.logpdf(values, cov=matrix)
        np.testing.assert_allclose(log_likelihood(position), expected, rtol=1e-6)
        np.testing.assert_allclose(lanes[lane], expected, rtol=1e-6)


def test_a_failed_factorisation_is_no_candidate(co2: ModuleType) -> None:
    positions = co2.draw_prior(co2.RIGID, jax.random.key(0), 1)
    position = {key: value[0] for key, value in positions.items()}
    log_likelihood = _log_likelihood(co2, co2.RIGID, _head(co2, 20))
    assert log_likelihood(position | {"trend size": 400.0}) == -math.inf


@pytest.mark.slow
def test_run(
    co2: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = _head(co2, 12)
    settings = co2.Settings(n_live=48, num_delete=12, num_inner_steps=10, chunk=5)
    run = co2.sample(co2.RIGID, record, settings)
    value, error = run.log_evidence, run.log_evidence_err
    assert 0 < error < 1
    # The evidence is the prior's mean of the likelihood; twelve points constrain the
    # model so little that draws from the prior suffice.
    draws = co2.draw_prior(co2.RIGID, jax.random.key(1), 20_000)
    each = np.asarray(jax.vmap(_log_likelihood(co2, co2.RIGID, record))(draws))
    expected = float(np.log(np.mean(np.exp(each))))
    assert abs(value - expected) < 4 * error

    co2.report(co2.RIGID, run)
    co2.compare(run, run, ["rigid", "rigid"])
    printed = capsys.readouterr().out
    assert "trend length (yr)" in printed
    assert "log Bayes factor, rigid against rigid: 0.0" in printed

    pytest.importorskip("matplotlib")
    co2.draw(record, [(co2.RIGID, run)] * 2, tmp_path / "co2.png")
    assert (tmp_path / "co2.png").stat().st_size > 10_000


@pytest.mark.slow
def test_memory(co2: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    co2.main(["--memory", "--chunk", "2"])
    printed = capsys.readouterr().out
    assert printed.startswith("176 points")
    for batcher in ("Vmap()", "Chunked(2)"):
        for phase in ("init", "step"):
            assert f"{batcher:16}{phase}" in printed
    assert "free: " in printed
