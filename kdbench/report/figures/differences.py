"""The differences to the baselines with their verdicts: a forest plot with intervals, and a map of losses by pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from kdbench.report.entries import VERDICTS
from kdbench.report.figures import panels
from kdbench.report.figures.figure_data import Content, FigureData

MARKS = {verdict: mark for verdict, (mark, _) in VERDICTS.items()}
OPEN = ("unstable", "undecided")
"""Verdicts that decide nothing."""

SHAPES = dict(zip(MARKS, "^^svvDo", strict=True))
"""A verdict's marker; it is filled for what is better or worse, else hollow."""

FILLED = ("better", "worse")
FAINT = 0.45
"""The opacity of the intervals where nothing is decided."""

ACROSS, DOWN, TURNED = 9, 24, 5
"""The most pairs and the most losses in one map, and from how many pairs on their names are turned."""

WORSE, BETTER = "#ee9b5f", "#6fb4e8"
"""The ends of the colours: so light that dark text on them is legible."""


def named(verdict: str) -> str:
    """A verdict as a legend prints it, with its mark: `better, below the margin (△)`."""
    mark, words = VERDICTS[verdict]
    return f"{words} ({mark})" if mark else verdict


def forest(study: FigureData) -> Content | None:
    """A panel a pair and baseline, all pairs first, a row an objective; the pairs of one dataset share their scale."""
    table = study.compared()
    if table["difference"].isna().all():
        return None
    rows = study.objectives_of(table)
    spans: dict[Any, tuple[float, float]] = {}
    for dataset, part in table.groupby("dataset"):
        ends = [pd.concat([part[name], part[f"{name}_all"]], ignore_index=True) for name in ("low", "high")]
        spans[dataset] = panels.limits([*part["difference"], -study.margin, study.margin], *ends)
    each = [
        (f"{title}, to\N{NO-BREAK SPACE}{study.names[baseline]}", partial(_forest_panel, study, rows, spans[dataset], part))
        for (_, title, dataset), pair in table.groupby(["pair", "title", "dataset"])
        for baseline in study.baselines
        if len(part := pair[pair["baseline"] == baseline])
    ]
    pages = panels.panel_figures(each, 0.17, 4, (study.difference, ""), _legend(study, table), [study.names[name] for name in rows])
    caption = (
        f"Difference in {study.label} of each loss to the baseline: the mean over all pairs, then pair by pair. "
        f"The {study.confidence} interval holds for one difference alone, the simultaneous intervals for the whole family. "
        "Faint intervals are undecided or unstable; – means no complete repeat."
    )
    return f"Differences in {study.label} to the baselines", caption, pages


def _forest_panel(study: FigureData, rows: list[str], span: tuple[float, float], table: pd.DataFrame, axes: Axes) -> None:
    axes.set_xlim(span)
    if study.margin:
        axes.axvspan(-study.margin, study.margin, color=panels.PALE, linewidth=0, zorder=0.5, label="margin")
    axes.axvline(0, color=panels.INK, linewidth=0.6, linestyle="--", zorder=1, label="zero")
    if (baseline := table["baseline"].iloc[0]) in rows:
        box = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
        axes.text(0, rows.index(baseline), "baseline", transform=axes.get_yaxis_transform(), va="center", color=panels.GREY, bbox=box)
    table = table.assign(row=table["objective"].map(rows.index)).sort_values("row")
    palette = study.looks["palette"]
    colours = [(palette[name], FAINT if verdict in OPEN else 1) for name, verdict in table[["objective", "verdict"]].to_numpy()]
    panels.draw_intervals(axes, table, "row", ("low_all", "high_all"), colours, 0.8, "x")
    panels.draw_intervals(axes, table, "row", ("low", "high"), colours, 2.2, "x")
    points = table.dropna(subset=["difference"])
    looks: dict[str, Any] = {**study.looks, "x": "difference", "y": "row", "style": "verdict", "markers": SHAPES, "ax": axes}
    if len(points):
        seaborn.scatterplot(points, s=26, zorder=3, label="differences", **looks)
    looks |= {"hue": None, "palette": None, "color": "white"}
    seaborn.scatterplot(points[~points["verdict"].isin(FILLED)], s=9, zorder=4, label="hollow", **looks)
    for row, verdict, n in zip(table["row"], table["verdict"], table["n"], strict=True):
        panels.beside_row(axes, row, MARKS.get(verdict, "") if n else "–")


