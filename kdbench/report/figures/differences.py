"""The forest plot: how far each objective is from a baseline, and how surely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.rows import beside, name_rows, row_box
from kdbench.report.figures.sheet import Key, bar, goes_on, limits, number_axis, sheets
from kdbench.report.figures.study import Drawn, Leaf, by_block, lines, listed, place_of, rows_of, sentences
from kdbench.report.figures.style import BLUE, GREEN, GREY, INK, MARKS, PALE, VERMILION, key_of_marks
from kdbench.report.figures.words import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = {
    "better": ("^", BLUE, BLUE),
    "better but below the margin": ("^", BLUE, "white"),
    "equal": ("s", GREEN, "white"),
    "worse": ("v", VERMILION, VERMILION),
    "worse but below the margin": ("v", VERMILION, "white"),
}
"""A verdict's marker, the colour of its edge, and of its face; anything else is a grey circle."""


def absent(study: Drawn) -> str:
    if not len(study.comparisons):
        return "the suite compares nothing"
    return "" if (study.comparisons["n"] > 0).any() else "no comparison has a complete repeat of both of its sides"


def leaves(study: Drawn) -> Iterator[Leaf]:
    """A panel a block and baseline, a row an objective; panels of one dataset share their scale."""
    found = by_block(study.comparisons)
    names = study.names
    panels = [
        (block, baseline, found[place_of(block)].query("baseline == @baseline"))
        for block in study.blocks
        if place_of(block) in found
        for baseline in dict.fromkeys(study.manifest["baselines"])
        if (found[place_of(block)]["baseline"] == baseline).any()
    ]
    rows = rows_of(study, study.comparisons)
    shown = [names[name] for name in rows]
    titles = [f"{study.title(block)}, to {names[baseline]}" for block, baseline, _ in panels]
    spans = {block["dataset"]: _span(study, block["dataset"]) for block, _, _ in panels}
    key: list[Key] = [(mark, None) for mark in key_of_marks(study.comparisons["verdict"])]
    xlabel = f"difference in {plain(study.metric['label'])}{study.unit}{study.direction}"
    for sheet in sheets(titles, row_box(shown, 0.22), xlabel, key=key):
        for place, axes in enumerate(sheet.axes):
            block, baseline, table = panels[sheet.first + place]
            name_rows(axes, shown, place % sheet.columns == 0, sheet.figure.get_figwidth())
            number_axis(axes, "x", *spans[block["dataset"]], sheet.panel[0])
            if baseline in rows:
                axes.text(0.02, rows.index(baseline), "baseline", transform=axes.get_yaxis_transform(), va="center_baseline", color=GREY)
            _panel(axes, table, rows, study, sheet.panel[0])
        yield Leaf(sheet.figure, f"Differences in {study.metric['label']} to the baselines", _caption(study, sheet.figure))


def _span(study: Drawn, dataset: str) -> tuple[float, float]:
    table = study.comparisons[study.comparisons["dataset"] == dataset]
    margin = study.scale * (study.margin or 0.0)
    ends = [study.scale * table[name] for name in ("low", "high", "low_all", "high_all")]
    pairs = [*zip(ends[0], ends[1], strict=True), *zip(ends[2], ends[3], strict=True)]
    return limits((study.scale * table["difference"]).tolist(), pairs, always=(-margin, 0.0, margin))


def _panel(axes: Axes, table: pd.DataFrame, rows: list[str], study: Drawn, inches: float) -> None:
    scale, margin = study.scale, study.margin
    if margin is not None:
        axes.axvspan(-scale * margin, scale * margin, color=PALE, linewidth=0, zorder=0, label="margin")
    axes.axvline(0, color=INK, linewidth=0.5, zorder=1, label="zero")
    found = {line["objective"]: line for line in lines(table)}
    for row, name in enumerate(rows):
        line = found.get(name)
        if line is None:
            continue
        marker, edge, face = POINTS.get(line["verdict"], ("o", GREY, "white"))
        bar(axes, row, scale * line["low_all"], scale * line["high_all"], color=edge, linewidth=0.7, zorder=2)
        bar(axes, row, scale * line["low"], scale * line["high"], color=edge, linewidth=2.0, zorder=2)
        looks: dict[str, Any] = {"markeredgecolor": edge, "markerfacecolor": face, "markeredgewidth": 0.8, "markersize": 4.2}
        if line["n"] and math.isfinite(line["difference"]):
            axes.plot([scale * line["difference"]], [row], marker=marker, linestyle="", zorder=3, label=f"difference {row}", **looks)
        beside(axes, row, MARKS.get(line["verdict"], "") if line["n"] else "–", inches)


def _caption(study: Drawn, figure: Figure) -> str:
    table = study.comparisons
    tested = table[table["low"].notna()]
    names = study.names
    baselines = [name for name in dict.fromkeys(study.manifest["baselines"]) if name in names]
    points = " points" if study.metric["percent"] else ""
    return sentences(
        f"Differences in {study.metric['label']} on {study.datasets}, each objective minus the baseline in the panel's title.",
        f"Thick: the {study.confidence} interval of this difference alone; thin: the interval that holds for all {len(table)} "
        f"comparisons of the suite at once; n = {listed(tested['n'])}.",
        f"The grey band is the margin of ±{study.scale * study.margin:.4g}{points}." if study.margin is not None else "",
        f"{names[baselines[0]]} and {names[baselines[1]]} are compared once, in the panel of {names[baselines[0]]}."
        if len(baselines) > 1
        else "",
        f"{len(table) - len(tested)} comparisons could not be tested and have no interval." if len(tested) < len(table) else "",
        "– has no pair." if (table["n"] == 0).any() else "",
        goes_on(figure),
        "Lower is better: the better losses are to the left." if not study.metric["higher_is_better"] else "",
    )
