"""Maps of the similarity (CKA) between the layers of teacher and student."""

from __future__ import annotations

from functools import partial

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex

from kdbench.report.figures import panels
from kdbench.report.figures.figure_data import Content, FigureData, plain
from kdbench.stats.similarity import layer_order

SHADES = LinearSegmentedColormap.from_list("", ["#edf4fb", "#6fb4e8", "#12507c"], 101)
MANY = 6
"""With more layers of a student, fewer panels stand side by side; with twice as many, boxes have no numbers."""


def layers(study: FigureData) -> Content | None:
    """A panel a pair and objective: rows are the teacher's layers from the first, columns the student's; mean over the runs."""
    if study.cka is None:
        return None
    each = [
        (f"{title}: {study.names[name]}", partial(_panel, part[part["objective"] == name]))
        for title, part in study.of_blocks(study.cka.sort_values("id"))
        for name in study.objectives_of(part)
    ]
    legend = [panels.legend_patch(f"{value:g}", to_hex(SHADES(value))) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    rows, columns = (study.cka.groupby("id")[f"{side}_layer"].nunique().max() for side in ("teacher", "student"))
    labels = ("layer of the student", "layer of the teacher")
    beside, narrow = max(map(panels.text_width, study.cka["teacher_layer"].unique())), columns <= MANY
    pages = panels.panel_figures(each, 0.2 * rows + 0.5, 3 if narrow else 2, labels, legend, narrow=narrow, beside=beside)
    caption = (
        "Similarity (debiased CKA, linear kernel) of the features of each layer of the student to those of each layer of the teacher, on "
        "the test images; mean over the runs. All panels have the same colours: the darker, the more similar. Students that were trained "
        "without the teacher show how similar two networks become because they learn from the same images."
    )
    return f"Similarity of layers, {plain(study.manifest.suite)}", caption, pages


def _panel(cka: pd.DataFrame, axes: Axes) -> None:
    order = [layer_order(cka[side]) for side in ("teacher_layer", "student_layer")]
    means = cka.groupby(["teacher_layer", "student_layer"])["cka"].mean().unstack().reindex(index=order[0], columns=order[1])
    axes.patch.set(facecolor="white", hatch="/////")
    looks = {"vmin": 0, "vmax": 1, "cmap": SHADES, "cbar": False, "linewidths": 0.5, "linecolor": panels.PALE}
    few = len(order[1]) <= 2 * MANY
    seaborn.heatmap(means, annot=few, fmt=".2f", annot_kws={"size": panels.SMALL}, ax=axes, **looks)
    axes.set_xticks([place + 0.5 for place in range(len(order[1]))], order[1], rotation=90)
    axes.set_yticks([place + 0.5 for place in range(len(order[0]))], order[0], rotation=0)
    axes.tick_params(length=0)