def _legend(study: FigureData, table: pd.DataFrame) -> list[Artist]:
    there = [verdict for verdict in MARKS if (table["verdict"] == verdict).any()]
    faces = [panels.INK if verdict in FILLED else "white" for verdict in there]
    fixed: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0.8}
    found = [panels.legend_line(named(one), face=face, marker=SHAPES[one], **fixed) for one, face in zip(there, faces, strict=True)]
    found += [panels.legend_line(f"{study.confidence} interval", linewidth=2.2), panels.legend_line("simultaneous interval", linewidth=0.8)]
    found.append(panels.legend_line("no difference", linewidth=0.6, linestyle="--"))
    unit = " points" if study.manifest.primary.percent else ""
    return [*found, panels.legend_patch(f"margin ±{study.margin:.4g}{unit}", panels.PALE)] if study.margin else found


def heat_map(study: FigureData) -> Content | None:
    """A map a baseline, all pairs first; many pairs or losses continue in a further map. Only decided boxes have a colour."""
    boxes = study.compared()
    if boxes["difference"].isna().all():
        return None
    digits = 2 if study.manifest.primary.percent else 4
    numbers = [f"{value:+.{digits}f}".replace("-", "−") for value in boxes["difference"] + 0.0]
    texts = [f"{number}\n{MARKS.get(verdict, '')}".strip() for number, verdict in zip(numbers, boxes["verdict"], strict=True)]
    shades = boxes["difference"].mask(boxes["verdict"].isin(OPEN) & boxes["difference"].notna(), 0.0)
    boxes, sizes = boxes.assign(text=texts, shade=shades), boxes["difference"].abs()
    # One box far from all others does not make the rest pale.
    most = min(sizes.max(), 4 * (sizes.median() or float("inf"))) or 1.0
    names = {name: panels.wrapped(study.names[name], 1.3) for name in study.objectives_of(boxes)}
    titles = sorted(set(zip(boxes["pair"], boxes["title"], strict=True)))
    few = len(titles) < TURNED
    heads = {pair: panels.wrapped(title, 1.6 / len(titles) if few else 1.6) for pair, title in titles}
    each: list[tuple[str, Callable[[Axes], None]]] = []
    for baseline, top, left in itertools.product(study.baselines, range(0, len(names), DOWN), range(0, len(heads), ACROSS)):
        rows, pairs = dict(list(names.items())[top : top + DOWN]), dict(list(heads.items())[left : left + ACROSS])
        part = boxes[(boxes["baseline"] == baseline) & boxes["objective"].isin(rows) & boxes["pair"].isin(pairs)]
        if len(part):
            each.append((f"{study.difference}, to {study.names[baseline]}", partial(_map, study, part, rows, pairs, most)))
    there = set(boxes.loc[boxes["difference"].notna(), "verdict"])
    legend = [panels.legend_patch(named(verdict) + ": no colour" * (verdict in OPEN)) for verdict in MARKS if verdict in there]
    legend += [panels.legend_patch("no comparison", hatch="/////")] * bool(boxes["difference"].isna().any())
    above = panels.text_height(heads.values()) if few else max(map(panels.text_width, heads.values()))
    height = 0.1 + above + max(0.3, panels.text_height(names.values())) * min(DOWN, len(names))
    pages = panels.panel_figures(each, height, 1, ("", ""), legend, narrow=few)
    caption = (
        f"Difference in {study.label} of each loss to the baseline. Blue is better, orange is worse; the stronger, the larger the "
        "difference. Boxes without colour are undecided or unstable, which does not mean equal."
    )
    return f"Differences in {study.label} by pair", caption, pages


def _map(study: FigureData, table: pd.DataFrame, names: dict[str, str], heads: dict[int, str], most: float, axes: Axes) -> None:
    """Decided boxes in colours, the others white, and hatches where there is no comparison."""
    rows = study.objectives_of(table)
    shape: dict[str, Any] = {"index": rows, "columns": list(heads)}
    shades, texts = (table.pivot(index="objective", columns="pair", values=name).reindex(**shape) for name in ("shade", "text"))
    ends = [WORSE, "white", BETTER] if study.manifest.primary.higher_is_better else [BETTER, "white", WORSE]
    axes.patch.set(facecolor="white", hatch="/////")
    looks: dict[str, Any] = {"fmt": "", "linewidths": 0.8, "linecolor": panels.PALE, "cbar": False, "vmin": -most, "vmax": most}
    # An odd number of colours: 0 is white.
    looks |= {"cmap": LinearSegmentedColormap.from_list("", ends, 65), "annot_kws": {"size": panels.SMALL}}
    seaborn.heatmap(shades, annot=texts, ax=axes, **looks)
    axes.set_yticks([row + 0.5 for row in range(len(rows))], [names[name] for name in rows], rotation=0)
    axes.set_xticks([place + 0.5 for place in range(len(heads))], list(heads.values()), rotation=0 if len(heads) < TURNED else 90)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
