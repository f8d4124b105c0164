"""What each distillation term weighs in training: its gradient as a share of the task's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kdbench.report.figures.epochs import band, draw_line, ends_early, epoch_axis, line_box, lines_key, of_blocks
from kdbench.report.figures.sheet import sheets
from kdbench.report.figures.study import Drawn, Leaf, listed, place_of, sentences
from kdbench.report.figures.style import INK, LINE
from kdbench.report.figures.words import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

IDLE = 0.01
"""The share of the task's gradient below which a term does nothing."""

COLUMN_OF = "gradient_ratio"
PER_CENT = 100.0
DECADES = 6
"""The most powers of ten that a panel shows below its largest value."""


def absent(study: Drawn) -> str:
    if study.histories is None or not len(study.histories):
        return "no run left a history"
    return "" if of_blocks(study, COLUMN_OF) else "no run measured the gradients of its terms"


def leaves(study: Drawn) -> Iterator[Leaf]:
    """A panel a block, a line a term of an objective; the axis is logarithmic."""
    found = of_blocks(study, COLUMN_OF)
    blocks = [block for block in study.blocks if place_of(block) in found]
    names = _terms(study, found.values())
    places = {name: place for place, name in enumerate(names)}
    titles = [study.title(block) for block in blocks]
    key = lines_key(names, places)
    for sheet in sheets(titles, line_box, "epoch", "gradient, % of the task's", key):
        counts: list[int] = []
        floored = False
        for axes, block in zip(sheet.axes, blocks[sheet.first :], strict=False):
            table = found[place_of(block)]
            named = table.assign(line=table["objective"] + "\n" + table["term"])
            mine = {str(name): band(rows, COLUMN_OF) for name, rows in named.groupby("line", sort=False)}
            counts += [int(one["count"].max()) for one in mine.values()]
            floor = _share_axis(axes, list(mine.values()), sheet.panel[1])
            floored |= any((PER_CENT * one["min"] < floor).any() for one in mine.values())
            last = epoch_axis(axes, [table], sheet.panel[0])
            for name in names:
                if name in mine:
                    draw_line(axes, mine[name], places[name], last, PER_CENT, floor)
        caption = sentences(
            "The norm of each distillation term's weighted gradient over that of the task's, at the first step of each epoch (counted from "
            f"0), on a logarithmic axis: the mean over the runs with a record (n = {listed(counts)}), in a band from the lowest to the "
            "highest run.",
            f"Below the dashed line at {PER_CENT * IDLE:g} % a term does nothing.",
            "Values below the axis are drawn at its lower end." if floored else "",
            ends_early(sheet.axes),
        )
        yield Leaf(sheet.figure, "Each term's gradient beside the task's", caption)


def _terms(study: Drawn, tables: Iterable[pd.DataFrame]) -> dict[str, str]:
    """The label of each term, by objective and term: `kd`, or `rkd: angle` where an objective has several."""
    import pandas as pd

    pairs = pd.concat([table[["objective", "term"]] for table in tables]).drop_duplicates()
    found = {}
    for objective, label in study.names.items():
        terms = pairs.loc[pairs["objective"] == objective, "term"].sort_values().tolist()
        for term in terms:
            short = term.partition(".")[2] if len({one.partition(".")[0] for one in terms}) == 1 else term
            found[f"{objective}\n{term}"] = label if len(terms) == 1 else f"{label}: {plain(short or term)}"
    return found


def _share_axis(axes: Axes, tables: list[pd.DataFrame], inches: float) -> float:
    """A logarithmic axis in per cent that always shows the line below which a term does nothing; returns its lower end."""
    seen = [float(value) for one in tables for edge in ("min", "max") for value in one[edge]]
    ends = [PER_CENT * value for value in seen if value > 0 and math.isfinite(value)]
    most = max([*ends, PER_CENT * IDLE])
    least = max(min([*ends, PER_CENT * IDLE]), most / 10**DECADES)
    low, high = least / 1.6, most * 1.6
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    room = max(1, int(inches / (1.5 * LINE)))
    ticks = [10.0**power for power in powers][:: max(1, math.ceil(len(powers) / room))]
    axes.set_yticks(ticks, [f"{tick:.10g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.axhline(PER_CENT * IDLE, color=INK, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1, label="idle")
    return low
