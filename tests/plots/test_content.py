"""Figures show the values that independent code computes."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch, Rectangle
from scipy import stats

import batchkit as bk
from batchkit.nested import DeadPoints, insertion_ranks
from batchkit.plots._figure import Scale, format_median, scale_of
from batchkit.plots._run import format_p_value

from ..helpers import unchecked
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


def panels(figure: Any) -> list[list[Any]]:
    """The axes of a corner plot, row by row from the left to the diagonal."""
    axes, rows = iter(figure.axes), []
    while len(row := list(itertools.islice(axes, len(rows) + 1))):
        rows.append(row)
    return rows


@pytest.mark.parametrize("make", [nested, chains])
def test_corner_counts_points_by_weight(make: Any) -> None:
    run = make(two)
    rows = panels(bk.plot_corner(run))
    values, weights = shown_in_corner(run, ["mass", "slope"])
    for i, column in enumerate(values):
        heights, edges, _ = rows[i][i].patches[0].get_data()
        counts, _ = np.histogram(column, edges, weights=weights)
        np.testing.assert_allclose(heights, counts / np.diff(edges), atol=1e-9)
        assert counts.sum() > 0.99
        middle = np.quantile(column, 0.5, weights=weights, method="inverted_cdf")
        name, median = rows[i][i].get_title().split("\n")
        assert name == ["mass", "slope"][i]
        assert float(median.strip("$").split("^")[0]) == pytest.approx(middle, abs=5e-3)


def ridge(x: np.ndarray) -> Any:
    """Two parameters with a correlation of 0.995."""
    return {"mass": x[..., 0], "slope": x[..., 0] + 0.1 * x[..., 1]}


def bent(x: np.ndarray) -> Any:
    return {"mass": x[..., 0], "slope": x[..., 0] ** 2 + 0.3 * x[..., 1]}


def apart(x: np.ndarray) -> Any:
    """Two peaks, one of each sign."""
    return {"mass": x[..., 0] + 4 * np.sign(x[..., 2]), "slope": x[..., 1]}


@pytest.mark.parametrize("make", [nested, chains])
@pytest.mark.parametrize("shape", [two, ridge, bent, apart])
def test_contours_contain_one_and_two_sigma(make: Any, shape: Any) -> None:
    run = make(shape)
    panel = panels(bk.plot_corner(run))[1][0]
    values, weights = shown_in_corner(run, ["mass", "slope"])
    lines = panel.collections[-1].get_paths()
    # Points between two pixels of the grid may be on either side.
    inside = sorted(weights @ path.contains_points(values.T) for path in lines)
    assert inside == pytest.approx([0.393, 0.865], abs=0.02)


@pytest.mark.parametrize("make", [nested, chains])
def test_contours_of_a_gaussian_are_single_curves(make: Any) -> None:
    panel = panels(bk.plot_corner(make(two)))[1][0]
    paths = panel.collections[-1].get_paths()
    assert [len(path.to_polygons(closed_only=False)) for path in paths] == [1, 1]


def test_constant_parameters_are_shown_as_points() -> None:
    run = chains(lambda x: {"constant": 0 * x[..., 0] + 0.1, "x": x[..., 0]})
    panel = panels(bk.plot_corner(run))[1][0]
    assert len(panel.lines[0].get_xdata()) == 1200


def test_truths_are_marked() -> None:
    truths = {"lens": {"shear": np.array([1e-5, 2e-5])}, "source": {"flux": 9e7}}
    rows = panels(bk.plot_corner(nested(six), truths=truths))
    names = ["einstein_radius", "shear[0]", "shear[1]", "at[0]", "at[1]", "flux"]
    titles = [row[-1].get_title().split("\n")[0].split(".")[1] for row in rows]
    assert titles == names
    vertical = [[x.get_xdata()[0] for x in row[-1].lines] for row in rows]
    assert vertical == [[], [1e-5], [2e-5], [], [], [9e7]]
    cross = rows[2][1].lines
    assert [x.get_xdata()[0] for x in cross[::2]] == [1e-5, 1e-5]
    assert cross[1].get_ydata()[0] == cross[2].get_ydata()[0] == 2e-5
    # A value far from the posterior is in the figure.
    assert rows[5][5].get_xlim()[1] > 9e7


@pytest.mark.parametrize(
    ("truths", "words"),
    [
        ({"mas": 1.0}, r"truths=.*'mas'\. The parameters are mass, slope"),
        ({"mass": np.nan}, "true value of mass must be finite; got nan"),
    ],
)
def test_truths_that_cannot_be_drawn_are_refused(truths: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bk.plot_corner(nested(two), truths=truths)


def test_truths_of_parameters_that_are_not_shown_are_left_out() -> None:
    (row,) = panels(bk.plot_corner(nested(two), "mass", truths={"slope": 1.0}))
    assert len(row[0].lines) == 0


@pytest.mark.parametrize("far", [{"truths": {"mass": 1e3}}, {}])
def test_contours_keep_their_shape_in_a_wide_panel(far: Any) -> None:
    wide = chains(lambda x: {"mass": 1e3 * x[..., 0], "slope": x[..., 1]})
    runs: Any = {"narrow": chains(two)} if far else {"narrow": chains(two), "a": wide}
    panel = panels(bk.plot_corner(runs, **far))[1][0]
    assert np.ptp(panel.get_xlim()) > 900
    values, weights = shown_in_corner(chains(two), ["mass", "slope"])
    # Two filled levels come before the lines of the first run.
    lines = panel.collections[2].get_paths()
    inside = sorted(weights @ path.contains_points(values.T) for path in lines)
    assert inside == pytest.approx([0.393, 0.865], abs=0.02)


def test_histogram_of_long_tails_has_many_bars() -> None:
    heavy = chains(lambda x: {"tail": np.sign(x[..., 0]) * x[..., 0] ** 6})
    ((panel,),) = panels(bk.plot_corner(heavy))
    _, edges, _ = panel.patches[0].get_data()
    low, high = panel.get_xlim()
    assert np.sum((edges >= low) & (edges <= high)) > 15


def test_several_runs_share_axes_and_have_a_legend() -> None:
    runs = {"one": nested(two), "other": chains(two)}
    figure: Any = bk.plot_corner(runs)
    rows = panels(figure)
    for name, run in runs.items():
        values, weights = shown_in_corner(run, ["mass", "slope"])
        for i, column in enumerate(values):
            (outline,) = [x for x in rows[i][i].patches if x.get_label() == name]
            edges = outline.get_data().edges
            counts, _ = np.histogram(column, edges, weights=weights)
            heights = counts / np.diff(edges)
            np.testing.assert_allclose(outline.get_data().values, heights, atol=1e-9)
            low, high = rows[i][i].get_xlim()
            assert weights @ ((column > low) & (column < high)) > 0.99
            middle = np.quantile(column, 0.5, weights=weights, method="inverted_cdf")
            medians = [x.get_text().strip("$").split("^")[0] for x in rows[i][i].texts]
            assert min(abs(float(x) - middle) for x in medians) < 0.005
    words = [x.get_text().split(":")[0] for x in figure.legends[0].texts]
    assert words == ["one", "other"]


def test_runs_without_a_common_parameter_are_refused() -> None:
    runs = {"one": chains(two), "other": chains(six)}
    with pytest.raises(ValueError, match=r"not all runs have .lens\.ein"):
        bk.plot_corner(runs)
    with pytest.raises(ValueError, match="there are 0 runs"):
        bk.plot_corner({})


@pytest.mark.parametrize(
    ("p", "words"),
    [(1.0, "p > 0.99"), (0.5, "p = 0.5"), (0.012, "p = 0.012"), (1e-9, "p < 0.001")],
)
def test_p_values_are_neither_zero_nor_one(p: float, words: str) -> None:
    assert format_p_value(p) == words


def layout_of(batcher: bk.AbstractBatcher, tasks: int) -> tuple[list[str], Any]:
    """The words of a drawn layout, and the pictures of the tasks of its sites."""
    figure: Any = bk.plot_layout(bk.explain(batcher(jnp.sin), jnp.ones(tasks)))
    axes = figure.axes[0]
    pictures = [x for x in axes.patches if isinstance(x, Rectangle)]
    return [x.get_text() for x in axes.texts], (pictures, axes.collections)


def test_layout_shows_a_cell_for_each_task() -> None:
    words, (pictures, lines) = layout_of(bk.Chunked(4), 10)
    assert words[1] == "Chunked(4): 10 tasks, 3 chunks of 4 (2 repeated)"
    assert words[2] == "4 B in and 4 B out a task, 4 at once on a device"
    whole, repeated = pictures
    cells = [len(x.get_segments()) + 1 for x in lines]
    assert cells == [4, 3]
    area = lambda x: x.get_width() * x.get_height()
    assert area(repeated) / area(whole) == pytest.approx(2 / 12)


@pytest.mark.parametrize(
    ("batcher", "devices", "rounds", "lanes"),
    [
        (bk.Sharded(), 4, 1, 25),
        (bk.Sharded(inner=bk.Chunked(8)), 4, 4, 7),
        (bk.Chunked(16, inner=bk.Chunked(4)), 1, 7 * 4, 4),
        (bk.Sequential(), 1, 100, 1),
        (bk.Vmap(), 1, 1, 100),
    ],
)
def test_layout_has_a_block_for_each_device(
    batcher: bk.AbstractBatcher, devices: int, rounds: int, lanes: int
) -> None:
    _, (pictures, _) = layout_of(batcher, 100)
    assert len(pictures) == devices
    width, height = 1.7, 0.75
    wide, high = pictures[0].get_width(), pictures[0].get_height()
    assert wide == pytest.approx(width * min(1, rounds / 4))
    assert high == pytest.approx(height / devices - (0.04 if devices > 1 else 0)) or (
        high == pytest.approx(height * lanes / 4)
    )


def test_layout_nests_sites() -> None:
    inner = lambda x: jnp.sum(bk.Chunked(4)(jnp.sin)(x))
    explanation = bk.explain(bk.Chunked(16)(inner), jnp.ones((50, 10)))
    axes: Any = bk.plot_layout(explanation).axes[0]
    outer, inside = [x for x in axes.patches if isinstance(x, FancyBboxPatch)]
    assert outer.get_bbox().containsx(inside.get_bbox().x1)
    assert outer.get_bbox().containsy(inside.get_bbox().y1)
    # 13 tasks of the outer site each have 4 lanes of the inner one.
    cells = [len(x.get_segments()) + 1 for x in axes.collections]
    assert cells == [13, 4, 4, 3]


def test_layout_shows_the_bytes_of_the_program() -> None:
    explanation = bk.explain(lambda x: x @ x.T, jnp.ones((50, 10)))
    figure: Any = bk.plot_layout(explanation)
    assert figure.axes[0].texts[0].get_text() == "no site was reached"
    bars = [x.get_width() for x in figure.axes[1].patches]
    memory = explanation.memory
    assert bars == [memory.argument, memory.output, memory.temporary]


def test_layout_of_something_else_is_refused() -> None:
    with (
        unchecked(),
        pytest.raises(TypeError, match=r"`explain\(fun, \*args\)` returns; got int"),
    ):
        bk.plot_layout(3)  # pyright: ignore


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
