"""Renderings of the table model: plain text for a terminal, and Markdown."""

from __future__ import annotations

import io

import pytest

from kdbench.report.frame import costs, frame
from kdbench.report.table import Column, Entry, Group, Table
from kdbench.report.text import markdown, terminal
from kdbench.report.write import report_tables


def accuracy_of(suite):
    return report_tables(frame(suite.store, suite.checked()), costs(suite.store, suite.checked()), suite.checked())[:1]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (Entry(0.93125, spread=0.004, format=".2f", scale=100), "93.12 ± 0.40"),
        (Entry(0.005, interval=(0.001, 0.009), format="+z.2f", scale=100, marks=("*",)), "+0.50* [+0.10, +0.90]"),
        (Entry(-1e-9, format="+z.2f"), "+0.00"),
        (Entry(0.0004, format=".3f", least=0.001), "<0.001"),
        (Entry(None, marks=("‡",)), "–‡"),
        (Entry("4/5", marks=("†",)), "4/5†"),
    ],
)
def test_an_entry_prints_its_numbers_in_their_format(entry, text):
    assert entry.text() == text


def tricky():
    row = (Entry("a|b [x](y) `c` <d>"), Entry(1.0, format=".2f", marks=("*",)))
    return Table("T|itle", (Column("objective", numeric=False), Column("v|alue")), (Group("g", (row,), notes=("* a|b",)),), ("caption",))


def test_markdown_escapes_what_would_be_markup():
    lines = markdown("suite", ["a fact"], [tricky()]).splitlines()
    assert "| a\\|b [x]\\(y) \\`c\\` \\<d> | 1.00\\* |" in lines
    assert "| objective | v\\|alue |" in lines and "|:---|---:|" in lines
    assert "## T\\|itle" in lines and "- caption" in lines


def test_the_terminal_shows_labels_as_they_are_and_no_escape_codes_in_a_file():
    out = io.StringIO()
    terminal("suite", ["a fact"], [tricky()], out, width=80)
    assert "a|b [x](y) `c` <d>" in out.getvalue() and "\x1b" not in out.getvalue()


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_prints_every_entry_whole_within_its_width(made, width):
    suite = made().finish_all()
    for name in ("ce", "kd", "cc"):
        suite.profile(name)
    tables = report_tables(frame(suite.store, suite.checked()), costs(suite.store, suite.checked()), suite.checked())
    out = io.StringIO()
    terminal("suite", [], tables, out, width=width)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for table in tables:
        for row in table.groups[0].rows:
            assert any(all(entry.text() in line for entry in row) for line in lines)


def test_a_narrow_terminal_loses_no_entry(made):
    suite = made().finish_all()
    out = io.StringIO()
    terminal("suite", [], accuracy_of(suite), out, width=60)
    assert max(map(len, out.getvalue().splitlines())) <= 60
    assert out.getvalue().count("5/5") == 4


def test_a_terminal_that_knows_no_greek_is_still_served(made):
    whole = io.BytesIO()
    out = io.TextIOWrapper(whole, encoding="ascii")
    terminal("suite", [], accuracy_of(made().finish_all()), out, width=100)
    out.flush()
    assert b"cc (taylor)" in whole.getvalue()
