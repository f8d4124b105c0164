"""Mistakes that can be seen in a printed table alone, or beside the tables that it quotes: wrong deltas, cells copied from a
neighbour, cells that differ from what they quote, and two values for one cell; and of detection, numbers that do not compare: teachers
that differ under one name, students that begin with parts of their teacher beside others that do not, and what a table says of a number.

`python -m benchmarks.lint_published [TABLE]` looks at one published table, or at all of them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import pandas as pd

from kdbench.published import table, tables

ROUNDING = 0.0102
"""Points: value, baseline and difference are each rounded to two decimals."""
LAST_DIGIT = 0.015
"""Points: a cell that is within one of the last digit of its original was rounded, not copied wrongly."""
LEAST_QUOTED = 2
"""So many cells of a row, and at least half of those that both have, are an earlier table's before the row counts as quoted."""
SAME = 1e-6

Pair = tuple[str, str]
Row = dict[Pair, float]


def earlier(name: str) -> list[pd.DataFrame]:
    """The published tables of years before this one's, the oldest first: what it may quote."""
    with (resources.files("kdbench") / "published" / "_tables.csv").open(encoding="utf-8") as file:
        years = pd.read_csv(file).set_index("table")["year"].sort_values(kind="stable")
    return [found for other in years.index[years < years[name]] if "top1" in (found := table(other))]


@dataclass(frozen=True)
class Finding:
    """`kind`: delta (value less baseline is not the printed difference), copied (the cell holds its source's value for a neighbour),
    suspect (the same, where the source has none for this cell itself), misquoted (it differs from its source otherwise), or
    contradiction (two values for one cell). Of detection: teacher (one name, another value than in the first source), inheritance (the
    student begins with parts of its teacher, and others of its pair do not), flag (the table says what is wrong). Numbers are in the unit
    of the table; `expected` is None where nobody says."""

    kind: str
    source: str
    where: str
    printed: float
    expected: float | None
    message: str


class _Cell(NamedTuple):
    source: str
    dataset: str
    method: str
    pair: Pair
    value: float
    delta: float | None
    delta_to: str | None

    @property
    def where(self) -> str:
        return _said(self.method, self.pair)


def lint(table: pd.DataFrame, against: Sequence[pd.DataFrame] = (), value: str = "top1") -> list[Finding]:
    """Look for mistakes in one printed table.

    A row (a method on one dataset) counts as quoted from an earlier table where at least two of its cells, and at least half of
    those that both tables have, are that table's (to the last digit); then its other cells are compared. A cell that some earlier
    table prints with this very value is never a finding.

    Args:
        table: source, dataset, teacher (null: none), student, method, the column `value`; and, where they were printed, delta and
            delta_to (the method that the difference is to).
        against: earlier tables with the same columns, the oldest first.

    Returns:
        Findings in the order of the table's rows, those of deltas and contradictions first.
    """
    cells = _cells(table, value)
    of_numbers = [*_deltas(cells), *_contradictions(cells), *_quotes(cells, [_cells(one, value) for one in against if value in one])]
    return [*of_numbers, *(_provenance(table, value) if "flag" in table else ())]


