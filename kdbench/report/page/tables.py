"""Tables as HTML that can be read without the script; what the script needs stands in `data-` attributes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from kdbench.report.page.runs import RunDetails
from kdbench.report.table import ABSENT, BEST, TIED, Column, Entry, Group, Table

SPOKEN = {BEST: "best", TIED: "not distinguishable from the best"}
"""What is seen in a number's type, for those who hear it."""


@dataclass(frozen=True)
class Known:
    """The runs that the page holds, and the place of each by its id."""

    runs: Sequence[RunDetails]
    places: Mapping[str, int]

    @classmethod
    def of(cls, runs: Sequence[RunDetails]) -> Known:
        return cls(runs, {run.id: place for place, run in enumerate(runs)})

    def behind(self, entries: Iterable[Entry]) -> list[int]:
        """Places of the runs behind entries, each once, in order."""
        return list(dict.fromkeys(self.places[one] for entry in entries for one in entry.runs if one in self.places))


def table_html(table: Table, anchor: str, known: Known) -> str:
    """A section with a heading, one table a group, then caption and notes."""
    groups = "".join(_group(table, group, f"{anchor}-{place}", anchor, known) for place, group in enumerate(table.groups, start=1))
    return (
        f'<section class="table" aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(table.title)}</h2>\n'
        f"{groups}{_paragraphs((*table.caption, *table.notes), 'caption')}</section>\n"
    )


def _group(table: Table, group: Group, anchor: str, above: str, known: Known) -> str:
    title = f'<h3 id="{anchor}">{escape(group.title)}</h3>\n' if group.title else ""
    name = f"{above} {anchor}" if title else above
    head = "".join(f'<th scope="col"{_side(column)}>{escape(column.title)}</th>' for column in table.columns)
    teachers = sorted({teacher for place in known.behind(_all(group)) if (teacher := known.runs[place].teacher)})
    rows = "".join(_row(row, table.columns, teachers, known) for row in group.rows)
    return (
        f'<section class="group">{title}{_paragraphs(group.facts, "fact")}'
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}"><table aria-labelledby="{name}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n{_paragraphs(group.notes, 'note')}</section>\n"
    )


def _all(group: Group) -> Iterable[Entry]:
    return (entry for row in group.rows for entry in row)


def _paragraphs(sentences: Sequence[str], name: str) -> str:
    return "".join(f'<p class="{name}">{escape(one)}</p>\n' for one in sentences)


def _side(column: Column) -> str:
    return ' class="n"' if column.numeric else ""


def _row(row: Sequence[Entry], columns: Sequence[Column], teachers: Sequence[str], known: Known) -> str:
    cells = "".join(_cell(entry, column, place == 0, known) for place, (entry, column) in enumerate(zip(row, columns, strict=True)))
    return f"<tr{_chosen_by(row, teachers, known)}>{cells}</tr>\n"


def _chosen_by(row: Sequence[Entry], teachers: Sequence[str], known: Known) -> str:
    """What a row can be chosen by: that of the runs behind its first entry that has any; later ones also rest on a baseline's.

    A student trained alone stands beside every teacher of its block."""
    first = next((places for entry in row if (places := known.behind([entry]))), [])
    runs = [known.runs[place] for place in first]
    own = sorted({run.teacher for run in runs if run.role == "student" and run.teacher})
    found = {
        "student": [run.student for run in runs],
        "teacher": (own or teachers) if runs else [],
        "objective": [run.label or "" for run in runs],
        "state": [run.state for run in runs],
    }
    lines = {name: "\n".join(" ".join(one.split()) for one in dict.fromkeys(values) if one) for name, values in found.items()}
    return "".join(f' data-{name}="{escape(value)}"' for name, value in lines.items() if value)


def _cell(entry: Entry, column: Column, first: bool, known: Known) -> str:
    heads = first and not column.numeric
    tag, scope = ("th", ' scope="row"') if heads else ("td", "")
    places = known.behind([entry])
    behind = f' data-r="{" ".join(map(str, places))}"' if places else ""
    return f"<{tag}{scope}{_side(column)}{sorted_by(entry)}{behind}>{_printed(entry)}</{tag}>"


def sorted_by(entry: Entry) -> str:
    """The attribute that the script sorts by: the number itself, or that there is none. Text is sorted as it is printed."""
    if entry.value is None or entry.value in (ABSENT, ""):
        return ' data-v=""'
    if isinstance(entry.value, str):
        return ""
    value = float(entry.value)
    if math.isinf(value):
        return f' data-v="{"-" if value < 0 else ""}Infinity"'
    return ' data-v=""' if math.isnan(value) else f' data-v="{value!r}"'


def _printed(entry: Entry) -> str:
    whole = entry.text()
    # The interval stands last, so the text without it is the beginning of the whole.
    short = replace(entry, interval=None).text()
    text = escape(short) + (f'<span class="interval">{escape(whole[len(short) :])}</span>' if len(whole) > len(short) else "")
    if entry.emphasis in SPOKEN:
        text = f'<b class="{entry.emphasis}">{text}</b><span class="heard"> ({SPOKEN[entry.emphasis]})</span>'
    return f'<i class="apart">{text}</i><span class="heard"> (published elsewhere)</span>' if entry.apart else text
