"""Plain text of a report: for a terminal, and as Markdown."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, reduce
from typing import TextIO

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from kdbench.report.document import Document
from kdbench.report.table import BEST, TIED, Column, Entry, Table

PLAIN_WIDTH = 110
WIDEST = 140
GAP = 2
LONGEST_WORD, LONGEST_NAME = 32, 40
"""The longest word that is printed whole in LaTeX, whose lines do not break within a word, and elsewhere; in characters of a terminal."""
FIGURES = "figures"
"""The folder of the figures, beside the report."""

STYLES = {BEST: "bold", TIED: "underline", "apart": "italic"}
PLAIN = {BEST: ("**", "**"), TIED: ("_", "_"), "apart": ("~", "~")}
TAGS = {BEST: ("**", "**"), TIED: ("<u>", "</u>"), "apart": ("*", "*")}
MEANINGS = {BEST: "bold (the best)", TIED: "underlined (not distinguishable from the best)", "apart": "italic (published by others)"}

MARKUP = re.compile(r"[\\`*|<$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)|~(?=~)|(?<=~)~|(?<=\])\(")
"""What Markdown could take for markup within a line."""


def visible(text: str) -> str:
    """Text on one line: white space is a single space; control characters, as of ANSI escapes, are �."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in text)
    return " ".join(text.split())


@lru_cache(1 << 16)
def shortened(text: str, longest: int = LONGEST_WORD) -> str:
    """Text on one line, each word that is wider than so many characters of a terminal with … in its middle."""

    def shorter(found: re.Match[str]) -> str:
        word, half = found[0], longest // 2
        long = cell_len(word) > longest
        return f"{chop_cells(word, half)[0]}…{chop_cells(word[::-1], half - 1)[0][::-1]}" if long else word

    return re.sub(r"\S{17,}", shorter, visible(text))


def emphasis(entry: Entry) -> tuple[str, ...]:
    """The emphases of an entry: `BEST` or `TIED`, then "apart". An empty box, and one without a value, has none."""
    if entry.value is None or entry.value == "":
        return ()
    return (*((entry.emphasis,) if entry.emphasis else ()), *(("apart",) if entry.apart else ()))


def emphasized(value: str, entry: Entry, around: Mapping[str, tuple[str, str]]) -> str:
    """The printed value of an entry, between what stands around each of its emphases."""
    return reduce(lambda inner, kind: inner.join(around[kind]), reversed(emphasis(entry)), value)


def title_lines(title: str, cells: float) -> list[str]:
    """A column's title folded to so many characters, or to its longest word; brackets stay whole."""
    whole = re.sub(r"\[[^\[\]]*\]", lambda found: found[0].replace(" ", "\xa0"), visible(title))
    most = max([int(cells), *map(len, whole.split(" "))])
    return [line.replace("\xa0", " ") for line in textwrap.wrap(whole, most, break_long_words=False, break_on_hyphens=False)]


@cache
def environment(escape: Callable[[str], str]) -> Environment:
    """The templates of the report. `<< value >>` is escaped, unless it is `Markup`; `<% %>` holds statements."""
    return Environment(
        *("<%", "%>", "<<", ">>", "<#", "#>"),
        loader=PackageLoader("kdbench.report", "templates"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(str(value))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def terminal(document: Document, out: TextIO, width: int | None = None) -> None:
    """Print a report; plain text, without escape codes, when `out` is not a terminal.

    Args:
        width: in characters; None: the terminal's own, or 110 where there is none.
    """
    live = out.isatty()
    own = min(Console(file=out).width, WIDEST) if live else PLAIN_WIDTH
    whole = io.StringIO()
    console = Console(file=whole, width=width or own, force_terminal=live, highlight=False, markup=False, emoji=False)

    def line(text: str, style: str = "") -> None:
        console.print(Text(visible(text), style=style))

    line(document.title, "bold")
    for fact in document.facts:
        line(fact)
    if explained := _explained(document.tables, live):
        line(explained, "dim")
    for table in document.tables:
        _print_table(console, line, table, live)
    console.print()
    for code, text in document.warning_lines:
        line(f"Warning [{code}] {text}", "bold")
    for figure in document.figures:
        line(f"{figure.title} ({FIGURES}/{figure.name}.png): {figure.caption}")
    text = "\n".join(printed.rstrip() for printed in whole.getvalue().splitlines()) + "\n"
    # A terminal that has no ± or Δ prints ? for them.
    encoding = getattr(out, "encoding", None) or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))


