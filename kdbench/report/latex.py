"""LaTeX of a report: tables for a paper's own source, and the whole report as a document that pdflatex compiles.

What is written needs nothing beyond Debian's texlive-latex-base and texlive-latex-recommended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdbench.report.document import Document, Figure
from kdbench.report.latex_layout import EM, PAGE_WIDTH, Fit, body, fit, is_long, part_width, title_lines, width
from kdbench.report.latex_text import AMS, comment, escaped
from kdbench.report.table import BEST, TIED, Column, Entry, Group, Table
from kdbench.report.text import emphasis, pieces

RAISED = "†‡*"
"""Marks that are set as superscripts; others stand beside the number."""
COMMANDS = {BEST: r"\textbf", TIED: r"\underline", "apart": r"\textit"}

TOGETHER = 15
"""Groups of so many rows are not torn by the end of a page."""

PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=2.5cm]{geometry}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
% Outlines instead of bitmaps, with what every LaTeX has where lmodern is not installed.
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{\usepackage{ae,aecompl}}
\usepackage{amssymb}
\usepackage{booktabs}
\usepackage{longtable}
\usepackage{graphicx}
\usepackage[font=footnotesize,labelfont=bf]{caption}
\newsavebox{\figurebox}
% A figure at its own size, or as wide as the text; its caption says what it shows where the file is not beside this one.
\newcommand{\figurefile}[1]{\IfFileExists{#1}{\sbox{\figurebox}{\includegraphics{#1}}%
  \ifdim\wd\figurebox>\linewidth\includegraphics[width=\linewidth]{#1}\else\usebox{\figurebox}\fi}%
  {\fbox{\texttt{\detokenize{#1}} is not here}}}
\raggedbottom
\sloppy
"""


@dataclass(frozen=True)
class Shape:
    """What the entries of a column of numbers have: each gets a LaTeX column of its own, so that it stands below its like."""

    marks: bool
    spread: bool
    interval: bool

    @property
    def columns(self) -> int:
        return 1 + self.marks + self.spread + self.interval


def label(suite: str, name: str) -> str:
    """`tab:<suite>-<name>`, of characters that a label may hold."""
    return f"tab:{_plain(suite)}-{_plain(name)}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.:-]+", "-", name)


