"""Figures show the values that independent code computes."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

import batchkit as bk
from batchkit.nested import DeadPoints, insertion_ranks
from batchkit.plots._figure import Scale, format_median, scale_of

from ..nested.perfect import plateau, result, sample
from .runs import chains, nested, six, two


def line(axes: Any, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [x for x in axes.lines if x.get_label().startswith(label)]
    return found.get_xdata(), found.get_ydata()


@pytest.mark.parametrize("problem", [None, plateau(1.0), plateau(-np.inf)])
def test_evidence_and_live_points_equal_those_of_anesthetic(problem: Any) -> None:
    run = nested(two) if problem is None else result(sample(problem, 0, 100))
    figure: Any = bk.plot_run(run)
    mass, _, live = figure.axes[:3]
    samples: Any = run.to_anesthetic()
    depth, likelihood = line(mass, "likelihood")
    # The mean of a logarithm, beside the logarithm of a mean.
    np.testing.assert_allclose(depth, -samples.logX(), rtol=0.02, atol=0.5)
    assert likelihood[-1] == likelihood.max() == 1
    logl = run.dead.loglikelihood
    np.testing.assert_allclose(likelihood, np.exp(logl - logl.max()))
    # The area under the mass is one, if it is not divided by its maximum.
    depth, height = line(mass, "posterior mass")
    share = np.trapezoid(height, depth) / height.max()
    widths = np.diff(depth, prepend=0)
    assert share == pytest.approx(1 / np.max(run.weights / widths), rel=0.1)
    assert height.max() == 1
    np.testing.assert_array_equal(live.lines[0].get_ydata(), samples["nlive"])
    assert f"{run.log_evidence:.2f}" in figure.get_suptitle()


@pytest.mark.parametrize("biased", [1.0, 0.6])
def test_histogram_and_band_of_insertion_ranks(biased: float) -> None:
    run = nested(two, biased=biased)
    axes: Any = bk.plot_run(run).axes
    ranks = insertion_ranks(run.dead)
    heights = [bar.get_height() for bar in axes[1].patches if bar.get_width() < 0.5]
    np.testing.assert_array_equal(heights, np.histogram(ranks, 20, (0, 1))[0])
    np.testing.assert_array_equal(axes[3].lines[0].get_ydata(), ranks)
    # Unbiased ranks stay in the band, biased ones do not.
    low, high = stats.binom.interval(0.95, len(ranks), 1 / 20)
    outside = np.mean((heights < low) | (heights > high))
    assert outside < 0.2 if biased == 1 else outside > 0.5
    band = next(x for x in axes[1].patches if x.get_width() == 1)
    assert band.get_y() == pytest.approx(low, abs=2)
    assert band.get_y() + band.get_height() == pytest.approx(high, abs=2)


def test_run_without_replaced_points_is_drawn() -> None:
    x = np.linspace(0, 1, 50)
    dead = DeadPoints({"x": x}, -x, np.full(50, -np.inf), np.zeros(50))
    texts = [
        x.get_text() for axes in bk.plot_run(result(dead)).axes for x in axes.texts
    ]
    assert texts == ["no point was replaced"] * 2


def test_trace_shows_all_points_of_a_nested_run() -> None:
    run = nested(six)
    figure: Any = bk.plot_trace(run, ["lens.shear"])
    for axes, column in zip(figure.axes[:4:2], (0, 1), strict=True):
        light, points = axes.collections
        colours = points.get_array()
        assert np.all(np.diff(colours) >= 0)
        assert colours[0] >= 0.01
        assert light.get_array() is None
        shown = np.concatenate([light.get_offsets(), points.get_offsets()])
        order = np.argsort(shown[:, 0])
        expected = run.dead.positions["lens"]["shear"][:, column]
        np.testing.assert_array_equal(shown[order, 1], expected)
        heaviest = np.argmax(run.weights * run.dead.num_live)
        assert abs(order[heaviest] - len(order)) < 0.05 * len(order)


def test_posterior_of_a_nested_run_has_an_axis_of_its_own() -> None:
    # Uniform in a prior of 2, with a posterior of width 0.01.
    x = np.random.default_rng(0).uniform(-1, 1, 2000)
    x = x[np.argsort(-np.abs(x))]
    logl = -0.5 * (x / 0.01) ** 2
    dead = DeadPoints({"x": x}, logl, np.full(2000, -np.inf), np.zeros(2000))
    figure: Any = bk.plot_trace(result(dead))
    left, right = figure.axes[:2]
    assert np.ptp(left.get_ylim()) > 1.9
    assert np.ptp(right.get_ylim()) < 0.2


def test_trace_shows_draws_and_divergences_of_chains() -> None:
    run = chains(two)
    figure: Any = bk.plot_trace(run)
    left, right = figure.axes[:2]
    for i, drawn in enumerate(left.lines[:4]):
        np.testing.assert_array_equal(drawn.get_ydata(), run.samples["mass"][i])
    assert run.diverging is not None
    marks = np.sort(left.lines[4].get_xdata())
    np.testing.assert_array_equal(marks, np.sort(np.nonzero(run.diverging)[1]))
    assert f"R-hat {run.rhat['mass']:.3f}" in right.get_title()
    assert "(marked below)" in figure.get_suptitle()
    assert [x.get_text() for x in figure.legends[0].texts] == [
        f"chain {i}" for i in range(4)
    ]


def shown_in_corner(run: Any, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The values and the weights that a corner plot must show."""
    if isinstance(run, bk.NestedRun):
        columns = [run.dead.positions[name] for name in names]
        return np.stack(columns), run.weights
    columns = [run.samples[name].ravel() for name in names]
    return np.stack(columns), np.full(columns[0].size, 1 / columns[0].size)


