"""Plain text of a report: for a terminal, and as Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO
from unicodedata import combining, east_asian_width

from kdbench.report.document import Document, Owed
from kdbench.report.table import BEST, TIED, Column, Entry, Group, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

PLAIN_WIDTH = 110
WIDEST = 140
FIGURES = "figures"
"""The folder of the figures, beside the report."""

PLAIN = {
    BEST: ("**", "bold (the best)"),
    TIED: ("_", "underlined (not distinguishable from the best)"),
    "apart": ("~", "italic (published by others)"),
}
"""What stands around a number where no font can tell it apart, and for what."""
STYLES = {BEST: "bold", TIED: "underline", "apart": "italic"}
TAGS = {BEST: ("**", "**"), TIED: ("<u>", "</u>"), "apart": ("*", "*")}


HARMLESS = dict.fromkeys(ord(char) for char in "0123456789.,+-±/ abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ()=Δ▲△▽▼†‡–")
"""Characters that mean nothing to Markdown within a line, alone or together (brackets could begin a link)."""


class Pieces(NamedTuple):
    """An entry as a renderer sets it: `value + marks + spread + interval` is `Entry.text()`; each may be empty."""

    value: str
    marks: str
    spread: str
    interval: str


def pieces(entry: Entry) -> Pieces:
    """The parts of an entry's text, with the blanks and signs that join them."""
    value, spread, interval = entry.parts
    return Pieces(value, "".join(entry.marks), spread, interval)


def emphasis(entry: Entry) -> tuple[str, ...]:
    """How an entry is told apart: `BEST` or `TIED`, then "apart". An empty box, and one without a value, is not."""
    if entry.value is None or entry.value == "":
        return ()
    return (*((entry.emphasis,) if entry.emphasis else ()), *(("apart",) if entry.apart else ()))


def terminal(document: Document, out: TextIO, width: int | None = None) -> None:
    """Print a report; plain text, without escape codes, when `out` is not a terminal.

    Args:
        width: in characters; None: the terminal's own, or 110 where there is none.
    """
    from rich.console import Console
    from rich.text import Text

    live = out.isatty()
    own = min(Console(file=out).width, WIDEST) if live else PLAIN_WIDTH
    whole = io.StringIO()
    console = Console(file=whole, width=width or own, force_terminal=live, highlight=False, markup=False, emoji=False)
    console.print(Text(document.title, style="bold"))
    for fact in document.facts:
        console.print(Text(fact))
    for warning in document.warnings:
        console.print(Text(_warned(warning), style="bold"))
    console.print()
    for table in document.tables:
        _print_table(console, table, live)
    for figure in document.figures:
        console.print(Text.assemble((f"{figure.title} ({FIGURES}/{figure.name}.png): ", "bold"), figure.caption))
    text = "\n".join(line.rstrip() for line in whole.getvalue().splitlines()) + "\n"
    # A terminal that cannot show ± or Δ must not cost anybody the report.
    encoding = getattr(out, "encoding", None) or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))


def _warned(warning: Owed) -> str:
    return f"Warning [{warning.code}] {warning.text()}"


def _print_table(console: Console, table: Table, live: bool) -> None:
    from rich.text import Text

    console.print(Text(table.title, style="bold underline"))
    for group in table.groups:
        console.print()
        if group.title:
            console.print(Text(group.title, style="bold"))
        for fact in group.facts:
            console.print(Text(fact))
        plain = None if live else _plain_grid(table.columns, group, console.width)
        if plain is None:
            console.print(_grid(table.columns, group, console.width, live))
        else:
            console.file.write(plain)
        for note in group.notes:
            console.print(Text(note))
    explained = () if live else _explained(table)
    if table.caption or table.notes or explained:
        console.print()
    for sentence in (*explained, *table.caption, *table.notes):
        console.print(Text(sentence, style="dim"))
    console.print()


def _explained(table: Table) -> tuple[str, ...]:
    """One sentence on the signs that stand for fonts, where there are any."""
    used = {name for group in table.groups for row in group.rows for entry in row for name in emphasis(entry)}
    said = [f"{sign}x{sign} is {meaning}" for name, (sign, meaning) in PLAIN.items() if name in used]
    return (f"In plain text {', '.join(said)}.",) if said else ()


def _shown(entry: Entry, live: bool, stacked: bool = False) -> Text:
    """The entry for the terminal: its value in a font of its own, or between signs where there are no fonts; spread and interval on
    lines of their own where it is `stacked`."""
    from rich.text import Text

    parts, kinds = pieces(entry), emphasis(entry)
    rest = f"{parts.marks}{parts.spread}{parts.interval}"
    if stacked:
        rest = parts.marks + "".join(f"\n{part.strip()}" for part in (parts.spread, parts.interval) if part)
    if live:
        return Text.assemble((parts.value, " ".join(STYLES[kind] for kind in kinds)), rest)
    signs = "".join(PLAIN[kind][0] for kind in kinds)
    return Text(f"{signs}{parts.value}{signs[::-1]}{rest}")


