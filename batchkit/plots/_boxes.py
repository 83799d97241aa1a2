"""`plot_layout`: the sites of a program as boxes, and their tasks as cells."""

import math
import textwrap
from typing import TYPE_CHECKING, Any, Final

from .._util._formats import format_bytes
from ..explain import Explanation, MemoryUse, ReachedSite
from ._figure import COLOURS, GREY, new_figure


if TYPE_CHECKING:
    import matplotlib.figure


_BLUE, _ORANGE, _GREEN, *_ = COLOURS
# Inches: the figure, a picture of tasks, a line of text, and what is around them.
_WIDTH: Final = 9.0
_PICTURE: Final = (1.7, 0.75)
_LINE: Final = 0.19
_PAD: Final = 0.12
_INDENT: Final = 0.3
_MEMORY: Final = 1.35
# Letters that fit beside a picture.
_LETTERS: Final = 80
# A picture with more lanes or rounds than this has no lines between them.
_DRAWN: Final = 24


def plot_layout(explanation: Explanation) -> "matplotlib.figure.Figure":
    """Draw what a program does: its sites, their tasks, lanes and bytes.

    Each site is a box, and sites that its tasks reach are boxes inside. The picture in
    a box has a cell for each task: those above each other run at once, those beside
    each other one after the other, and each device has a block of its own. Lanes of
    `Continuous` are not cut into tasks, since how long a task takes is not known before
    it runs. Below are the bytes that XLA
    allocates for the whole program.

    It needs `pip install 'batchkit-jax[plots]'`.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    fun = bk.Chunked(16)(lambda x: jnp.sum(x**2))
    figure = bk.plot_layout(bk.explain(fun, jnp.ones((50, 3))))
    ```

    **Arguments:**

    - `explanation`: what [`explain`][batchkit.explain] returns.

    **Returns:**

    A matplotlib figure that is not registered with pyplot. `savefig` writes it, and
    notebooks display it as the last line of a cell.

    **Raises:**

    `TypeError` if `explanation` is something else; `ImportError` if matplotlib is not
    installed.
    """
    if not isinstance(explanation, Explanation):
        raise TypeError(
            "plot_layout(explanation=...): explanation must be what "
            f"`explain(fun, *args)` returns; got {type(explanation).__name__}."
        )
    sites = explanation.reached
    height = sum(_height(x) + _PAD for x in sites) + _MEMORY + (0 if sites else 0.4)
    figure = new_figure(_WIDTH, height, "plot_layout")
    axes = figure.add_axes((0, 0, 1, 1))
    # One unit is one inch, and y goes down.
    axes.set(xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    top = _PAD
    for site in sites:
        _site(axes, site, _PAD, top)
        top += _height(site) + _PAD
    if not sites:
        axes.text(_PAD, top + 0.2, "no site was reached", va="center")
    _memory(figure, explanation.memory, height)
    if sites:
        words = "pictures: tasks above each other run at once"
        figure.text(0.98, 0.08 / height, words, ha="right", fontsize=8.5, color=GREY)
    return figure


def _words(site: ReachedSite) -> list[str]:
    """The lines of text in the box of a site, below its name."""
    of_task = f"{format_bytes(site.bytes_in)} in"
    if site.batcher:
        of_task += f" and {format_bytes(site.bytes_out)} out"
    lines = [
        f"{site.batcher or 'jax.vmap'}: {site.tasks:,} tasks, {site.layout}",
        f"{of_task} a task, {site.at_once:,} at once on a device",
    ]
    if site.functions:
        lines.append(f"calls {', '.join(site.functions)}")
    return [x for line in (*lines, site.note) for x in textwrap.wrap(line, _LETTERS)]


def _own_height(site: ReachedSite) -> float:
    text = _LINE * (1 + len(_words(site)))
    return max(text, _PICTURE[1]) + 2 * _PAD


def _height(site: ReachedSite) -> float:
    inner = sum(_height(x) + _PAD for x in site.inside)
    return _own_height(site) + inner


def _site(axes: Any, site: ReachedSite, left: float, top: float) -> None:
    """Draw the box of a site, with those of its inner sites."""
    from matplotlib.patches import FancyBboxPatch

    moves_data = site.note.startswith("only moves data")
    colour = _BLUE if site.batcher and not moves_data else GREY
    width = _WIDTH - left - _PAD * (1 + round((left - _PAD) / _INDENT))
    box = FancyBboxPatch(
        *((left, top), width, _height(site)),
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=(*_rgb(colour), 0.07),
        edgecolor=colour,
    )
    axes.add_patch(box)
    at, line = left + _PAD, top + _PAD + _LINE / 2
    name = f"{site.site.module}:{site.site.qualname.replace('.<locals>', '')}"
    name += f":{site.site.line}"
    size = 9 * min(1.0, _LETTERS / len(name))
    axes.text(at, line, name, va="center", fontsize=size, weight="bold")
    for i, words in enumerate(_words(site), 1):
        axes.text(at, line + i * _LINE, words, va="center", fontsize=8.5)
    corner = left + width - _PICTURE[0] - _PAD
    _tasks(axes, site, corner, top + _PAD, colour)
    inner = top + _own_height(site)
    for each in site.inside:
        _site(axes, each, left + _INDENT, inner)
        inner += _height(each) + _PAD


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _tasks(axes: Any, site: ReachedSite, left: float, top: float, colour: str) -> None:
    """Draw the tasks: a block for each device, with lanes and rounds."""
    from matplotlib.patches import Rectangle

    if not site.tasks:
        return
    # A batcher inside another one splits each of its rounds again.
    rounds = math.prod(x.rounds for x in site.splits)
    devices = math.prod(x.devices for x in site.splits)
    lanes = site.splits[-1].lanes if site.splits else site.tasks
    kept_busy = any(x.kind == "lane" for x in site.splits)
    width, height = _PICTURE
    gap = 0.04 if 1 < devices <= _DRAWN else 0.0
    block = height / devices - gap
    cell = width / max(rounds, 4), block / max(lanes, 4 if devices == 1 else 1)
    wide, high = cell[0] * rounds, cell[1] * lanes
    style: Any = {"colors": "white", "lw": 0.7}
    for device in range(devices if gap else 1):
        corner = left, top + device * (block + gap)
        face = (*_rgb(colour), 0.45)
        axes.add_patch(Rectangle(corner, wide, high, facecolor=face, lw=0))
        if lanes * devices <= _DRAWN:
            at = [corner[1] + cell[1] * i for i in range(1, lanes)]
            axes.hlines(at, left, left + wide, **style)
        if rounds <= _DRAWN and not kept_busy:
            at = [left + cell[0] * i for i in range(1, rounds)]
            axes.vlines(at, corner[1], corner[1] + high, **style)
    repeated = rounds * lanes - site.tasks
    splitting = sum(x.rounds > 1 for x in site.splits)
    if splitting == 1 and devices == 1 and repeated > 0 and not kept_busy:
        place = (left + wide - cell[0], top + high - repeated * cell[1])
        size = (cell[0], repeated * cell[1])
        axes.add_patch(Rectangle(place, *size, facecolor="white", lw=0))


def _memory(figure: Any, memory: MemoryUse, height: float) -> None:
    """Draw the bytes of a program as one bar."""
    left, right = 0.12, 0.02
    place = (left, 0.55 / height, 1 - left - right, 0.35 / height)
    axes = figure.add_axes(place)
    parts = [
        ("arguments", memory.argument - memory.alias, _GREEN),
        ("results", memory.output, _ORANGE),
        ("temporaries", memory.temporary, _BLUE),
    ]
    start = 0
    for name, size, colour in parts:
        label = f"{name} {format_bytes(size)}"
        axes.barh(0, size, left=start, color=colour, alpha=0.7, label=label)
        start += size
    axes.set(yticks=[0], yticklabels=["memory"], xticks=[])
    axes.set_xlim(0, max(memory.total, 1))
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False)
    axes.set_title(
        f"{format_bytes(memory.total)} on each device ({memory.device})",
        fontsize=9,
        loc="left",
    )
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, -0.05),
        ncols=3,
        frameon=False,
        fontsize=8.5,
    )
