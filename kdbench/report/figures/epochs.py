"""Lines over epochs, each a mean over runs with a band: training curves, and the gradient of each term as a share of the task's."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pandas as pd
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdbench.report.figures.figure_data import Content, FigureData, plain
from kdbench.report.figures.panels import ENDS, FLOOR, INK, PALE, legend_line, legend_patch, panel_figures, plain_log_axis

DASHES: tuple[Any, ...] = ("", (4, 1.5), (1, 1), (4, 1.5, 1, 1.5), (6, 1, 1, 1, 1, 1))
"""The lines of an objective's terms."""

Looks = dict[str, dict[str, Any]]
"""For seaborn: `palette`, `markers` and `dashes` by line."""

SPLITS = {"test": "test", "val": "validation"}
GRADIENT = "gradient_ratio"
IDLE_PERCENT = 1.0
"""The share of the task's gradient below which a term has almost no effect."""

MOST_LINES = 12
"""A panel with a line for each term has at most so many: losses on pyramids have a term for each level."""

DECADES = 6
"""The most powers of ten that a panel shows below its largest value."""


def curves(study: FigureData) -> Content | None:
    """The metric after each epoch that was evaluated (of the first split that was): a panel a pair, a line an objective."""
    for split, name in SPLITS.items():
        column = f"{split}_{study.manifest.primary.name}"
        rows = _rows(study, column)
        if rows["epoch"].nunique() > 1:
            looks, tables, legend = _lines(study, rows.assign(term=""), column, study.scale)
            panels = [(title, partial(draw_lines, looks, table)) for title, table in tables]
            caption = f"{study.label} on the {name} data after each epoch (counted from 0), mean over the runs."
            pages = panel_figures(panels, 1.6, 3, ("epoch", study.quantity), legend)
            return f"Training curves: {name} {study.label}", caption, pages
    return None


def gradients(study: FigureData) -> Content | None:
    """What each distillation term weighs: its gradient as a share of the task's; a panel a pair, a line a term of an objective."""
    if not len(rows := _rows(study, GRADIENT)):
        return None
    of_each = "each distillation term"
    if rows.groupby("objective")["term"].nunique().sum() > MOST_LINES:
        others = [name for name in rows if name not in ("term", GRADIENT)]
        rows = rows.groupby(others, as_index=False, dropna=False)[GRADIENT].max().assign(term="")
        of_each = "the strongest of the distillation terms of each loss"
    looks, tables, legend = _lines(study, rows, GRADIENT, 100.0)
    panels = [(title, partial(_gradients_panel, looks, table)) for title, table in tables]
    caption = (
        f"Norm of the weighted gradient of {of_each}, relative to that of the task loss, at the first step of each epoch "
        f"(counted from 0), mean over the runs. Below {IDLE_PERCENT:g} % a term has almost no effect."
    )
    legend = [*legend, legend_line(f"{IDLE_PERCENT:g} %: little effect", linestyle="--")]
    pages = panel_figures(panels, 1.6, 3, ("epoch", "gradient, % of the task's"), legend)
    return "Gradient of each term relative to the task's", caption, pages


def _gradients_panel(looks: Looks, table: pd.DataFrame, axes: Axes) -> None:
    """A logarithmic axis in per cent that always shows the line below which a term has almost no effect."""
    ends = [IDLE_PERCENT, *(value for value in (*table["min"], *table["max"]) if 0 < value < math.inf)]
    low = max(min(ends), max(ends) / 10**DECADES) / 1.6
    plain_log_axis(axes, "y", low, max(ends) * 1.6)
    axes.axhline(IDLE_PERCENT, color=INK, linewidth=0.8, linestyle="--", zorder=1, label="idle")
    if (table["min"] < low).any():  # a logarithmic axis has no zero
        axes.axhline(low, color=INK, linewidth=0.8, linestyle=":", zorder=1, label=FLOOR)
    draw_lines(looks, table.assign(**table[["mean", "min", "max"]].clip(lower=low)), axes)


def _rows(study: FigureData, column: str) -> pd.DataFrame:
    """The rows of the students' histories that have a value in `column`, in each pair that their run belongs to."""
    histories = study.students.head(0).assign(epoch=0, term="") if study.histories is None else study.histories
    rows = histories.reindex(columns=["id", "epoch", "term", column]).query("epoch >= 0").dropna(subset=[column])
    # Runs on other data are never averaged with these.
    runs = study.students.loc[~study.students["mixed_data"].astype(bool), ["dataset", "teacher", "student", "objective", "id"]]
    return runs.merge(rows, on="id")


def _lines(study: FigureData, rows: pd.DataFrame, column: str, scale: float) -> tuple[Looks, list[tuple[str, pd.DataFrame]], list[Artist]]:
    """How each line is drawn, by objective and term, the lines of each pair, and the legend.

    A line has its objective's colour; it is named `kd`, or `rkd: angle` and has dashes where an objective has several terms.
    """
    looks: Looks = {"palette": {}, "markers": {}, "dashes": {}}
    legend = []
    for objective in study.objectives_of(rows):
        terms = sorted(rows.loc[rows["objective"] == objective, "term"].unique())
        same = len({term.partition(".")[0] for term in terms}) == 1
        color, marker = study.looks["palette"][objective], study.looks["markers"][objective]
        for term, dashes in zip(terms, itertools.cycle(DASHES), strict=False):
            name = f": {plain(term.partition('.')[2] if same and '.' in term else term)}" if len(terms) > 1 else ""
            for kind, look in zip(looks, (color, marker, dashes), strict=True):
                looks[kind][f"{objective}\n{term}"] = look
            legend.append(legend_line(study.names[objective] + name, color, marker=marker, linestyle=(0, dashes) if dashes else "-"))
    tables = study.of_blocks(rows.assign(line=rows["objective"] + "\n" + rows["term"]))
    return looks, [(title, bands(part, column, scale)) for title, part in tables], [*legend, legend_patch("lowest to highest run", PALE)]


def bands(table: pd.DataFrame, column: str, scale: float) -> pd.DataFrame:
    """Mean, least and most over the runs at each epoch of each line, as far as all of its runs go: a mean over those that survived
    would be one over other runs.

    Returns:
        line, epoch, mean, min, max (printed units), count (runs).
    """
    found = table.groupby(["line", "epoch"])[column].agg(["mean", "min", "max", "count"]).reset_index()
    found[["mean", "min", "max"]] *= scale
    return found[found["count"] == found.groupby("line")["count"].transform("max")]


def draw_lines(looks: Looks, table: pd.DataFrame, axes: Axes) -> None:
    """The means with their bands; a line that ends before the last epoch gets a cross."""
    fixed: dict[str, Any] = {"estimator": None, "legend": False, "linewidth": 1, "markersize": 3.5, "markeredgewidth": 0}
    every = max(1, table["epoch"].nunique() // 7)
    seaborn.lineplot(table, x="epoch", y="mean", hue="line", style="line", markevery=every, ax=axes, **looks, **fixed)
    for name, rows in table.groupby("line"):
        color, end = looks["palette"][str(name)], rows.iloc[-1]
        axes.fill_between(rows["epoch"], rows["min"], rows["max"], color=color, alpha=0.15, linewidth=0, zorder=1)
        if end["epoch"] < table["epoch"].max():
            axes.plot([end["epoch"]], [end["mean"]], "x", color=color, markersize=5, zorder=3, label=ENDS)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