def _plain_grid(columns: tuple[Column, ...], group: Group, width: int) -> str | None:
    """The same as `_grid` without fonts, written at once (rich takes a second for a thousand rows); None where something must be folded
    that is no title."""
    from textwrap import wrap

    shown = [[_shown(entry, False).plain for entry in row] for row in group.rows]
    gap, fitted = _fit(columns, shown, width)
    widths = [own for own in fitted if own is not None]
    every = [text for row in shown for text in row]
    if len(widths) < len(columns) or any(len(text) > widths[place % len(columns)] for place, text in enumerate(every)):
        return None
    # A character that is two columns wide, or none, is rich's to measure.
    if not all(text.isascii() or not any(east_asian_width(char) in "WF" or combining(char) for char in text) for text in every):
        return None
    titles = [wrap(column.title, own, break_long_words=False, break_on_hyphens=False) for column, own in zip(columns, widths, strict=True)]
    most = max(map(len, titles), default=0)
    head = [[""] * (most - len(title)) + title for title in titles]
    rows = [[title[line] for title in head] for line in range(most)]

    def line(cells: Sequence[str]) -> str:
        places = zip(cells, widths, columns, strict=True)
        return (" " * gap).join(text.rjust(own) if column.numeric else text.ljust(own) for text, own, column in places) + "\n"

    rule = "─" * (sum(widths) + gap * (len(widths) - 1)) + "\n"
    return "".join(map(line, rows)) + rule + "".join(map(line, shown))


def _grid(columns: tuple[Column, ...], group: Group, width: int, live: bool) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    shown = [[_shown(entry, live) for entry in row] for row in group.rows]
    gap, widths = _fit(columns, [[entry.plain for entry in row] for row in shown], width)
    if None in widths:
        shown = [[_shown(entry, live, stacked=True) for entry in row] for row in group.rows]
        gap, widths = _fit(columns, [[entry.plain for entry in row] for row in shown], width)
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for column, own in zip(columns, widths, strict=True):
        title = Text(column.title)
        grid.add_column(title, justify="right" if column.numeric else "left", vertical="bottom", overflow="fold", width=own)
    for row in shown:
        most = max((entry.plain.count("\n") for entry in row), default=0)
        # Titles stand at the bottom of their row, and so would a label beside numbers of two lines.
        grid.add_row(*(entry + "\n" * (most - entry.plain.count("\n")) for entry in row))
    return grid


def _fit(columns: tuple[Column, ...], rows: Sequence[Sequence[str]], width: int) -> tuple[int, Sequence[int | None]]:
    """The gap between columns and their widths, in characters: titles are folded before labels, and labels before numbers."""
    texts = [[row[place] for row in rows] for place in range(len(columns))]
    whole = [_longest(line for text in mine for line in text.split("\n")) for mine in texts]
    folded = [
        full if column.numeric else _longest(word for text in mine for word in text.split())
        for column, mine, full in zip(columns, texts, whole, strict=True)
    ]
    for gap, narrowest in ((2, whole), (1, whole), (1, folded)):
        widths = [max(least, _longest(column.title.split())) for column, least in zip(columns, narrowest, strict=True)]
        left = width - sum(widths) - gap * (len(widths) - 1)
        if left < 0:
            continue
        for place, column in enumerate(columns):
            more = min(left, max(0, max(whole[place], len(column.title)) - widths[place]))
            widths[place] += more
            left -= more
        return gap, widths
    return 1, [None] * len(columns)  # too narrow for whole numbers: fold everything


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def markdown(document: Document) -> str:
    """A report as Markdown: warnings first, then the tables with their captions and notes below each, then the figures."""
    lines = [f"# {_escaped(document.title)}", ""]
    for fact in document.facts:
        lines += [_line(fact), ""]
    lines += [f"- {_line(_warned(warning))}" for warning in document.warnings]
    lines += [""] if document.warnings else []
    for table in document.tables:
        lines += [f"## {_escaped(table.title)}", ""]
        for group in table.groups:
            lines += _markdown_group(table.columns, group)
        lines += [f"- {_line(sentence)}" for sentence in (*table.caption, *table.notes)]
        lines += [""] if table.caption or table.notes else []
    for figure in document.figures:
        lines += [f"## {_escaped(figure.title)}", "", f"![{_alternative(figure.caption)}](<{FIGURES}/{figure.name}.png>)", ""]
        lines += [_line(figure.caption), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_group(columns: tuple[Column, ...], group: Group) -> list[str]:
    lines = [f"### {_escaped(group.title)}", ""] if group.title else []
    for fact in group.facts:
        lines += [_line(fact), ""]
    lines.append(_markdown_row(_escaped(column.title) for column in columns))
    lines.append("|" + "|".join("---:" if column.numeric else ":---" for column in columns) + "|")
    lines += [_markdown_row(map(_markdown_entry, row)) for row in group.rows]
    lines.append("")
    for note in group.notes:
        lines += [_line(note), ""]
    return lines


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_entry(entry: Entry) -> str:
    parts = pieces(entry)
    value = _escaped(parts.value)
    for kind in emphasis(entry) if value else ():
        opened, closed = TAGS[kind]
        value = f"{opened}{value}{closed}"
    rest = f"{parts.marks}{parts.spread}{parts.interval}"
    # The blank before ± must stay, and nothing may open a link across the seam.
    return f"{value}{' ' if rest[:1].isspace() else ''}{_escaped(rest)}"


def _escaped(text: str) -> str:
    """Text that Markdown prints as it stands: no pipe ends a cell; no star, underscore, backtick, angle bracket, entity or link turns
    into markup."""
    if not text.translate(HARMLESS):
        return " ".join(text.split())
    for special in "\\`*|<":
        text = text.replace(special, f"\\{special}")
    # Inside a word an underscore is no markup, and names stay readable.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text).replace("~~", r"\~\~")
    text = text.replace("](", "]\\(")
    return " ".join(text.split())


def _line(text: str) -> str:
    """Escaped text that begins a line: no heading, list, quotation or rule."""
    return re.sub(r"^(?:(\d+)([.)])(?= |$)|([-+#>=]))", lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", _escaped(text))


def _alternative(text: str) -> str:
    """Escaped text inside the brackets of an image."""
    return re.sub(r"([\[\]])", r"\\\1", _escaped(text).replace("]\\(", "]("))
