"""Panels with a row for each objective, and the objectives' names beside the first column only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kdbench.report.figures.sheet import Box
from kdbench.report.figures.style import COLUMN, LINE, PALE
from kdbench.report.figures.words import width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = {True: 1.1, False: 1.7}
"""The most inches of a name on a sheet of one column, and of two."""


def row_box(names: Sequence[str], right: float) -> Callable[[float], Box]:
    """The sizes of a panel with a row a name, and `right` inches beside it for what is said of a row."""

    def box(wide: float) -> Box:
        lines = [wrapped(name, MOST[wide == COLUMN]) for name in names]
        left = max(width(line) for name in lines for line in name) + 0.12
        pitch = max(0.16, LINE * max(len(name) for name in lines) + 0.03)
        return Box(pitch * len(names) + 0.06, left, 0.22, right, 4)

    return box


def name_rows(axes: Axes, names: Sequence[str], first: bool, wide: float) -> None:
    """Rows from the top downwards with faint lines to follow; only the first column has the names."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    shown = ["\n".join(wrapped(name, MOST[wide == COLUMN])) for name in names] if first else []
    axes.set_yticks(range(len(names)), shown or [""] * len(names), linespacing=1.1)
    axes.tick_params(axis="y", length=0, pad=5)
    axes.spines["left"].set_visible(False)
    for row in range(len(names)):
        axes.axhline(row, color=PALE, linewidth=0.4, zorder=0)


def beside(axes: Axes, row: float, text: str, inches: float) -> None:
    """Text to the right of a row, outside of the panel that is `inches` wide."""
    axes.text(1 + 0.08 / inches, row, text, transform=axes.get_yaxis_transform(), va="center_baseline", ha="left")
