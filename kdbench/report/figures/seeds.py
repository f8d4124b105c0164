"""Every seed of every objective as a point, with the mean and its interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.rows import beside, name_rows, row_box
from kdbench.report.figures.sheet import bar, goes_on, limits, number_axis, sheets
from kdbench.report.figures.study import Drawn, Leaf, by_block, counted, lines, place_of, rows_of, sentences
from kdbench.report.figures.style import BLUE, INCOMPLETE, INK
from kdbench.report.figures.words import width

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = dict[str, Any]

SPREAD = 0.5
"""The share of a row's height over which its seeds are spread."""


def absent(study: Drawn) -> str:
    return "" if (study.summaries["n"] > 0).any() else "no run has a value yet"


def leaves(study: Drawn) -> Iterator[Leaf]:
    """A panel a block, a row an objective; a row's seeds stand in the order of their repeats, from the top."""
    from kdbench.stats.repeats import repeat_means

    means, summaries = by_block(repeat_means(study.students)), by_block(study.summaries)
    blocks = [block for block in study.blocks if place_of(block) in summaries]
    rows = rows_of(study, study.summaries)
    short = study.summaries["n"] < study.summaries["n_asked"]
    said = [f"{line['n']}/{line['n_asked']}{INCOMPLETE}" for line in lines(study.summaries[short])]
    right = max((width(one) + 0.08 for one in said), default=0.08)
    names = [study.names[name] for name in rows]
    for sheet in sheets([study.title(block) for block in blocks], row_box(names, right), study.quantity):
        for place, axes in enumerate(sheet.axes):
            where = place_of(blocks[sheet.first + place])
            name_rows(axes, names, place % sheet.columns == 0, sheet.figure.get_figwidth())
            _panel(axes, means[where], summaries[where], rows, study, sheet.panel[0])
        yield Leaf(sheet.figure, f"{study.metric['label']} of every seed", _caption(study, sheet.figure))


def _panel(axes: Axes, means: pd.DataFrame, summaries: pd.DataFrame, rows: list[str], study: Drawn, inches: float) -> None:
    values = means[means["value"].notna()]
    found = {line["objective"]: line for line in lines(summaries)}
    intervals = {name: interval(line, study) for name, line in found.items()}
    low, high = limits((study.scale * values["value"]).tolist(), list(intervals.values()))
    number_axis(axes, "x", low, high, inches)
    offset = _offsets(means)
    for row, name in enumerate(rows):
        if name not in found:
            continue
        mine = values[values["objective"] == name]
        shifted = row + offset[mine.index].to_numpy()
        bar(axes, row, *intervals[name], color=INK, linewidth=1.1, zorder=2)
        looks: Line = {"markerfacecolor": "none", "markeredgecolor": BLUE, "markeredgewidth": 0.7, "markersize": 2.8}
        axes.plot(study.scale * mine["value"], shifted, marker="o", linestyle="", zorder=3, label=f"seeds of {row}", **looks)
        line = found[name]
        if line["n"]:
            axes.plot([study.scale * line["mean"]], [row], marker="D", markersize=3.2, markeredgewidth=0, color=INK, zorder=4)
        if line["n"] < line["n_asked"]:
            beside(axes, row, f"{line['n']}/{line['n_asked']}{INCOMPLETE}", inches)


def _offsets(means: pd.DataFrame) -> pd.Series:
    """How far below the middle of its row each repeat stands: by its number, so that a repeat is found again in every row; those
    without a number by the order of their values."""
    place = means["repeat"].rank(method="dense")
    place = place.fillna(means.groupby("objective")["value"].rank(method="first")).astype(float).fillna(1.0)
    return SPREAD * ((place - 1) / max(place.max() - 1, 1) - 0.5) * (place.max() > 1)


def interval(line: Line, study: Drawn) -> tuple[float, float]:
    """The t interval of a mean, in printed units; NaN for fewer than two repeats."""
    from scipy import special

    n = int(line["n"])
    if n < 2 or not math.isfinite(line["sd"]):
        return math.nan, math.nan
    half = -float(special.stdtrit(n - 1, study.manifest["alpha"] / 2)) * line["sd"] / math.sqrt(n)
    return study.scale * (line["mean"] - half), study.scale * (line["mean"] + half)


def _caption(study: Drawn, figure: Figure) -> str:
    runs = study.students.drop_duplicates("id")
    lost = Counter(runs.loc[runs["state"] != "finished", "state"])
    teachers = study.manifest["teacher_seeds"]
    states = ", ".join(f"{count} {state}" for state, count in sorted(lost.items()))
    return sentences(
        f"{study.metric['label']} of the students on {study.datasets}: each circle is one repeat"
        + (f" (a mean over its {teachers} teachers)" if teachers > 1 else "")
        + f", the diamond their mean, the line the {study.confidence} t interval of that mean.",
        f"{counted(study.manifest['repeats'], 'repeat')} each; a repeat stands at the same height in every row.",
        f"{INCOMPLETE} complete repeats of those asked; of {len(runs)} runs {states}." if lost else "",
        "With one repeat there is no interval." if (study.summaries["n"] == 1).any() else "",
        goes_on(figure),
        "Each panel has a scale of its own." if len(study.blocks) > 1 else "",
        "Lower is better." if not study.metric["higher_is_better"] else "",
    )
