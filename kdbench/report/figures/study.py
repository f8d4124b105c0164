"""What the figures are drawn from, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.words import plain
from kdbench.report.manifest import Block, Manifest, Metric, labels
from kdbench.report.study import lines as lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Place = tuple[str, str, str]
"""Dataset, teacher (empty: none) and student."""


@dataclass(frozen=True)
class Drawing:
    """A figure as files: `caption` says in words what it shows (it stands in for the figure where that cannot be seen); `svg` is one
    `<svg>` element whose ids begin with `name`, so that several can stand in one page."""

    name: str
    title: str
    caption: str
    pdf: bytes
    png: bytes
    svg: str


@dataclass(frozen=True)
class Leaf:
    """One figure before it is written; long ones are spread over several."""

    figure: Figure
    title: str
    caption: str


@dataclass(frozen=True)
class Drawn:
    """What is drawn: a suite's manifest and its frames, with values as stored (an accuracy is a fraction).

    `students`: runs as `comparison.student_runs` gives them. `summaries`: as `stats.repeats.summarise`. `comparisons`: dataset, teacher,
    student, baseline, objective, n, difference, low, high, low_all, high_all, verdict. `costs`: as `frame.costs`. `histories`: as
    `history.histories`.
    """

    manifest: Manifest
    students: pd.DataFrame
    summaries: pd.DataFrame
    comparisons: pd.DataFrame
    costs: pd.DataFrame | None = None
    histories: pd.DataFrame | None = None

    @property
    def metric(self) -> Metric:
        return self.manifest["metrics"][0]

    @property
    def scale(self) -> float:
        """What a stored value is multiplied with to be printed."""
        return 100.0 if self.metric["percent"] else 1.0

    @property
    def decimals(self) -> int:
        return 2 if self.metric["percent"] else 4

    @property
    def margin(self) -> float | None:
        """The least difference that matters, as stored; None where the suite names none."""
        return self.manifest.get("margin")

    @property
    def confidence(self) -> str:
        return f"{100 * (1 - self.manifest['alpha']):.6g} %"

    @property
    def blocks(self) -> list[Block]:
        return self.manifest["blocks"]

    @property
    def quantity(self) -> str:
        """The metric with its unit, and its direction where that is not the usual one: `top-1, %`, `NLL (lower is better)`."""
        return plain(self.metric["label"]) + (", %" if self.metric["percent"] else "") + self.direction

    @property
    def unit(self) -> str:
        """The unit of a difference, after a comma, or nothing."""
        return ", points" if self.metric["percent"] else ""

    @property
    def direction(self) -> str:
        return "" if self.metric["higher_is_better"] else " (lower is better)"

    @property
    def names(self) -> dict[str, str]:
        """The printed label of each objective in the suite's order."""
        return {name: plain(label) for name, label in labels(self.manifest).items()}

    def title(self, block: Block) -> str:
        """`teacher → student`, with the dataset where the suite has several."""
        several = len({one["dataset"] for one in self.blocks}) > 1
        pair = f"{block['teacher']} → {block['student']}" if block["teacher"] else f"{block['student']} alone"
        return plain(f"{block['dataset']}: {pair}" if several else pair)

    @property
    def datasets(self) -> str:
        return plain(", ".join(dict.fromkeys(block["dataset"] for block in self.blocks)))


def place_of(line: Mapping[str, Any]) -> Place:
    # A null teacher is None or NaN, by way of where the frame comes from.
    return line["dataset"], line["teacher"] if isinstance(line["teacher"], str) else "", line["student"]


def by_block(table: pd.DataFrame) -> dict[Place, pd.DataFrame]:
    """The rows of each block, in their order."""
    keys = table["teacher"].where(table["teacher"].notna(), "")
    grouped = table.assign(teacher=keys).groupby(["dataset", "teacher", "student"], sort=False)
    return {(str(key[0]), str(key[1]), str(key[2])): rows for key, rows in grouped}


def rows_of(study: Drawn, *tables: pd.DataFrame) -> list[str]:
    """The objectives that any of the tables names, in the suite's order."""
    there = {name for table in tables for name in table["objective"]}
    return [name for name in study.names if name in there]


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def sentences(*said: str) -> str:
    return " ".join(one for one in said if one)


def listed(values: Iterable[object]) -> str:
    """`3`, or `3 to 5` for several counts."""
    seen = sorted({int(str(value)) for value in values})
    return "none" if not seen else f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"
