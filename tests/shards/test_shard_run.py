"""`ShardRun`: its seconds and its figures; `tests/run` has what all results share."""

from typing import Any

import numpy as np

import batchkit as bk

from ..helpers import assert_refuses
from ..run.results import checked_shards, shards


def test_seconds_are_those_of_all_tries() -> None:
    assert shards().seconds == (4.0, 1.0, 3.0, 0.0)


def test_figures_show_the_combined_draws() -> None:
    run = checked_shards()
    figure: Any = bk.plot_trace(run)
    for i, drawn in enumerate(figure.axes[0].lines):
        np.testing.assert_array_equal(drawn.get_ydata(), run.samples["a"][i, :, 0])
    assert f"R-hat {run.rhat['a'][0]:.3f}" in figure.axes[1].get_title()
    words = "4 chains of 60 draws, combined from 2 shards"
    assert figure.get_suptitle() == words
    corner: Any = bk.plot_corner(run)
    assert words in corner.texts[0].get_text()
    median = np.quantile(run.samples["a"][..., 0], 0.5, method="inverted_cdf")
    assert f"{median:.2f}" in corner.axes[0].get_title()
    draw: Any = bk.plot_run
    assert_refuses(lambda: draw(run), TypeError, ("shards use `plot_trace`",))
