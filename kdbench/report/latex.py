"""LaTeX of a report: tables for a paper's own source, and the whole report as a document.

What is written needs nothing beyond Debian's texlive-latex-base and texlive-latex-recommended. Whether a table fits one column or both is
estimated, in points for \\footnotesize Computer Modern, whose letters are wider than those of Times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, count
from math import ceil

from markupsafe import Markup
from rich.cells import cell_len

from kdbench.report.document import Document
from kdbench.report.latex_text import OTHER, escaped, number
from kdbench.report.table import BEST, TIED, Column, Entry, Group, Table
from kdbench.report.text import column_widths, emphasized, environment, is_text, shortened, title_lines, visible

COMMANDS = {BEST: (r"\textbf{", "}"), TIED: (r"\underline{", "}"), "apart": (r"\textit{", "}")}
LETTER, LINE = 4.6, 9.5
GAP = 6.0
"""Between two columns; \\tabcolsep is half of it."""
COLUMN, PAGE, PAGE_HEIGHT = 221.0, 450.0, 500.0
"""The narrowest column and page of the usual papers, and what a float's rows and notes may take of a page's height."""
WIDE, NARROW = re.compile("[A-Zmw%±+Δ▲△▼▽…-]"), re.compile(r"[ .,:;!|'()\[\]ijl]")


@dataclass(frozen=True)
class Layout:
    """`width`: of the table, in points; one that is wider than a page is scaled to it. `stacked`: spread and interval stand below their
    number. `columns`: the width of each column, in letters. `shares`: of a column of text, in the width of such columns, 1 on average; 0
    for numbers. `lines`: the height of the highest row."""

    width: float
    stacked: bool
    columns: tuple[float, ...]
    shares: tuple[float, ...]
    lines: float


@lru_cache(1 << 16)
def measure(text: str) -> float:
    """The width of a text in letters of average width."""
    return cell_len(text) + 0.6 * len(WIDE.findall(text)) - 0.4 * len(NARROW.findall(text))


def arranged(table: Table) -> Layout:
    """The first layout that fits: as wide as a column, as wide as a page, stacked, and on a page that is wider than any."""
    columns = [replace(column, title=shortened(column.title)) for column in table.columns]
    wider = ((PAGE * 1.15**tried, stacked) for tried in count() for stacked in (False, True))
    for width, stacked in chain([(COLUMN, False)], wider):
        rows = [[_measured(entry, stacked) for entry in row] for group in table.groups for row in group.rows]
        widths, fits = column_widths(columns, rows, width / LETTER, GAP / LETTER, measure)
        if fits:
            break
    texts = [widths[place] if is_text(columns, place) else 0.0 for place in range(len(columns))]
    mean = sum(texts) / sum(map(bool, texts))
    folded = {len(title_lines(text, width)) for row in rows for text, width in zip(row, texts, strict=True) if width}
    return Layout(width, stacked, tuple(widths), tuple(text / mean for text in texts), max({2 if stacked else 1, *folded}))


def _measured(entry: Entry, stacked: bool) -> str:
    value, spread, interval = entry.parts
    return f"{shortened(value)}{''.join(entry.marks)}{chr(10) if stacked else ''}{spread}{interval}"


def divided(table: Table, layout: Layout, below: float) -> list[list[Group]]:
    """The groups of each float, of which the first has so many points of text below: none is higher than a page, and a group that is not
    is whole."""
    floats: list[list[Group]] = [[]]
    left, most = PAGE_HEIGHT - below, int(0.8 * PAGE_HEIGHT / LINE / layout.lines)
    for group in table.groups:
        for start in range(0, max(len(group.rows), 1), most):
            title = f"{group.title} (continued)" if start and group.title else group.title
            piece = replace(group, title=title, rows=group.rows[start : start + most])
            need = LINE * (1 + layout.lines * len(piece.rows)) + height((" ".join((title, *group.facts)), " ".join(group.notes)), layout)
            if floats[-1] and need > left:
                floats.append([])
                left = PAGE_HEIGHT
            floats[-1].append(piece)
            left -= need
    return floats


def height(texts: Sequence[str], layout: Layout) -> float:
    """The height of texts as wide as the float, in points."""
    return sum(LINE * ceil(LETTER * cell_len(text) / min(layout.width, PAGE)) for text in texts)


def label(suite: str, name: str) -> str:
    """`tab:<suite>-<name>`, of characters that a label may hold."""
    return f"tab:{_plain(suite)}-{_plain(name)}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.:-]+", "-", name)


def table(given: Table, label: str) -> str:
    """A table as a fragment for \\input: one float as wide as a column, or as both, with tabularx and booktabs; several floats where it
    is higher than a page. Above each row, comments name the runs behind its entries.

    Args:
        label: for \\ref; what a label cannot hold becomes `-`.
    """
    layout, below = arranged(given), (*given.caption, *given.notes)
    inside = (tall := height(below, layout)) < PAGE_HEIGHT / 2
    columns, heads = [], []
    for column, width, share in zip(given.columns, layout.columns, layout.shares, strict=True):
        # Columns of text share what the numbers leave.
        columns.append(rf">{{\hsize={share:.3f}\hsize\raggedright\arraybackslash}}X" if share else "r")
        lines = title_lines(shortened(column.title), width)
        heads.append(escaped(column.title) if share else r"\\".join(map(escaped, lines)).join((r"\kdhead{", "}")))
    values = {"given": given, "label": _plain(label), "layout": layout, "spec": " ".join(columns), "head": " & ".join(heads)}
    floats = divided(given, layout, tall if inside else 0.0)
    return _render("table.tex.j2", "", **values, floats=floats, below=below, inside=inside, column=COLUMN, page=PAGE)


def _render(template: str, written: str = "", **values: object) -> str:
    texts = environment(escaped)
    texts.filters |= {"code": Markup, "runs": _runs, "cells": _cells, "sentence": lambda text: text if text[-1:] in ".?!" else f"{text}."}
    return texts.get_template(template).render(**values, letters=OTHER.search(written or repr(values)) is not None)


def _runs(row: Sequence[Entry], columns: Sequence[Column], group: Group) -> Iterator[Markup]:
    """Comments on the runs behind the entries of a row, those with the same runs together."""
    titles: dict[tuple[str, ...], list[str]] = {}
    for column, entry in zip(columns, row, strict=True):
        if entry.runs:
            titles.setdefault(entry.runs, []).append(column.title)
    named = " | ".join(filter(None, (group.title, row[0].text())))
    return (Markup(visible(f"% {named}, {'; '.join(mine)}: run {', '.join(runs)}")) for runs, mine in titles.items())


def _cells(row: Sequence[Entry], layout: Layout) -> Markup:
    """A row: beside a number its spread and interval, or below it; its marks stand in the gap behind, so that numbers stay aligned."""
    cells = []
    for entry, share in zip(row, layout.shares, strict=True):
        value, *rest = entry.parts
        shown = emphasized(escaped(value) if isinstance(entry.value, str) else number(value), entry, COMMANDS)
        marks = "".join(rf"\textsuperscript{{{escaped(mark)}}}" if mark in "†‡*" else escaped(mark) for mark in entry.marks)
        behind = number("".join(rest).strip())
        marks = rf"\rlap{{{marks}}}" if marks and not share else marks
        cells.append(
            rf"\kdstack{{{shown}{marks}}}{{{behind}}}" if layout.stacked and behind else f"{shown}{'~' * bool(behind)}{behind}{marks}"
        )
    return Markup(" & ".join(cells))


def left_out(given: Table, rows: int) -> str:
    """What stands in a document instead of a table that is too long to be printed."""
    return f"\\par\\noindent\\textbf{{{escaped(given.title)}.}} Its {rows} rows are not printed here. They are in report.md.\\par\n"


def document(given: Document, suite: str, fragments: Sequence[str]) -> str:
    """The whole report, to be compiled in its folder; the same report gives the same bytes.

    Args:
        fragments: the document's tables, as `table` makes them.

    Its figures are the files `figures/<name>.pdf`; where one is not there, its caption stands alone.
    """
    return _render("report.tex.j2", f"{replace(given, tables=())}{fragments}", document=given, suite=_plain(suite), tables=fragments)
