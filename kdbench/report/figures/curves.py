"""Training curves: the metric after each epoch that was evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdbench.report.figures.epochs import band, draw_line, ends_early, epoch_axis, line_box, lines_key, of_blocks
from kdbench.report.figures.sheet import limits, number_axis, sheets
from kdbench.report.figures.study import Drawn, Leaf, Place, listed, place_of, sentences

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("test", "val")


def absent(study: Drawn) -> str:
    if study.histories is None or not len(study.histories):
        return "no run left a history"
    split, found = _found(study)
    if not split:
        return f"no epoch of any run was evaluated with {study.metric['label']}"
    many = any(table["epoch"].nunique() > 1 for table in found.values())
    return "" if many else f"{study.metric['label']} was evaluated at one epoch only"


def leaves(study: Drawn) -> Iterator[Leaf]:
    """A panel a block, a line an objective."""
    split, found = _found(study)
    column = f"{split}_{study.metric['name']}"
    blocks = [block for block in study.blocks if place_of(block) in found]
    there = {name for table in found.values() for name in table["objective"]}
    names = {name: label for name, label in study.names.items() if name in there}
    places = {name: place for place, name in enumerate(study.names)}
    titles = [study.title(block) for block in blocks]
    for sheet in sheets(titles, line_box, "epoch", study.quantity, lines_key(names, places)):
        counts: list[int] = []
        for axes, block in zip(sheet.axes, blocks[sheet.first :], strict=False):
            table = found[place_of(block)]
            mine = {name: band(rows, column) for name, rows in table.groupby("objective", sort=False)}
            counts += [int(one["count"].max()) for one in mine.values()]
            ends = [study.scale * float(value) for one in mine.values() for edge in ("min", "max") for value in one[edge]]
            number_axis(axes, "y", *limits(ends), sheet.panel[1])
            last = epoch_axis(axes, [table], sheet.panel[0])
            for name in names:
                if name in mine:
                    draw_line(axes, mine[name], places[name], last, study.scale)
        data = {"test": "test", "val": "validation"}[split]
        caption = sentences(
            f"{study.metric['label']} on the {data} data of {study.datasets} over the epochs (counted from 0): the mean over the runs with "
            f"a record (n = {listed(counts)}) of each objective, in a band from its lowest to its highest run.",
            ends_early(sheet.axes),
            "Lower is better." if not study.metric["higher_is_better"] else "",
        )
        yield Leaf(sheet.figure, f"Training curves: {data} {study.metric['label']}", caption)


def _found(study: Drawn) -> tuple[str, dict[Place, pd.DataFrame]]:
    """The first split that was evaluated on the way, and the rows of each block."""
    for split in SPLITS:
        found = of_blocks(study, f"{split}_{study.metric['name']}")
        if found:
            return split, found
    return "", {}
