"""How a table fits a page of LaTeX: the size of its type, what is folded, and where it is divided.

Widths are estimates from the widths of Computer Modern, in points; they decide a layout and are printed nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import combining

from kdbench.report.latex_text import CHARACTERS, LETTERS
from kdbench.report.table import Column, Table
from kdbench.report.text import pieces

PAGE_WIDTH = 455.0
"""The text width of `latex.document`, 16 cm, in points."""
PAGE_LINES = 52
LONGEST = 40
"""Rows of the longest table that is not divided over pages."""

EM = {r"\small": 9.25, r"\footnotesize": 8.5}
NARROW = {**dict.fromkeys("iljtfrI.,:;'|!()[]·", 0.33), **dict.fromkeys("-/", 0.36), **dict.fromkeys("ck sevxyz", 0.47)}
WIDE = {**dict.fromkeys("mwMW%", 0.88), **dict.fromkeys("+=<>±×Δ△▽▲▼→≤≥−", 0.8)}
LEAST_TEXT = 6.0
"""No column of text is folded below so many em."""


WIDEST_GAP = 6.0
LAYOUTS = (
    (r"\small", 4.0, False, False),
    (r"\footnotesize", 2.5, False, False),
    (r"\footnotesize", 3.5, False, True),
    (r"\footnotesize", 4.0, True, False),
    (r"\footnotesize", 2.5, True, True),
)
"""What is tried, from the best: size, least gap, whether stacked, whether text is folded."""


@dataclass(frozen=True)
class Fit:
    """`size` is a command; `gap` is \\tabcolsep in points; `stacked`: spread and interval stand on a line of their own below the value;
    `folded` holds the width of each column whose text is folded, in points; `parts` holds, for each tabular, its columns."""

    size: str
    gap: float
    stacked: bool
    folded: dict[int, float]
    parts: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=1 << 16)
def width(text: str) -> float:
    """The estimated width of a text, in em."""
    return sum(NARROW.get(char) or WIDE.get(char) or _other(char) for char in text)


def _other(char: str) -> float:
    if char.isascii() or char in LETTERS or char in CHARACTERS:
        return 0.76 if char.isupper() else 0.53
    return 0.0 if combining(char) else 4.4  # as its code, [U+4E2D]


def fit(table: Table, page: float) -> Fit:
    """The largest layout that fits `page` points: smaller type, then folded text, then stacked numbers, then several tabulars."""
    every = tuple(range(len(table.columns)))
    for size, gap, stacked, fold in LAYOUTS:
        widths = [EM[size] * natural(table, place, stacked) for place in every]
        gaps = 2 * max(len(every) - 1, 1)
        room = page - sum(widths) - gap * gaps
        folded = _folded(table, widths, room, EM[size]) if fold and room < 0 else {}
        if room >= 0 or folded:
            return Fit(size, gap + min(max(room, 0.0) / gaps, WIDEST_GAP - gap), stacked, folded, (every,))
    return _divided(table, page)


def natural(table: Table, place: int, stacked: bool = False) -> float:
    """The width of a column that folds nothing but its title, in em."""
    own = body(table, place, stacked)
    return max(own, _most(title_lines(table.columns[place], own)))


def body(table: Table, place: int, stacked: bool = False) -> float:
    """The width of a column's entries, in em."""
    first, rest = _widths(_Same(table), place)
    return max(first, rest) if stacked and table.columns[place].numeric else first + rest


class _Same:
    """A table as a key: itself and no other, however alike, without looking at a thousand entries."""

    def __init__(self, table: Table):
        self.table = table

    def __hash__(self) -> int:
        return id(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.table is self.table


@lru_cache(maxsize=64)
def _widths(same: _Same, place: int) -> tuple[float, float]:
    """The widths of a column's values with their marks, and of its spreads and intervals, in em."""
    parts = [pieces(row[place]) for group in same.table.groups for row in group.rows]
    first = _most({part.value for part in parts}) + _most({part.marks for part in parts})
    rest = _most({part.spread for part in parts}) + _most({part.interval for part in parts})
    return first, rest


def _most(texts: Iterable[str]) -> float:
    return max(map(width, texts), default=0.0)


def title_lines(column: Column, body: float) -> list[str]:
    """The title folded to the width of the column's body, or to its longest word where that is wider; brackets are not torn."""
    words = re.findall(r"\[[^\[\]]*\]|\S+", column.title)
    most = max(body, _most(words))
    lines: list[str] = []
    for word in words:
        if lines and width(f"{lines[-1]} {word}") <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _folded(table: Table, widths: Sequence[float], room: float, em: float) -> dict[int, float]:
    """Widths for the columns of text, narrowed in proportion; nothing where they would become too narrow to read."""
    texts = [place for place, column in enumerate(table.columns) if not column.numeric and widths[place] > LEAST_TEXT * em]
    whole = sum(widths[place] for place in texts)
    share = (whole + room) / whole if texts else 0.0
    narrowed = {place: share * widths[place] for place in texts}
    return narrowed if all(own >= LEAST_TEXT * em for own in narrowed.values()) else {}


def _divided(table: Table, page: float) -> Fit:
    """Several tabulars below each other, each with the first column."""
    size, gap = r"\footnotesize", 4.0
    label, *widths = (EM[size] * natural(table, place) for place in range(len(table.columns)))
    folded = {} if label <= page / 3 else {0: page / 3}
    own = [wide + 2 * gap for wide in widths]
    most = page - min(label, page / 3)
    parts = _filled(own, most)
    # As many, but alike: not one with all and one with the rest.
    while len(closer := _filled(own, most := 0.97 * most)) == len(parts) and most > max(own):
        parts = closer
    return Fit(size, gap, False, folded, tuple(parts) or ((0,),))


def _filled(widths: Sequence[float], most: float) -> list[tuple[int, ...]]:
    """Columns, from the second on, in as few parts as hold them; each part has the first column, too."""
    parts: list[list[int]] = []
    left = 0.0
    for place, own in enumerate(widths, start=1):
        if not parts or own > left:
            parts.append([0])
            left = most
        parts[-1].append(place)
        left -= own
    return [tuple(part) for part in parts]


def part_width(table: Table, fitted: Fit, part: Sequence[int]) -> float:
    """The width of one tabular, in points."""
    columns = [fitted.folded.get(place) or EM[fitted.size] * natural(table, place, fitted.stacked) for place in part]
    return sum(columns) + 2 * fitted.gap * (len(part) - 1)


def is_long(table: Table, fitted: Fit) -> bool:
    """Whether a table, with its caption and notes, is too long for one page."""
    rows = sum(len(group.rows) for group in table.groups)
    lines = len(fitted.parts) * (rows * (1.7 if fitted.stacked else 1) + 1.5 * len(table.groups) + 4)
    words = [table.title, *table.caption, *table.notes, *(text for group in table.groups for text in (*group.facts, *group.notes))]
    return rows > LONGEST or lines + sum(9 * width(text) / PAGE_WIDTH + 0.4 for text in words) > PAGE_LINES