def table(given: Table, label: str, page: float = PAGE_WIDTH) -> str:
    """A table as a fragment for \\input: a `table` float with booktabs rules, or a `longtable` where it is longer than a page.

    Above each row, comments name the runs behind each of its entries.

    Args:
        label: for \\ref; what a label cannot hold becomes `-`.
        page: the width that it may take, in points.
    """
    fitted = fit(given, page)
    long = is_long(given, fitted)
    packages = ["booktabs", *(["longtable"] if long else []), *(["amssymb"] if _has_symbols(given) else [])]
    caption = " ".join([rf"\textbf{{{_sentence(given.title)}}}", *map(escaped, given.caption)])
    titled = rf"\caption[{{{escaped(given.title)}}}]{{{caption}\label{{{_plain(label)}}}}}"
    size = f"{fitted.size}\\setlength{{\\tabcolsep}}{{{fitted.gap:g}pt}}"
    parts = [_tabular(given, fitted, part, (titled if place == 0 else "") if long else None) for place, part in enumerate(fitted.parts)]
    lines = [f"% Needs \\usepackage[T1]{{fontenc}} and \\usepackage{{{','.join(packages)}}}"]
    if long:
        lines += [f"{{{size}\\setlength{{\\LTcapwidth}}{{\\linewidth}}", *parts, *_notes(given), "}"]
    else:
        lines += [r"\begin{table}[htbp]", r"\centering", titled, size, "\\par\\medskip\n".join(parts), *_notes(given), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _sentence(title: str) -> str:
    return escaped(title) + ("" if title.endswith((".", "?", "!")) else ".")


def _has_symbols(given: Table) -> bool:
    rows = [entry.text() for group in given.groups for row in group.rows for entry in row]
    said = [text for group in given.groups for text in (group.title, *group.facts, *group.notes)]
    titles = [column.title for column in given.columns]
    return any(char in AMS for text in (given.title, *given.caption, *given.notes, *rows, *said, *titles) for char in text)


def _tabular(given: Table, fitted: Fit, part: Sequence[int], titled: str | None) -> str:
    """One tabular of some columns; a longtable where `titled`, its caption or nothing, is given."""
    columns = [given.columns[place] for place in part]
    shapes = [_shape(given, place, fitted.stacked) for place in part]
    spec = " ".join(_spec(column, shape, fitted, place) for place, column, shape in zip(part, columns, shapes, strict=True))
    spec = f"@{{}}{spec}@{{}}"
    total = sum(shape.columns for shape in shapes)
    room = part_width(given, fitted, part)
    head = ["\\toprule", _head(given, part, shapes, fitted.stacked), "\\midrule"]
    # At the head of a page a rule would stand below a rule.
    between = r"\midrule" if titled is None else r"\addlinespace[6pt]"
    rows = [
        line
        for place, group in enumerate(given.groups)
        for line in ([between] if place else []) + list(_group(given, group, fitted, part, shapes, room))
    ]
    if titled is None:
        return "\n".join([f"\\begin{{tabular}}{{{spec}}}", *head, *rows, r"\bottomrule", r"\end{tabular}"])
    again = f"\\multicolumn{{{total}}}{{@{{}}l@{{}}}}{{(continued)}} \\\\"
    begin = [f"\\begin{{longtable}}{{{spec}}}"]
    # A longtable counts as a table, with or without caption.
    begin = [*begin, f"{titled} \\\\"] if titled else [r"\addtocounter{table}{-1}", *begin]
    turns = [*begin, *head, r"\endfirsthead", again, *head, r"\endhead", r"\bottomrule", r"\endfoot"]
    return "\n".join([*turns, *rows, r"\end{longtable}"])


def _shape(given: Table, place: int, stacked: bool) -> Shape:
    if stacked or not given.columns[place].numeric:
        return Shape(False, False, False)
    parts = [pieces(row[place]) for group in given.groups for row in group.rows]
    return Shape(*(any(getattr(part, name) for part in parts) for name in ("marks", "spread", "interval")))


def _spec(column: Column, shape: Shape, fitted: Fit, place: int) -> str:
    if place in fitted.folded:
        return f"p{{{fitted.folded[place]:.0f}pt}}"
    if fitted.stacked and column.numeric:
        return "c"
    return "r" + "@{}l" * (shape.columns - 1) if column.numeric else "l"


def _head(given: Table, part: Sequence[int], shapes: Sequence[Shape], stacked: bool) -> str:
    cells = []
    for place, shape in zip(part, shapes, strict=True):
        column = given.columns[place]
        lines = [escaped(line) for line in title_lines(column, body(given, place, stacked))]
        side = ("c" if stacked or shape.columns > 1 else "r") if column.numeric else "l"
        stack = r" \\ ".join(lines)
        title = stack if len(lines) == 1 else f"\\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{stack}\\end{{tabular}}"
        cells.append(f"\\multicolumn{{{shape.columns}}}{{c}}{{{title}}}" if shape.columns > 1 else title)
    return " & ".join(cells) + r" \\"


def _group(given: Table, group: Group, fitted: Fit, part: Sequence[int], shapes: Sequence[Shape], room: float) -> Iterator[str]:
    if group.title:
        title = rf"\textit{{{escaped(group.title)}}}"
        # A title never widens the table.
        shown = title if EM[fitted.size] * width(group.title) < room else f"\\parbox[t]{{{room:.0f}pt}}{{\\raggedright {title}}}"
        total = sum(shape.columns for shape in shapes)
        yield f"\\multicolumn{{{total}}}{{@{{}}l@{{}}}}{{{shown}}} \\\\*"
        yield r"\addlinespace[2pt]"
    for place, row in enumerate(group.rows, start=1):
        yield from _comments(given.columns, group, row, part)
        # A page breaks between groups where they are short enough.
        end = r"\\" if place == len(group.rows) or len(group.rows) > TOGETHER else r"\\*"
        yield from _row(given.columns, row, fitted, part, shapes, end)


def _comments(columns: Sequence[Column], group: Group, row: Sequence[Entry], part: Sequence[int]) -> Iterator[str]:
    """Which runs are behind each entry, entries with the same runs together; not again in a second tabular for the column that both
    have."""
    named = " | ".join(text for text in (group.title, row[0].text()) if text)
    titles: dict[tuple[str, ...], list[str]] = {}
    for place in part:
        if row[place].runs and (place or part[0] == place):
            titles.setdefault(row[place].runs, []).append(columns[place].title)
    for runs, mine in titles.items():
        yield comment(f"% {named}, {'; '.join(mine)}: run {', '.join(runs)}")


def _row(
    columns: Sequence[Column], row: Sequence[Entry], fitted: Fit, part: Sequence[int], shapes: Sequence[Shape], end: str
) -> Iterator[str]:
    if fitted.stacked:
        yield from _stacked(columns, row, fitted, part, end)
        return
    cells: list[str] = []
    for place, shape in zip(part, shapes, strict=True):
        entry = row[place]
        first, spread, interval = _set(entry, columns[place].numeric)
        value, marks = first
        if not columns[place].numeric:
            cells.append(_text_cell(f"{value}{marks}{spread}{interval}", place in fitted.folded))
            continue
        cells.append(value)
        wanted = ((shape.marks, marks), (shape.spread, spread), (shape.interval, interval))
        cells += [text for has, text in wanted if has]
    yield f"{' & '.join(cells)} {end}"


def _stacked(columns: Sequence[Column], row: Sequence[Entry], fitted: Fit, part: Sequence[int], end: str) -> Iterator[str]:
    """Values on one line, spreads and intervals smaller on the next."""
    upper, lower = [], []
    for place in part:
        (value, marks), spread, interval = _set(row[place], columns[place].numeric)
        if not columns[place].numeric:
            upper.append(_text_cell(f"{value}{marks}{spread}{interval}", place in fitted.folded))
            lower.append("")
            continue
        upper.append(value + (f"\\rlap{{{marks}}}" if marks else ""))
        below = f"{spread}{interval}".removeprefix(r"\,").removeprefix("~")
        lower.append(f"{{\\scriptsize {below}}}" if below else "")
    if any(lower):
        # Far enough apart that an underline is no fraction's.
        yield " & ".join(upper) + r" \\*[1pt]"
        yield f"{' & '.join(lower)} {end}[3pt]"
    else:
        yield f"{' & '.join(upper)} {end}"


def _text_cell(text: str, folded: bool) -> str:
    return rf"\raggedright\hspace{{0pt}}\let\\\tabularnewline {text}" if folded else text


def _set(entry: Entry, numeric: bool) -> tuple[tuple[str, str], str, str]:
    """The value and its marks, the spread and the interval, each as LaTeX."""
    parts = pieces(entry)
    number = numeric and isinstance(entry.value, (int, float))
    value = _number(parts.value) if number else escaped(parts.value)
    for kind in emphasis(entry):
        value = f"{COMMANDS[kind]}{{{value}}}"
    marks = "".join(_mark(mark) for mark in entry.marks)
    spread = f"\\,{_number(parts.spread.strip())}" if parts.spread else ""
    interval = f"~{_number(parts.interval.strip())}" if parts.interval else ""
    return (value, marks), spread.replace(r"$\pm$ ", r"$\pm$\,"), interval


def _number(text: str) -> str:
    """A formatted number, or several, with signs as wide as they should be. Between & no bracket is taken for an option."""
    return text.replace("-", "$-$").replace("<", "$<$").replace("±", r"$\pm$")


def _mark(mark: str) -> str:
    return rf"\textsuperscript{{{escaped(mark)}}}" if mark in RAISED else rf"\,{escaped(mark)}"


def _notes(given: Table) -> list[str]:
    """What stands below a table: the facts of its groups, then their notes, then those of the table, each thing said once."""
    several = len(given.groups) > 1
    lines = []
    for kind in ("facts", "notes"):
        for titles, texts in _by_groups([(group.title, getattr(group, kind)) for group in given.groups]).items():
            whose = f"\\textit{{{escaped('; '.join(titles))}:}} " if several and len(titles) < len(given.groups) else ""
            shown = [" ".join(map(escaped, texts))] if kind == "facts" else [_note(text) for text in texts]
            lines += [f"{whose if place == 0 else ''}{text}\\par" for place, text in enumerate(shown)]
    lines += [f"{_note(text)}\\par" for text in given.notes]
    opened = [r"\par\medskip", r"{\footnotesize\raggedright\setlength{\parindent}{0pt}\setlength{\parskip}{1pt}"]
    return [*opened, *lines, "}"] if lines else []


def _by_groups(said: Sequence[tuple[str, Sequence[str]]]) -> Mapping[tuple[str, ...], list[str]]:
    """Texts by the titles of the groups that say them, so that what many say is written once."""
    titles: dict[str, list[str]] = {}
    for title, texts in said:
        for text in texts:
            titles.setdefault(text, []).append(title)
    found: dict[tuple[str, ...], list[str]] = {}
    for text, mine in titles.items():
        found.setdefault(tuple(mine), []).append(text)
    return found


def _note(text: str) -> str:
    mark, rest = text[:1], text[1:]
    return f"{_mark(mark)}{escaped(rest)}" if mark and mark in RAISED else escaped(text)


def left_out(given: Table, rows: int) -> str:
    """What stands in a document instead of a table that is too long to be printed."""
    return f"\\par\\noindent\\textbf{{{_sentence(given.title)}}} Its {rows} rows are not printed here: they stand in report.md.\\par\n"


def document(given: Document, suite: str, fragments: Sequence[str] | None = None) -> str:
    """The whole report, to be compiled with pdflatex in its folder; the same report gives the same bytes.

    Args:
        fragments: the document's tables as `table` makes them, where they are there already.

    Its figures are the files `figures/<name>.pdf`; where one is not there, its caption stands alone.
    """
    lines = [PREAMBLE, r"\begin{document}", f"{{\\noindent\\LARGE\\bfseries {escaped(given.title)}\\par}}", r"\medskip"]
    lines += [f"\\noindent {escaped(fact)}\\par" for fact in given.facts]
    if given.warnings:
        lines += [r"\section*{Warnings}", r"\begin{itemize}"]
        lines += [f"\\item \\texttt{{[{escaped(warning.code)}]}} {escaped(warning.text())}" for warning in given.warnings]
        lines += [r"\end{itemize}"]
    lines += [table(one, label(suite, one.name)) for one in given.tables] if fragments is None else fragments
    lines += [_figure(figure, suite) for figure in given.figures]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def _figure(figure: Figure, suite: str) -> str:
    """
    Raises:
        ValueError: the name of its file is none that \\includegraphics can be given.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", figure.name):
        raise ValueError(f"the figure {figure.name!r} is named with other characters than letters, digits, _ and -: name its file anew")
    caption = rf"\caption[{{{escaped(figure.title)}}}]{{\textbf{{{_sentence(figure.title)}}} {escaped(figure.caption)}}}"
    where = f"\\figurefile{{figures/{figure.name}.pdf}}"
    return "\n".join(
        [r"\begin{figure}[htbp]", r"\centering", where, caption, f"\\label{{fig:{_plain(suite)}-{figure.name}}}", r"\end{figure}", ""]
    )
