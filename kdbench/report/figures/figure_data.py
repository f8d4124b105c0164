"""What the figures show, and how its names, numbers and colours are printed."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import seaborn
from matplotlib.figure import Figure
from scipy import special

from kdbench.manifest import Manifest
from kdbench.stats.collapse import collapsed_runs

Content = tuple[str, str, Iterator[Figure]]
"""Of one kind of figure: title, caption, and a matplotlib Figure for each page."""

LONGEST_NAME = 48
"""The most letters of a name in a figure."""

NEUTRAL = ("#8c8c8c", "#404040")
"""The colours of the first two baselines."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
"""Their number shares no divisor with that of the colours: no two of the first 77 losses share both."""


def palette(objectives: Sequence[str], baselines: Sequence[str]) -> dict[str, Any]:
    """The colour of each objective of a suite: greys for its first two baselines; for the others seaborn's "colorblind" without the
    colours that are grey or pale on white, then the same colours darker, then others around the colour circle."""
    neutral = dict(zip(baselines, NEUTRAL, strict=False))
    base = [colour for place, colour in enumerate(seaborn.color_palette("colorblind")) if place not in (6, 7, 8)]
    dark = [tuple(0.55 * part for part in colour) for colour in base]
    colours = iter([*base, *dark, *seaborn.husl_palette(max(len(objectives), 1), s=0.8, l=0.5)])
    return {name: neutral.get(name) or next(colours) for name in objectives}


def plain(text: str) -> str:
    """Text on one line, without control characters; the middle of a long name becomes an ellipsis."""
    line = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(text.split()))
    return line if len(line) <= LONGEST_NAME else f"{line[:32]}…{line[-15:]}"


@dataclass(frozen=True)
class FigureData:
    """A suite's manifest and its frames, with values as stored (an accuracy is a fraction).

    `students`: runs as `comparison.student_runs` gives them. `summaries`: as `stats.repeats.summarise`. `comparisons`: dataset, teacher,
    student, baseline, objective, n, difference, low, high, low_all, high_all, verdict. `costs`: as `frame.costs`. `histories`: as
    `histories.histories`. `overall`: the columns of `comparisons` without dataset, teacher and student: means over all pairs. `trials`:
    as `store.trials.trials`. `cka`: as `store.features.frames`.
    """

    manifest: Manifest
    students: pd.DataFrame
    summaries: pd.DataFrame
    comparisons: pd.DataFrame
    costs: pd.DataFrame | None = None
    histories: pd.DataFrame | None = None
    overall: pd.DataFrame | None = None
    trials: pd.DataFrame | None = None
    cka: pd.DataFrame | None = None

    @property
    def scale(self) -> float:
        """What a stored value is multiplied with to be printed."""
        return 100.0 if self.manifest.primary.percent else 1.0

    @property
    def margin(self) -> float:
        """The least difference that matters, as printed; 0 where the suite names none."""
        return self.scale * (self.manifest.margin or 0.0)

    @property
    def confidence(self) -> str:
        return f"{100 * (1 - self.manifest.alpha):.6g} %"

    @property
    def label(self) -> str:
        return plain(self.manifest.primary.label)

    @property
    def quantity(self) -> str:
        """The metric with its unit, and its direction where that is not the usual one: `top-1, %`, `NLL (lower is better)`."""
        metric = self.manifest.primary
        return self.label + (", %" if metric.percent else "") + ("" if metric.higher_is_better else " (lower is better)")

    @property
    def difference(self) -> str:
        return "difference in " + self.quantity.replace(", %", ", points")

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The printed label of each objective in the suite's order; two that are shortened to the same letters get numbers."""
        short = {name: plain(label) for name, label in self.manifest.labels.items()}
        often = Counter(short.values())
        return {name: label if often[label] == 1 else f"{label} (#{place})" for place, (name, label) in enumerate(short.items(), 1)}

    @functools.cached_property
    def looks(self) -> dict[str, Any]:
        """For seaborn: each objective's colour and marker, the same in every figure."""
        colours, markers = palette(list(self.names), self.baselines), dict(zip(self.names, itertools.cycle(MARKERS), strict=False))
        return {"hue": "objective", "palette": colours, "style": "objective", "markers": markers, "legend": False, "linewidth": 0}

    @property
    def baselines(self) -> list[str]:
        return [name for name in dict.fromkeys(self.manifest.baselines) if name in self.names]

    @functools.cached_property
    def means(self) -> pd.DataFrame:
        """The summaries with mean and t interval (`low`, `high`) in printed units; NaN for fewer than two repeats and unstable losses."""
        n, mean = self.summaries["n"].astype(float), self.scale * self.summaries["mean"].astype(float)
        half = -special.stdtrit(n - 1, self.manifest.alpha / 2) * self.scale * self.summaries["sd"].astype(float) / n**0.5
        half = half.where((n > 1) & ~self.summaries["objective"].isin(collapsed_runs(self.students)["objective"]))
        return self.summaries.assign(mean=mean, low=mean - half, high=mean + half)

    def compared(self) -> pd.DataFrame:
        """The comparisons in printed units (NaN without a complete repeat; no interval where runs collapse), with the place and title of
        their pair as `pair` and `title`; where there are several pairs, those of `overall` come first, without dataset."""
        overall = self.overall if self.overall is not None and len(self.manifest.blocks) > 1 else self.comparisons.head(0)
        parts = [("all pairs", overall.assign(dataset="")), *self.of_blocks(self.comparisons)]
        table = pd.concat([part.assign(pair=place, title=title) for place, (title, part) in enumerate(parts) if len(part)] or [overall])
        columns = ["difference", "low", "high", "low_all", "high_all"]
        printed = self.scale * table[columns].astype(float).where(table["n"] > 0)
        printed.loc[(table["verdict"] == "unstable").to_numpy(), columns[1:]] = float("nan")
        return table.assign(**printed)

    def objectives_of(self, table: pd.DataFrame) -> list[str]:
        """The objectives that the table names, in the suite's order."""
        return [name for name in self.names if (table["objective"] == name).any()]

    def of_blocks(self, table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
        """The title and the rows of each pair that the table knows, in the suite's order; a title has the dataset if there are several."""
        several = len({block.dataset for block in self.manifest.blocks}) > 1
        rows = dict(list(table.groupby(["dataset", table["teacher"].fillna(""), "student"])))
        found = []
        for block in self.manifest.blocks:
            pair = f"{plain(block.teacher)} → {plain(block.student)}" if block.teacher else f"{plain(block.student)} alone"
            if block.key in rows:
                found.append((f"{plain(block.dataset)}: {pair}" if several else pair, rows[block.key]))
        return found
