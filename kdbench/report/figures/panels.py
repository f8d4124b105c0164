"""Figures of several panels: how large they are, where a new page begins, the legend above, and what several kinds draw."""

from __future__ import annotations

import functools
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator

SMALL = 7.0
"""Points of all text."""

INK, GREY, PALE = "#000000", "#707070", "#d9d9d9"
COLUMN, PAGE = 3.3, 6.9
"""Widths in inches: one column of a paper, and both."""

TALL, TALLEST = 7.0, 8.8
"""Heights in inches: what one column may grow to before a figure takes both, and what a page holds."""

MOST_PANELS = 12
LINE = 0.135
"""Inches from one line of text to the next."""

CUT, ENDS, FLOOR = "interval continues", "first run ends", "smaller values"
NOTES = {CUT: {"marker": ">", "linestyle": ""}, ENDS: {"marker": "x", "linestyle": ""}, FLOOR: {"linestyle": ":"}}
"""What a legend explains only where a panel shows it, by the label of the artist."""


@functools.lru_cache(maxsize=4096)
def text_width(text: str) -> float:
    """The width of a text in inches: that of its widest line."""
    font = FontProperties(family="DejaVu Sans", size=SMALL)
    return max(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] / 72 for line in text.split("\n"))


def wrapped(text: str, inches: float) -> str:
    """The text on lines of at most so many inches, broken at spaces or after `_`, `/` and `-`, else anywhere."""
    wrapper = textwrap.TextWrapper()
    wrapper.wordsep_re = re.compile(r"( +|[^ _/-]*[_/-])")
    for wrapper.width in range(len(text), 1, -1):
        if text_width(lines := wrapper.fill(text)) <= inches:
            return lines
    return text


def text_height(texts: Iterable[str]) -> float:
    """Inches of the text with the most lines."""
    return LINE * max((text.count("\n") + 1 for text in texts), default=0)


def panel_figures(
    panels: Sequence[tuple[str, Callable[[Axes], None]]],
    height: float,
    columns: int,
    axis_labels: tuple[str, str],
    legend: Sequence[Artist],
    rows: Sequence[str] = (),
    narrow: bool = True,
    beside: float = 0.0,
) -> Iterator[Figure]:
    """As many figures as the panels need: one column of a paper wide if they fit below each other, else two columns.

    Args:
        panels: titles, and what draws each panel.
        height: inches of a panel; with `rows`, of a row.
        columns: the most panels side by side.
        rows: names to the left of the first column: a row each, from the top downwards.
        narrow: whether a panel is legible in one column of a paper.
        beside: inches that the names to the left of each panel take.
    """
    names = [wrapped(name, 1.3) for name in rows]
    height = max(0.3, len(rows) * (height + text_height(names) - LINE)) if rows else height
    wide, columns = (COLUMN, 1) if narrow and len(panels) * (height + 0.5) <= TALL else (PAGE, min(columns, len(panels)))
    titles = [wrapped(title, (wide - 0.3 - max(map(text_width, names), default=0)) / columns - 0.2 - beside) for title, _ in panels]
    each = height + 0.3 + text_height(titles)
    down = max(1, min(int((TALLEST - _add_legend(Figure((wide, 1)), legend)) / each), MOST_PANELS // columns))
    for first in range(0, len(panels), columns * down):
        shown = range(first, min(first + columns * down, len(panels)))
        count = math.ceil(len(shown) / columns)
        figure = Figure((wide, 1), layout="constrained")
        grid = figure.subplots(count, columns, squeeze=False, sharey=bool(rows)).ravel()
        for place, axes in zip(shown, grid, strict=False):
            if rows:
                axes.set_ylim(len(names) - 0.5, -0.5)
                axes.set_yticks(range(len(names)), names)
                axes.tick_params(axis="y", length=0)
                axes.spines["left"].set_visible(False)
                axes.grid(axis="y", color=PALE, linewidth=0.4)
                axes.set_axisbelow(True)
            panels[place][1](axes)
            axes.set(title=titles[place], xlabel="", ylabel="")
        for axes in grid[len(shown) :]:
            axes.remove()
        figure.supxlabel(wrapped(axis_labels[0], wide - 0.1))
        quantity = figure.supylabel(axis_labels[1])
        seen = {artist.get_label() for axes in figure.axes for artist in axes.get_children()}
        above = _add_legend(figure, [*legend, *(legend_line(note, **looks) for note, looks in NOTES.items() if note in seen)])
        figure.set_figheight(count * each + above + 0.2)
        quantity.set_y(0.5 * (1 - above / figure.get_figheight()))  # beside the panels, and not beside the legend
        yield figure


def _add_legend(figure: Figure, legend: Sequence[Artist]) -> float:
    """The legend above the panels, in as many columns as its longest name leaves room for; returns its height in inches."""
    names = [wrapped(str(one.get_label()), figure.get_figwidth() - 0.6) for one in legend]
    columns = max(1, min(len(names), int(figure.get_figwidth() / (max(map(text_width, names), default=0) + 0.55))))
    figure.legend(handles=list(legend), labels=names, loc="outside upper left", ncols=columns)
    return text_height(names) * math.ceil(len(names) / columns)


def beside_row(axes: Axes, row: float, text: str) -> None:
    """Text to the right of a row, outside of the panel."""
    place: Any = ("axes fraction", "data")
    axes.annotate(text, (1, row), xycoords=place, xytext=(3, 0), textcoords="offset points", va="center", annotation_clip=False)


def plain_log_axis(axes: Axes, name: str, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers: 0.1, 1, 10; with 2 and 5 between them where the axis is short."""
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,), numticks=6))
    axis.set_major_formatter("{x:.10g}")
    axis.set_minor_formatter("")


def limits(points: Iterable[float], low: pd.Series, high: pd.Series) -> tuple[float, float]:
    """Limits that hold every point, and every interval but those more than four times as long as the median one (two repeats give
    such), which would squeeze all others."""
    usual = (high - low) <= 4 * (high - low).median()
    inside = [value for value in (*points, *low[usual], *high[usual]) if math.isfinite(value)]
    least, most = min(inside, default=0.0), max(inside, default=1.0)
    pad = 0.06 * (most - least) or 0.01 * abs(most) or 1.0
    return least - pad, most + pad


def draw_intervals(
    axes: Axes, table: pd.DataFrame, at: str, ends: tuple[str, str], colours: Sequence[Any], width: float, axis: str
) -> None:
    """Intervals along the axis `x` or `y`, from columns of a table; an arrowhead where one leaves the panel, whose limits are set."""
    (least, most), draw, arrows = (axes.get_xlim(), axes.hlines, "<>") if axis == "x" else (axes.get_ylim(), axes.vlines, "v^")
    low, high = table[ends[0]], table[ends[1]]
    draw(table[at], low.clip(least), high.clip(upper=most), colors=list(colours), linewidth=width, zorder=2)
    for arrow, end, is_cut in ((arrows[0], least, low < least), (arrows[1], most, high > most)):
        for place, colour in itertools.compress(zip(table[at], colours, strict=True), is_cut):
            where = (end, place) if axis == "x" else (place, end)
            axes.plot(*where, marker=arrow, color=colour, markersize=4, markeredgewidth=0, clip_on=False, label=CUT)


def legend_line(label: str, color: Any = INK, face: Any = None, **looks: Any) -> Artist:
    return Line2D([], [], label=label, color=color, markerfacecolor=face or color, **{"linewidth": 1, "markersize": 3.5, **looks})


def legend_patch(label: str, face: str = "white", hatch: str = "") -> Artist:
    return Patch(label=label, facecolor=face, hatch=hatch, linewidth=0)
