"""Properties of every figure: it can be drawn, and nothing else changes."""

import io
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import batchkit as bk

from ..helpers import assert_refuses
from .runs import chains, nested, odd, six, two


RUNS: dict[str, Callable[[], Any]] = {
    "one": lambda: nested(lambda x: x[:, 0]),
    "six": lambda: nested(six),
    "odd": lambda: nested(odd),
    "odd, chains": lambda: chains(odd),
    "many chains": lambda: chains(two, 9),
}
FIGURES: dict[str, Callable[..., Any]] = {
    "plot_run": bk.plot_run,
    "plot_trace": bk.plot_trace,
    "plot_corner": bk.plot_corner,
}
with_names = pytest.mark.parametrize("name", ["plot_trace", "plot_corner"])


def drawn(figure: Figure) -> np.ndarray:
    """The pixels of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=40)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize(
    ("name", "run"),
    # Positions do not matter for `plot_run`.
    [("plot_run", "six"), *itertools.product(("plot_trace", "plot_corner"), RUNS)],
)
def test_figure_is_drawn_without_side_effects(name: str, run: str) -> None:
    settings = dict(mpl.rcParams)
    current = plt.figure()
    try:
        figure = FIGURES[name](RUNS[run]())
        pixels = drawn(figure)
        assert isinstance(figure, Figure)
        assert np.ptp(pixels) > 200
        assert plt.get_fignums() == [current.number]
        assert plt.gcf() is current
        assert current.axes == []
    finally:
        plt.close(current)
    assert dict(mpl.rcParams) == settings


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_png_for_notebooks(name: str) -> None:
    """IPython asks the last value of a cell for `_repr_png_`."""
    figure = FIGURES[name](nested(two))
    pixels = plt.imread(io.BytesIO(figure._repr_png_()), format="png")
    width, height = figure.get_size_inches() * figure.dpi
    assert abs(pixels.shape[0] / height - 1) < 0.2
    assert abs(pixels.shape[1] / width - 1) < 0.2
    assert np.ptp(pixels[..., :3]) > 0.8


def test_figure_can_be_pickled() -> None:
    figure = pickle.loads(pickle.dumps(bk.plot_trace(chains(two))))
    assert np.ptp(drawn(figure)) > 200


@pytest.mark.parametrize("names", [2, 8])
def test_healthy_chains_keep_their_layout(names: int) -> None:
    draws = np.random.default_rng(0).normal(size=(4, 300))
    none = np.zeros((4, 300), int)
    run = bk.ChainRun({f"x{i}": draws + i for i in range(names)}, diverging=none)
    figure = bk.plot_trace(run)
    drawn(figure)  # a layout that collapses is a warning, which is an error here
    # Panels fill most of the width, one below the other.
    boxes = [axes.get_position() for axes in figure.axes[::2]]
    assert all(box.width > 0.5 and box.height > 0.4 / names for box in boxes)
    assert all(a.y0 > b.y1 for a, b in itertools.pairwise(boxes))


def test_import_of_batchkit_imports_no_extra() -> None:
    code = (
        "import sys, batchkit; extras = {'matplotlib', 'arviz', 'xarray', "
        "'anesthetic', 'pandas'}; assert not extras & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def labels(name: str, figure: Figure, count: int) -> list[str]:
    """The labels of the parameters' axes."""
    if name == "plot_trace":
        return [axes.get_ylabel() for axes in figure.axes[: 2 * count : 2]]
    # The last row of a corner plot.
    return [axes.get_xlabel() for axes in figure.axes[-count:]]


@with_names
@pytest.mark.parametrize("make", [nested, chains])
def test_parameters_are_found_by_name(name: str, make: Any) -> None:
    run, plot = make(six), FIGURES[name]
    names = ["lens.einstein_radius", "lens.shear[0]", "lens.shear[1]"]
    figure = plot(run, ["lens.einstein_radius", "lens.shear"])
    assert [x.split(" /")[0] for x in labels(name, figure, 3)] == names
    figure = plot(run, ["source.at[1]", "source.at", "source.at[1]"])
    assert labels(name, figure, 2) == ["source.at[1]", "source.at[0]"]
    assert labels(name, plot(run, "source.at[1]"), 1) == ["source.at[1]"]


@with_names
def test_labels_replace_names(name: str) -> None:
    units = {"mass": r"mass [$M_\odot$]"}
    figure = FIGURES[name](nested(two), labels=units)
    assert labels(name, figure, 2) == [r"mass [$M_\odot$]", "slope"]


@with_names
def test_unknown_names_are_refused(name: str) -> None:
    run, plot = chains(six), FIGURES[name]
    words = (f"{name}(names=...): there is no parameter 'mass'", "source.at[0]")
    assert_refuses(lambda: plot(run, ["mass"]), ValueError, words)
    words = (f"{name}(labels=...): there is no parameter 'mass'",)
    assert_refuses(lambda: plot(run, labels={"mass": "m"}), ValueError, words)
    words = ("names must contain at least one parameter",)
    assert_refuses(lambda: plot(run, []), ValueError, words)


@with_names
def test_too_many_parameters_are_refused(name: str) -> None:
    run, plot = chains(lambda x: np.tile(x, 8)), FIGURES[name]
    words = (
        "shows at most 1",
        "the run has 48: x[0], x[1]",
        "and 28 more",
        "such as names=['x[0]', 'x[1]', 'x[2]']",
    )
    assert_refuses(lambda: plot(run), ValueError, words)
    assert labels(name, plot(run, ["x[40]", "x[3]"]), 2) == ["x[40]", "x[3]"]


@with_names
def test_non_finite_values_are_refused(name: str) -> None:
    run = chains(lambda x: {"a": np.where(x[..., 0] > 2, np.nan, 1), "b": x[..., 1]})
    assert_refuses(lambda: FIGURES[name](run), ValueError, ("values of a are not",))
    FIGURES[name](run, ["b"])


def test_other_types_are_refused() -> None:
    words = ("must be a NestedRun; got ChainRun", "use `plot_trace`")
    assert_refuses(lambda: bk.plot_run(chains(two)), TypeError, words)  # pyright: ignore
    for name in ("plot_trace", "plot_corner"):
        words = (f"{name}(run=...)", "a ChainRun or a ShardRun; got int")
        assert_refuses(lambda name=name: FIGURES[name](3), TypeError, words)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("plot_run", "matplotlib.figure"),
        ("plot_trace", "matplotlib.figure"),
        ("plot_corner", "matplotlib.figure"),
    ],
)
def test_missing_extra_is_named(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.split(".")[0]
    words = (f"{name} needs {package}", "pip install 'batchkit-jax[plots]'")
    assert_refuses(lambda: FIGURES[name](nested(two)), ImportError, words)