def _print_table(console: Console, line: Callable[..., None], table: Table, live: bool) -> None:
    for places in (range(len(table.columns)), [place for place, column in enumerate(table.columns) if column.essential]):
        columns = [table.columns[place] for place in places]
        shown = [[[_shown(row[place], live) for place in places] for row in group.rows] for group in table.groups]
        widths, fits = column_widths(columns, [[text.plain for text in row] for rows in shown for row in rows], console.width, GAP)
        if fits:
            break
    console.print()
    line(table.title, "bold underline")
    for group, rows in zip(table.groups, shown, strict=True):
        console.print()
        for text in filter(None, (group.title, *group.facts)):
            line(text, "bold" if text == group.title else "")
        # The columns of all groups stand below each other: one header is enough.
        header = group is table.groups[0]
        grid = Grid(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False, show_header=header)
        for column, width in zip(columns, map(int, widths), strict=True):
            title = "\n".join(title_lines(column.title, width))
            grid.add_column(title, justify="right" if column.numeric else "left", vertical="bottom", overflow="fold", width=width)
        for row in rows:
            grid.add_row(*row)
        console.print(grid)
        for note in group.notes:
            line(note)
    left_out = "; ".join(dict.fromkeys(column.title for column in table.columns if column not in columns))
    texts = (*((f"Not shown at this width (report.md shows them): {left_out}.",) if left_out else ()), *table.caption, *table.notes)
    if texts:
        console.print()
    for text in texts:
        line(text, "dim")


def is_text(columns: Sequence[Column], place: int) -> bool:
    """Whether a column may be folded: one of texts, and the first."""
    return place == 0 or not columns[place].numeric


def column_widths(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], room: float, gap: float, measure: Callable[[str], float] = cell_len
) -> tuple[list[float], bool]:
    """The width of each column, and whether they fit. Texts share what the numbers leave: folded text gets at least a third of what it
    lacks beyond its longest word, otherwise it does not fit, since it is a column of single words.

    Args:
        rows: the texts of the entries, whose lines are divided by line feeds.
        room, gap: of all columns, and between two of them, in the unit of `measure`.
    """
    texts = [set(column) for column in zip(*rows, strict=True)] or [set() for _ in columns]
    whole, least = [], []
    for place, column in enumerate(columns):
        body = max((measure(line) for text in texts[place] for line in text.split("\n")), default=0)
        title = max(map(measure, title_lines(column.title, body)), default=0)
        whole.append(max(body, title))
        words = (measure(word) for text in texts[place] for word in text.split())
        least.append(max([title, *words]) if is_text(columns, place) else whole[-1])
    lacking, left = sum(whole) - sum(least), room - sum(least) - gap * (len(columns) - 1)
    share = min(1.0, left / lacking) if lacking else float(left >= 0)
    return [low + max(share, 0.0) * (high - low) for low, high in zip(least, whole, strict=True)], share >= 1 / 3


def _shown(entry: Entry, live: bool) -> Text:
    """The entry for the terminal: its value in a font of its own, or between signs where there are no fonts."""
    value, rest = shortened(entry.parts[0], LONGEST_NAME), "".join((*map(visible, entry.marks), *entry.parts[1:]))
    if live:
        return Text.assemble((value, " ".join(STYLES[kind] for kind in emphasis(entry))), rest)
    return Text(emphasized(value, entry, PLAIN) + rest)


def _explained(tables: Iterable[Table], live: bool) -> str:
    """One sentence on the signs that stand for fonts, where there are any."""
    used = {kind for table in tables for group in table.groups for row in group.rows for entry in row for kind in emphasis(entry)}
    meanings = [f"{'x'.join(PLAIN[kind])} is {meaning}" for kind, meaning in MEANINGS.items() if kind in used]
    return f"In plain text {', '.join(meanings)}." if meanings and not live else ""


def markdown(document: Document) -> str:
    """A report as Markdown: the tables with their captions and notes below each, then warnings, then figures."""
    texts = environment(escaped)
    texts.filters |= {"entry": _markdown_entry, "line": _line, "text": lambda text: Markup(escaped(text))}
    texts.filters["bracketed"] = lambda text: Markup(re.sub(r"([\[\]])", r"\\\1", escaped(text)))
    return texts.get_template("report.md.j2").render(document=document, folder=FIGURES)


def _markdown_entry(entry: Entry) -> Markup:
    value, *rest = entry.parts
    return Markup("".join((emphasized(escaped(shortened(value, LONGEST_NAME)), entry, TAGS), *map(escaped, entry.marks), *rest)))


def escaped(text: str) -> str:
    """Text that Markdown prints as it stands."""
    return MARKUP.sub(r"\\\g<0>", visible(text))


def _line(text: str) -> Markup:
    """Escaped text that begins a line: no heading, list, quotation, rule or definition of a link."""
    return Markup(re.sub(r"^(\d*)([-+#>=.)\[])", r"\1\\\2", escaped(text)))