def _provenance(table: pd.DataFrame, value: str) -> list[Finding]:
    """Numbers that do not compare, though their names are the same."""
    found, teachers = [], dict[str, tuple[str, float]]()
    for row in table.itertuples():
        pair, printed = (row.teacher if isinstance(row.teacher, str) else "", row.student), float(getattr(row, value))
        where = _said(row.method, pair)
        if row.role == "teacher":
            source, first = teachers.setdefault(row.teacher, (row.source, printed))
            if abs(first - printed) > SAME:
                message = f"this teacher has {printed:.1f}, and {first:.1f} in {source}"
                found.append(Finding("teacher", row.source, where, printed, first, message))
        if isinstance(row.inherits, str) and row.inherits not in ("none", "unknown"):
            same_pair = (table["role"] == "distilled") & (table["teacher"] == row.teacher) & (table["student"] == row.student)
            others = sorted(set(table.loc[same_pair & (table["inherits"] != row.inherits), "method"]))
            if others:
                message = f"the student begins with its teacher's {row.inherits}; not so, or not known, of this pair: {', '.join(others)}"
                found.append(Finding("inheritance", row.source, where, printed, None, message))
        if isinstance(row.flag, str):
            found.append(Finding("flag", row.source, where, printed, None, row.flag))
    return found


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings for the terminal: a line each, under the name of their source."""
    by_source: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_source[finding.source].append(finding)
    lines = [f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"]
    for source, mine in by_source.items():
        lines += ["", source, *(f"  {one.kind}: {one.where}: {one.message}" for one in mine)]
    return "\n".join(lines) + "\n"


def _cells(table: pd.DataFrame, value: str) -> list[_Cell]:
    count = len(table)
    columns = [table[name].tolist() for name in ("source", "dataset", "teacher", "student", "method", value)]
    optional = [table[name].tolist() if name in table else [None] * count for name in ("delta", "delta_to")]
    found = []
    for source, dataset, teacher, student, method, number, delta, delta_to in zip(*columns, *optional, strict=True):
        if number == number:
            pair = (teacher if isinstance(teacher, str) else "", student)
            printed = float(delta) if delta is not None and delta == delta else None
            found.append(_Cell(source, dataset, method, pair, float(number), printed, delta_to if isinstance(delta_to, str) else None))
    return found


def _deltas(cells: list[_Cell]) -> list[Finding]:
    printed = {(cell.dataset, cell.pair, cell.method): cell.value for cell in cells}
    found = []
    for cell in cells:
        baseline = printed.get((cell.dataset, cell.pair, cell.delta_to or ""))
        if cell.delta is None or baseline is None:
            continue
        expected = round(cell.value - baseline, 6)
        if abs(expected - cell.delta) > ROUNDING:
            message = f"{cell.delta:+.2f} is printed, {cell.value:.2f} - {baseline:.2f} ({cell.delta_to}) is {expected:+.2f}"
            found.append(Finding("delta", cell.source, cell.where, cell.delta, expected, message))
    return found


def _contradictions(cells: list[_Cell]) -> list[Finding]:
    first: dict[tuple[str, str, Pair, str], float] = {}
    found = []
    for cell in cells:
        before = first.setdefault((cell.source, cell.dataset, cell.pair, cell.method), cell.value)
        if abs(before - cell.value) > SAME:
            message = f"{before:.2f} and {cell.value:.2f} are both printed"
            found.append(Finding("contradiction", cell.source, cell.where, cell.value, None, message))
    return found


def _quotes(cells: list[_Cell], against: list[list[_Cell]]) -> list[Finding]:
    originals = [original for one in against for original in _by_row(one).items()]
    found: dict[tuple[str, str, str, Pair], Finding] = {}
    for (source, dataset, method), row in _by_row(cells).items():
        of_method = [(name, theirs) for (name, on, of), theirs in originals if (on, of) == (dataset, method) and name != source]
        printed_as_it_is = {pair for _, theirs in of_method for pair in row.keys() & theirs.keys() if abs(row[pair] - theirs[pair]) < SAME}
        for name, theirs in of_method:
            if not _quoted(row, theirs):
                continue
            others = {of: cells_of for (one, on, of), cells_of in originals if (one, on) == (name, dataset) and of != method}
            for pair in row.keys() - printed_as_it_is:
                if pair in theirs and abs(row[pair] - theirs[pair]) < LAST_DIGIT:
                    continue
                finding = _judged(source, method, pair, row[pair], theirs, others, name)
                known = found.get((source, dataset, method, pair))
                # The oldest table that explains a cell explains it best; that it is a neighbour's explains more than that it differs.
                if finding and (known is None or (known.kind, finding.kind) == ("misquoted", "copied")):
                    found[source, dataset, method, pair] = finding
    places = {(cell.source, cell.dataset, cell.method, cell.pair): place for place, cell in enumerate(cells)}
    return [found[key] for key in sorted(found, key=places.__getitem__)]


def _by_row(cells: list[_Cell]) -> dict[tuple[str, str, str], Row]:
    rows: dict[tuple[str, str, str], Row] = defaultdict(dict)
    for cell in cells:
        rows[cell.source, cell.dataset, cell.method].setdefault(cell.pair, cell.value)
    return rows


def _quoted(row: Row, theirs: Row) -> bool:
    both = row.keys() & theirs.keys()
    same = sum(abs(row[pair] - theirs[pair]) < LAST_DIGIT for pair in both)
    return same >= LEAST_QUOTED and 2 * same >= len(both)


def _judged(source: str, method: str, pair: Pair, printed: float, theirs: Row, others: dict[str, Row], name: str) -> Finding | None:
    """What a cell of a quoted row is, that its source does not print so."""
    where, expected = _said(method, pair), theirs.get(pair)
    neighbours = [_said(method, other) for other, one in theirs.items() if other != pair and abs(one - printed) < SAME]
    if expected is None:
        message = f"{printed:.2f} is what {name} has for {' and '.join(neighbours)}; it has nothing for this pair"
        return Finding("suspect", source, where, printed, None, message) if neighbours else None
    neighbours += [_said(other, pair) for other, row in others.items() if pair in row and abs(row[pair] - printed) < SAME]
    if neighbours:
        message = f"{printed:.2f} is what {name} has for {' and '.join(neighbours)}; for this cell it has {expected:.2f}"
        return Finding("copied", source, where, printed, expected, message)
    message = f"{printed:.2f} is printed where {name}, which the row otherwise quotes, has {expected:.2f}"
    return Finding("misquoted", source, where, printed, expected, message)


def _said(method: str, pair: Pair) -> str:
    return f"{method}, {f'{pair[0]} -> ' if pair[0] else ''}{pair[1]}"


def lint_published(name: str | None = None) -> list[Finding]:
    """What is wrong, or looks wrong, in one published table, or in all of them.

    Raises:
        KdbenchError: there is no table of that name.
    """
    found: list[Finding] = []
    for one in [name] if name is not None else [known for known, _ in tables()]:
        cells = table(one)
        found += lint(cells, earlier(one)) if "top1" in cells else lint(cells, value="AP")
    return found


if __name__ == "__main__":
    findings = lint_published(*sys.argv[1:2])
    print(findings_text(findings), end="")
    sys.exit(bool(findings))
