"""Tables of a posterior: quantiles, rounding, LaTeX, pandas, and other parameters."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import batchkit as bk
from batchkit.continuous import LaneStats
from batchkit.run import Summary, parameter_names
from batchkit.run._summary import rounded

from ..helpers import assert_refuses
from ..nested.perfect import peak, result, sample
from .compilations import compilations


RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 300, 2)).astype(np.float32)
CHAINS = bk.ChainRun({"log_mass": X[..., 0], "b": X[..., 1]})
NESTED = result(sample(peak(), 0))
SHARDS = bk.ShardRun(
    [bk.ChainRun({"log_mass": x, "b": y}) for x, y in RNG.normal(size=(2, 2, 4, 300))]
)


def natural(position: Any) -> Any:
    return {"mass": jnp.exp(position["log_mass"]), "b": position["b"]}


def test_quantiles_are_those_of_numpy() -> None:
    asked = (0.025, 0.16, 0.5, 0.999)
    found = CHAINS.summary(quantiles=asked)["b"]
    assert list(found) == [
        *("mean", "std", "2.5 %", "16 %", "50 %", "99.9 %"),
        *("R-hat", "bulk ESS", "tail ESS"),
    ]
    values = [found[x] for x in ("2.5 %", "16 %", "50 %", "99.9 %")]
    np.testing.assert_allclose(values, np.quantile(X[..., 1], asked), rtol=1e-6)
    u = NESTED.dead.positions["u"]
    row = NESTED.summary(quantiles=[0.3, 0.7])["u"]
    drawn = RNG.choice(u, 200_000, p=NESTED.weights)
    width = np.std(drawn)
    for label, q in (("30 %", 0.3), ("70 %", 0.7)):
        assert abs(row[label] - np.quantile(drawn, q)) < 0.02 * width
    assert len(CHAINS.summary(quantiles=())["b"]) == 5


@pytest.mark.parametrize(
    ("quantiles", "error", "words"),
    [
        ("50", TypeError, ("quantiles='50'", "such as (0.05, 0.5, 0.95)")),
        (0.5, TypeError, ("quantiles=0.5", "got float")),
        ((0.5, None), TypeError, ("None", "NoneType")),
        ((5, 95), ValueError, ("one is 5", "5 % is 0.05")),
        ((0.5, 0.5), ValueError, ("all different", "0.5 occurs twice")),
    ],
)
def test_quantiles_that_are_refused(quantiles: Any, error: Any, words: Any) -> None:
    for run in (CHAINS, NESTED, SHARDS):
        assert_refuses(lambda run=run: run.summary(quantiles=quantiles), error, words)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (2459000.5123, 0.00123, ("2459000.5123", "0.0012")),
        (0.123456, 0.0213, ("0.123", "0.021")),
        (5.0, 1234.5, ("0", "1200")),
        (12345.6, 789.0, ("12350", "790")),
        (1.0, 0.0996, ("1.00", "0.10")),
        (-0.0001, 1.0, ("0.0", "1.0")),
        (1.2345678e12, 3.21e8, ("1.23457e+12", "0.00032e+12")),
        (3.2e-9, 4.5e-10, ("3.20e-09", "0.45e-09")),
        (1e300, 1e299, ("1.00e+300", "0.10e+300")),
        (7.0, 0.0, ("7", "0")),
        (2459000.5, 0.0, ("2459000.5", "0")),
        (np.nan, np.nan, ("nan", "nan")),
        (1.0, 1e-17, ("1.00000000000000", "0.00000000000000")),
    ],
)
def test_rounding_by_the_standard_deviation(
    mean: float, std: float, expected: Any
) -> None:
    assert tuple(rounded({"mean": mean, "std": std}, 2)) == expected


def test_rounding_hides_no_posterior() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        std = 10.0 ** rng.uniform(-12, 12)
        mean = std * rng.normal() * 10.0 ** rng.uniform(-3, 10)
        row = {"mean": mean, "std": std, "50 %": mean + std}
        cells = np.array(list(map(float, rounded(row, 3))))
        # Half a unit of the second digit of the deviation is a twentieth of it.
        assert np.all(np.abs(cells - [*row.values()]) <= 0.0501 * std)
        assert abs(cells[2] - cells[0] - std) <= 0.11 * std


def test_text_is_therounded_table() -> None:
    x = 2459000.5 + 1e-3 * X[..., 0].astype(np.float64)
    summary = bk.ChainRun({"day": x}).summary()
    head, row = repr(summary).splitlines()
    assert head.split()[:3] == ["parameter", "mean", "std"]
    assert row.split()[1].startswith("2459000.5")
    assert len(set(row.split()[3:6])) == 3  # the quantiles differ


@pytest.mark.parametrize("run", [CHAINS, NESTED, SHARDS], ids=["c", "n", "s"])
def test_a_data_frame_has_the_numbers(run: Any) -> None:
    summary: Summary = run.summary()
    frame = summary.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.index.name == "parameter"
    assert list(frame.index) == list(summary.values)
    for name, row in summary.values.items():
        assert frame.loc[name].to_dict() == row
    assert list(frame.columns)[:2] == ["mean", "std"]
    assert set(map(str, frame.dtypes)) == {"float64"}


def test_pandas_computes_the_same_moments_and_quantiles() -> None:
    pooled = pandas.DataFrame({"b": X[..., 1].ravel().astype(np.float64)})
    expected = pooled.describe(percentiles=[0.05, 0.5, 0.95])["b"]
    row = CHAINS.summary().to_dataframe().loc["b"]
    for ours, theirs in (("mean", "mean"), ("std", "std"), ("5 %", "5%")):
        assert row[ours] == pytest.approx(expected[theirs], rel=1e-6)


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    words = (
        "Summary.to_dataframe needs pandas",
        "pip install 'batchkit-jax[pandas]'",
    )
    assert_refuses(CHAINS.summary().to_dataframe, ImportError, words)


def cells(line: str) -> list[str]:
    assert line.endswith(r" \\")
    return [x.strip() for x in line[:-2].split(" & ")]


def test_latex_has_the_cells_of_the_table() -> None:
    x = np.array([-1.0, 0.0, 1.0])
    names = {"a_b": x, "50%": 1e9 * x, "c": x}
    summary = Summary(names, np.full(3, 1 / 3))
    lines = summary.to_latex(labels={"c": r"$\chi$"}).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrr}"
    assert lines[-1] == r"\end{tabular}"
    assert lines.count(r"\hline") == 3
    head, *rows = [cells(x) for x in lines if x.endswith(r"\\")]
    assert head == ["parameter", "mean", "std", r"5 \%", r"50 \%", r"95 \%"]
    assert [row[0] for row in rows] == [r"50\%", r"a\_b", r"$\chi$"]
    assert rows[1][1:] == ["$0.00$", "$0.82$", "$-1.00$", "$0.00$", "$1.00$"]
    assert rows[0][3] == r"$-1.00 \times 10^{9}$"
    of_chains = CHAINS.summary().to_latex()
    assert r"$\hat{R}$" in of_chains
    assert f"{CHAINS.summary()['b']['R-hat']:.3f}" in of_chains
    words = ("no parameter 'd'", "a_b")
    assert_refuses(lambda: summary.to_latex({"d": "$d$"}), ValueError, words)


@pytest.mark.parametrize("run", [CHAINS, SHARDS], ids=["chains", "shards"])
def test_draws_are_summarised_in_other_parameters(run: Any) -> None:
    found = run.summary(transform=natural)
    mass = np.exp(run.samples["log_mass"].astype(np.float64))
    expected = bk.ChainRun({"mass": mass, "b": run.samples["b"]}).summary()
    for name, row in expected.values.items():
        for column, value in row.items():
            assert found[name][column] == pytest.approx(value, rel=1e-4), column


def test_points_are_summarised_in_other_parameters() -> None:
    root = lambda p: jnp.sqrt(p["u"])
    found = NESTED.summary(transform=root)["x"]
    x = np.sqrt(NESTED.dead.positions["u"])
    assert found["mean"] == pytest.approx(NESTED.weights @ x, rel=1e-5)


def test_figures_in_other_parameters() -> None:
    figure: Any = bk.plot_trace(CHAINS, ["mass"], transform=natural)
    mass = np.exp(X[..., 0])
    for i, drawn in enumerate(figure.axes[0].lines[:4]):
        np.testing.assert_allclose(drawn.get_ydata(), mass[i], rtol=1e-5)
    rhat = CHAINS.summary(transform=natural)["mass"]["R-hat"]
    assert f"R-hat {rhat:.3f}" in figure.axes[1].get_title()
    corner: Any = bk.plot_corner(CHAINS, ["mass"], transform=natural)
    median = float(corner.axes[0].get_title().split("$")[1][:4])
    assert abs(median - np.median(mass)) < 0.02
    nested: Any = bk.plot_trace(NESTED, transform=lambda p: {"root": p["u"] ** 0.5})
    assert nested.axes[0].get_ylabel() == "root"


def test_a_transform_is_compiled_once() -> None:
    once = lambda p: {"twice": 2 * p["b"]}
    CHAINS.summary(transform=once)
    with compilations() as names:
        CHAINS.summary(transform=once)
    assert names == []


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (3, ("summary(transform=3)", "a function of one position", "got int")),
        (lambda p: {}, ("transform=...", "real numbers", "got {}")),
        (lambda p: p["b"] + 1j, ("real numbers", "complex")),
    ],
)
def test_transforms_that_are_refused(transform: Any, words: Any) -> None:
    for run in (CHAINS, SHARDS):
        assert_refuses(
            lambda run=run: run.summary(transform=transform), TypeError, words
        )


def test_an_error_in_a_transform_has_a_note() -> None:
    with pytest.raises(KeyError) as info:
        CHAINS.summary(transform=lambda p: p["z"])
    assert any("transform" in x and "'b':" in x for x in info.value.__notes__)


def test_names_of_parameters_follow_the_pytree() -> None:
    n = np.zeros(3)
    vector, matrix = np.zeros((3, 2)), np.zeros((3, 1, 2))
    assert parameter_names(n) == ("x",)
    assert parameter_names(vector) == ("x[0]", "x[1]")
    assert parameter_names((n, vector)) == ("x[0]", "x[1][0]", "x[1][1]")
    assert parameter_names({"a": {"b": n}, "c": [n]}) == ("a.b", "c[0]")
    assert parameter_names({"m": matrix}) == ("m[0, 0]", "m[0, 1]")
    assert parameter_names({1: n}) == ("x[1]",)
    stats = LaneStats(jnp.zeros(3, int), jnp.zeros(3, int))
    assert parameter_names({"lanes": stats}) == ("lanes.made", "lanes.needed")


def test_a_long_summary_is_cut() -> None:
    summary = Summary(np.zeros((3, 70)), np.full(3, 1 / 3))
    lines = repr(summary).splitlines()
    assert len(lines) == 62
    assert lines[-1] == "... and 10 more"
    assert len(summary.values) == 70
