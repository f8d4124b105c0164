"""What each objective reaches: every repeat as a point, and the mean against the time of a training step."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes

from kdbench.report.figures.figure_data import Content, FigureData
from kdbench.report.figures.panels import INK, beside_row, draw_intervals, legend_line, limits, panel_figures, plain_log_axis
from kdbench.stats.repeats import repeat_means, spread_over_blocks
from kdbench.store.frame import block_frame

LOG = 8.0
"""Times that differ by more than this factor stand on a logarithmic axis."""


def repeats(study: FigureData) -> Content | None:
    """A panel a pair, a row an objective; a row's repeats stand in their order, from the top."""
    if not (study.summaries["n"] > 0).any():
        return None
    rows = study.objectives_of(study.summaries)
    points = repeat_means(study.students)
    points = points.assign(value=study.scale * points["value"], row=points["objective"].map(rows.index))
    means = study.means.assign(row=study.means["objective"].map(rows.index)).sort_values("row")
    both = zip(study.of_blocks(points), study.of_blocks(means), strict=True)
    panels = [(title, partial(_repeats_panel, study, part, mean)) for (title, part), (_, mean) in both]
    legend = [legend_line("one repeat", marker="o", linestyle=""), legend_line("mean", marker="D", linestyle="")]
    legend.append(legend_line(f"{study.confidence} interval of the mean"))
    pages = panel_figures(panels, 0.17, 4, (study.quantity, ""), legend, [study.names[name] for name in rows])
    teachers = study.manifest.teacher_seeds
    caption = (
        f"{study.label} of each repeat{f' (the mean over {teachers} teachers)' * (teachers > 1)}, the first repeat at the top of a row and "
        "the last at the bottom. A mean over one repeat has no interval. † marks the number of complete repeats where some are missing."
    )
    return f"{study.label} of every repeat", caption, pages


def _repeats_panel(study: FigureData, points: pd.DataFrame, means: pd.DataFrame, axes: Axes) -> None:
    # A repeat has the same height in every row.
    place = points.sort_values(["repeat", "value"]).groupby("objective").cumcount()
    points = points.assign(height=points["row"] + (place / max(place.max(), 1) - 0.5) / 2 * (place.max() > 0))
    points = points.dropna(subset=["value"]).sort_values(["row", "value"])
    axes.set_xlim(limits(points["value"], means["low"], means["high"]))
    draw_intervals(axes, means, "row", ("low", "high"), [INK] * len(means), 1.1, "x")
    if len(points):
        looks = study.looks | {"style": None, "markers": True}
        seaborn.scatterplot(points, x="value", y="height", s=13, alpha=0.85, zorder=3, ax=axes, label="repeats", **looks)
    axes.scatter(means["mean"], means["row"], s=11, marker="D", color=INK, linewidth=0, zorder=4, label="mean")
    for row, n, asked in zip(means["row"], means["n"], means["n_asked"], strict=True):
        if n < asked:
            beside_row(axes, row, f"{n}/{asked}†")


def costs(study: FigureData) -> Content | None:
    """A panel a pair, a point an objective, and the Pareto front of both."""
    points = _costs(study)
    if not len(points):
        return None
    blocks = study.of_blocks(points)
    looks = zip(study.names, study.looks["palette"].values(), study.looks["markers"].values(), strict=True)
    there = study.objectives_of(points)
    legend = [legend_line(study.names[name], color, marker=marker, linestyle="") for name, color, marker in looks if name in there]
    legend.append(legend_line(f"{study.confidence} interval of mean", marker="|", linestyle="", markersize=8))
    legend.append(legend_line("quartiles of the step", marker="_", linestyle="", markersize=8))
    legend += [legend_line("Pareto front", linestyle="--")] * any(part["device"].nunique() < 2 for _, part in blocks)
    panels = [(title, partial(_costs_panel, study, part)) for title, part in blocks]
    pages = panel_figures(panels, 1.7, 2, ("time of a training step, ms", study.quantity), legend)
    caption = (
        f"Mean {study.label} against the median time of a training step, which is measured apart from the training runs. "
        "A loss is on the Pareto front if no other loss is at least as fast and has a better mean. "
        "Pairs measured on several devices have no front, because their times cannot be compared."
    )
    return f"{study.label} against the cost of a training step", caption, pages


def _costs(study: FigureData) -> pd.DataFrame:
    """The objectives of each pair with a measured step and a mean, in the suite's order."""
    if study.costs is None:
        return study.means.head(0)
    measured = study.costs[(study.costs["state"] == "measured") & study.costs["step_ms"].notna()]
    keys = ["dataset", "teacher", "student", "objective"]
    steps = spread_over_blocks(measured, block_frame(study.manifest))[[*keys, "device", "step_ms", "step_ms_q1", "step_ms_q3"]]
    points = study.means.query("n > 0").merge(steps, on=keys)
    return points.sort_values("objective", key=lambda names: names.map(list(study.names).index))


def _costs_panel(study: FigureData, points: pd.DataFrame, axes: Axes) -> None:
    times = points[["step_ms", "step_ms_q1", "step_ms_q3"]].astype(float).to_numpy().ravel()
    times = times[np.isfinite(times)]
    if 0 < LOG * times.min() < times.max():
        plain_log_axis(axes, "x", times.min() / 1.3, times.max() * 1.3)
    else:
        axes.set_xlim(limits(times, points["step_ms_q1"], points["step_ms_q3"]))
    axes.set_ylim(limits(points["mean"], points["low"], points["high"]))
    colours = [study.looks["palette"][name] for name in points["objective"]]
    draw_intervals(axes, points, "mean", ("step_ms_q1", "step_ms_q3"), colours, 0.7, "x")
    draw_intervals(axes, points, "step_ms", ("low", "high"), colours, 0.7, "y")
    if points["device"].nunique() < 2:
        # Level to the next point's time, then upright: what lies between two points was not measured.
        front = pareto(points, study.manifest.primary.higher_is_better)
        axes.step(front["step_ms"], front["mean"], where="post", color=INK, linewidth=0.8, linestyle="--", zorder=2.5, label="front")
    seaborn.scatterplot(points, x="step_ms", y="mean", s=30, zorder=3, ax=axes, label="points", **study.looks)


def pareto(points: pd.DataFrame, higher_is_better: bool) -> pd.DataFrame:
    """The points that no other beats: none is as fast and better, or faster and as good. In the order of their times."""
    ordered = points.assign(gain=points["mean"].astype(float) * (1 if higher_is_better else -1))
    ordered = ordered.sort_values(["step_ms", "gain"], ascending=[True, False])
    return ordered[ordered["gain"] > ordered["gain"].cummax().shift(fill_value=-math.inf)]