@pytest.mark.parametrize("make", [nested, chains])
def test_corner_counts_points_by_weight(make: Any) -> None:
    run = make(two)
    axes = np.array(bk.plot_corner(run).axes).reshape(2, 2)
    values, weights = shown_in_corner(run, ["mass", "slope"])
    for i, column in enumerate(values):
        outline = axes[i, i].patches[0].get_xy()
        edges, heights = np.unique(outline[:, 0]), outline[1:-1:2, 1]
        expected, _ = np.histogram(column, edges, weights=weights)
        np.testing.assert_allclose(heights, expected, atol=1e-12)
        assert expected.sum() > 0.995
        middle = np.quantile(column, 0.5, weights=weights, method="inverted_cdf")
        printed = float(axes[i, i].get_title().strip("$").split("^")[0])
        assert printed == pytest.approx(middle, abs=0.005)


@pytest.mark.parametrize("make", [nested, chains])
def test_contours_contain_their_nominal_mass(make: Any) -> None:
    run = make(two)
    axes = np.array(bk.plot_corner(run).axes).reshape(2, 2)
    values, weights = shown_in_corner(run, ["mass", "slope"])
    lines = axes[1, 0].collections[-1].get_paths()
    inside = sorted(weights @ path.contains_points(values.T) for path in lines)
    # Bins and their smoothing widen them.
    assert inside == pytest.approx([0.68, 0.95], abs=0.06)


def test_fewer_points_than_parameters_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4))
    dead = DeadPoints(x, np.arange(3.0), np.full(3, -np.inf), np.zeros(3))
    with pytest.raises(ValueError, match=r"3 points for 4 parameters.*`names=`"):
        bk.plot_corner(result(dead))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1.0, 1.2, 1.5), "$1.20^{+0.30}_{-0.20}$"),
        ((-1e-9, 0.0, 1e-9), r"$0.0^{+1.0}_{-1.0} \times 10^{-9}$"),
        ((2.5e6, 3e6, 3.4e6), r"$3.00^{+0.40}_{-0.50} \times 10^{6}$"),
        ((99.0, 100.0, 142.0), "$100.0^{+42.0}_{-1.0}$"),
        ((12340.0, 15000.0, 17000.0), "$15000^{+2000}_{-2660}$"),
        ((5.0, 5.0, 5.0), "$5.0^{+0.0}_{-0.0}$"),
        ((0.0, 0.0, 0.0), "$0.0^{+0.0}_{-0.0}$"),
        ((-0.31, -0.001, 0.3), "$0.00^{+0.30}_{-0.31}$"),
        ((2459000.4, 2459000.5, 2459000.6), "$2459000.50^{+0.10}_{-0.10}$"),
    ],
)
def test_format_of_medians(numbers: tuple[float, float, float], words: str) -> None:
    assert format_median(*numbers) == words


@pytest.mark.parametrize(
    ("ends", "scale", "label"),
    [
        ((0.0, 2.0), Scale(0.0, 0), "m"),
        ((-4e-5, 3e-5), Scale(0.0, -5), "m / $10^{-5}$"),
        ((0.0, 3e6), Scale(0.0, 6), "m / $10^{6}$"),
        ((3.0, 3.0), Scale(0.0, 0), "m"),
        ((2459000.4, 2459000.6), Scale(2459000.5, 0), "m \N{MINUS SIGN} 2459000.5"),
        ((-100.004, -100.0), Scale(-100.002, -3), "(m + 100.002) / $10^{-3}$"),
    ],
)
def test_scale_of_an_axis(ends: tuple[float, float], scale: Scale, label: str) -> None:
    found = scale_of(*ends)
    assert found == pytest.approx(scale)
    assert found.label("m") == label
