"""Plain text of a table: for a terminal, and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from kdbench.report.table import Column, Group, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

PLAIN_WIDTH = 110
WIDEST = 140


def terminal(title: str, facts: Sequence[str], tables: Sequence[Table], out: TextIO, width: int | None = None) -> None:
    """Print a title, facts and tables; plain text, without escape codes, when `out` is not a terminal.

    Args:
        width: in characters; None: the terminal's own, or 110 where there is none.
    """
    from rich.console import Console
    from rich.text import Text

    live = out.isatty()
    own = min(Console(file=out).width, WIDEST) if live else PLAIN_WIDTH
    whole = io.StringIO()
    console = Console(file=whole, width=width or own, force_terminal=live, highlight=False, markup=False, emoji=False)
    console.print(Text(title, style="bold"))
    for fact in facts:
        console.print(Text(fact))
    console.print()
    for table in tables:
        _print_table(console, table)
    text = "\n".join(line.rstrip() for line in whole.getvalue().splitlines()) + "\n"
    # A terminal that cannot show ± or Δ must not cost anybody the report.
    encoding = getattr(out, "encoding", None) or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))


def _print_table(console: Console, table: Table) -> None:
    from rich.text import Text

    console.print(Text(table.title, style="bold underline"))
    for group in table.groups:
        console.print()
        console.print(Text(group.title, style="bold"))
        for fact in group.facts:
            console.print(Text(fact))
        console.print(_grid(table.columns, group, console.width))
        for note in group.notes:
            console.print(Text(note))
    if table.caption or table.notes:
        console.print()
    for sentence in (*table.caption, *table.notes):
        console.print(Text(sentence, style="dim"))
    console.print()


def _grid(columns: tuple[Column, ...], group: Group, width: int) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    gap, widths = _fit(columns, group, width)
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for column, own in zip(columns, widths, strict=True):
        title = Text(column.title)
        grid.add_column(title, justify="right" if column.numeric else "left", vertical="bottom", overflow="fold", width=own)
    for row in group.rows:
        grid.add_row(*(Text(entry.text()) for entry in row))
    return grid


def _fit(columns: tuple[Column, ...], group: Group, width: int) -> tuple[int, Sequence[int | None]]:
    """The gap between columns and their widths, in characters: titles are folded before labels, and labels before numbers."""
    texts = [[row[place].text() for row in group.rows] for place in range(len(columns))]
    whole = [_longest(mine) for mine in texts]
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


def markdown(title: str, facts: Sequence[str], tables: Sequence[Table]) -> str:
    """The title, facts and tables as Markdown, with their captions and notes below each."""
    lines = [f"# {_escaped(title)}", ""]
    for fact in facts:
        lines += [_escaped(fact), ""]
    for table in tables:
        lines += [f"## {_escaped(table.title)}", ""]
        for group in table.groups:
            lines += _markdown_group(table.columns, group)
        lines += [f"- {_escaped(sentence)}" for sentence in (*table.caption, *table.notes)]
        lines += [""] if table.caption or table.notes else []
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_group(columns: tuple[Column, ...], group: Group) -> list[str]:
    lines = [f"### {_escaped(group.title)}", ""]
    for fact in group.facts:
        lines += [_escaped(fact), ""]
    lines.append(_markdown_row(column.title for column in columns))
    lines.append("|" + "|".join("---:" if column.numeric else ":---" for column in columns) + "|")
    lines += [_markdown_row(entry.text() for entry in row) for row in group.rows]
    lines.append("")
    for note in group.notes:
        lines += [_escaped(note), ""]
    return lines


def _markdown_row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(_escaped(text) for text in texts) + " |"


def _escaped(text: str) -> str:
    """Text that Markdown prints as it stands: no pipe ends a cell; no star, backtick, angle bracket or link turns into markup."""
    for special in "\\`*|<":
        text = text.replace(special, f"\\{special}")
    text = text.replace("](", "]\\(")
    return " ".join(text.split())
