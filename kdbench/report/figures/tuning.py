"""What the trials of each tuned loss reached on the images held out, against its weight."""

from __future__ import annotations

from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from kdbench.report.figures.figure_data import Content, FigureData, plain
from kdbench.report.figures.panels import INK, legend_line, panel_figures, plain_log_axis


def tuning(study: FigureData) -> Content | None:
    """A panel a loss: the metric against the factor of its source's weight, mean over the repeats of a point, a line a pair."""
    trials = study.trials
    if trials is None or not trials["score"].notna().any():
        return None
    known = trials[trials["score"].notna()].assign(score=study.scale * trials["score"])
    low, high = known["score"].min(), known["score"].max()
    ends = low - 0.05 * (high - low or 1.0), high + 0.05 * (high - low or 1.0)
    panels = [
        (study.names[name], partial(_panel, study.looks["palette"][name], ends, known[known["objective"] == name]))
        for name in study.objectives_of(known)
    ]
    pairs = len(known.drop_duplicates(["student", "teacher"]))
    caption = (
        f"{plain(study.manifest.primary.label)} on the images held out of training, at the last epoch, against the weight tried, as "
        "a factor of the source's weight (of 1, where there is none); mean over the repeats of a point"
        f"{', a line a pair' if pairs > 1 else ''}. A ring marks the chosen point."
    )
    legend = [legend_line("chosen", marker="o", face="white", linestyle="")]
    return ("Tuning", caption, panel_figures(panels, 1.3, 4, ("weight / source's weight", f"validation {study.quantity}"), legend))


def _panel(colour: object, ends: tuple[float, float], trials: pd.DataFrame, axes: Axes) -> None:
    for _, mine in trials.groupby(["student", "teacher"], sort=False):
        points = mine.groupby("factor").agg(score=("score", "mean"), chosen=("chosen", "max")).reset_index()
        axes.plot(points["factor"], points["score"], color=colour, marker="o", markersize=3, linewidth=1)
        best = points[points["chosen"] > 0]
        axes.plot(best["factor"], best["score"], "o", color=INK, markerfacecolor="none", markersize=7, linestyle="")
    least, most = trials["factor"].min(), trials["factor"].max()
    plain_log_axis(axes, "x", least / 1.3, most * 1.3)
    axes.set_ylim(*ends)
