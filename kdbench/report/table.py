"""The one model of a table. Renderers read it; nothing that is claimed is made in a renderer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

ABSENT = "–"
BEST, TIED = "best", "tied"


@dataclass(frozen=True)
class Entry:
    """One box of a table: numbers stay numbers until a renderer prints them.

    `value` (a number or text) is printed times `scale` with `format`, then `marks`, then `± spread`, then `[interval]`; None or NaN: there
    is none. A number below `least` is printed as `<least`. `emphasis` is `BEST` (bold), `TIED` (underlined: not distinguishable from the
    best) or nothing; `apart` (italic) marks a number that somebody else published. `runs` are the ids of the cells behind it.
    """

    value: float | str | None = None
    spread: float | None = None
    interval: tuple[float, float] | None = None
    format: str = ""
    scale: float = 1.0
    least: float | None = None
    marks: tuple[str, ...] = ()
    emphasis: str = ""
    apart: bool = False
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("value", "spread", "interval"):
            held = getattr(self, name)
            if held != held or (isinstance(held, tuple) and held[0] != held[0]):
                object.__setattr__(self, name, None)

    def text(self) -> str:
        """The entry in plain text."""
        value, spread, interval = self.parts
        return f"{value}{''.join(self.marks)}{spread}{interval}"

    @cached_property
    def parts(self) -> tuple[str, str, str]:
        """Value, spread and interval in plain text, with the blanks and signs that join them; the marks stand after the value."""
        if self.value is None:
            return ABSENT, "", ""
        if isinstance(self.value, str):
            return self.value, "", ""
        if self.least is not None and self.value < self.least:
            return f"<{self.least:g}", "", ""
        spread = "" if self.spread is None else f" ± {self._number(self.spread)}"
        interval = "" if self.interval is None else f" [{self._number(self.interval[0])}, {self._number(self.interval[1])}]"
        return self._number(self.value), spread, interval

    def _number(self, value: float) -> str:
        """A number below 0 keeps its sign where it is rounded to 0; 0 has none."""
        return format(self.scale * value, self.format.replace("z", "") if value < 0 else self.format)


EMPTY = Entry("")
"""A box where nothing is meant to stand: a baseline beside itself."""


def row(runs: tuple[str, ...], *entries: Entry) -> tuple[Entry, ...]:
    """Entries that the same runs are behind."""
    return tuple(replace(entry, runs=runs) for entry in entries)


@dataclass(frozen=True)
class Column:
    """`essential`: shown where there is no room for all columns (a narrow screen, one column of a paper)."""

    title: str
    numeric: bool = True
    essential: bool = True


@dataclass(frozen=True)
class Group:
    """Rows that belong together (all pairs, or one pair): `facts` stand under its title, `notes` explain the marks in its rows."""

    title: str
    rows: tuple[tuple[Entry, ...], ...]
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """`caption` says, sentence by sentence, what the numbers are and what is claimed of them; `notes` are details; `name` is for files
    and labels."""

    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    caption: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = "table"
