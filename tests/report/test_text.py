"""Renderings of the table model: plain text for a terminal, and Markdown."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdbench.report.document import Document, Figure, ReportWarning
from kdbench.report.table import BEST, EMPTY, TIED, Column, Entry, Group, Table
from kdbench.report.text import emphasis, markdown, terminal
from tests.report.columns import VERSUS_KD

NUMBER = {"format": ".2f", "scale": 100.0}


def report(*tables, **more):
    return Document("suite", ("a fact",), tables, **more)


LOSSES = ("ce", "sp", "cc (taylor)", "cka (centred)", "rcka (centred, ours)", "rcka (released)")
VERDICTS = ("", "= equal", "▼ worse", "▽ worse, below the margin", "▲ better", "△ better, below the margin", "! unstable")


def compared(losses=LOSSES, groups=("all pairs (2 students x 4 teachers)", "digits · student s · teacher t")):
    """A table as wide as that of one baseline."""
    delta = Entry(-0.5312, interval=(-1.0523, 0.0977), format="+z.2f", scale=100)
    p = Entry(0.0004, format=".3f", least=0.001)
    rows = [
        (Entry(name), Entry(0.9312, spread=0.124, **NUMBER), delta, p, Entry(VERDICTS[place % len(VERDICTS)]))
        for place, name in enumerate(losses)
    ]
    return Table("top-1 compared with kd", VERSUS_KD, tuple(Group(title, tuple(rows)) for title in groups))


def rendered(document, width=None, live=False):
    out = io.StringIO()
    out.isatty = lambda: live
    terminal(document, out, width=width)
    return out.getvalue()


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (Entry(0.93125, spread=0.004, format=".2f", scale=100), "93.12 ± 0.40"),
        (Entry(0.005, interval=(0.001, 0.009), format="+z.2f", scale=100, marks=("*",)), "+0.50* [+0.10, +0.90]"),
        (Entry(-1e-9, interval=(-0.5, -0.0), format="+z.2f"), "-0.00 [-0.50, +0.00]"),
        (Entry(0.0004, format=".3f", least=0.001), "<0.001"),
        (Entry(None, marks=("‡",)), "–‡"),
        (Entry("4/5", marks=("†",)), "4/5†"),
        (Entry(0.5, spread=0.1, interval=(0.4, 0.6), format=".1f", marks=("†", "▲")), "0.5†▲ ± 0.1 [0.4, 0.6]"),
        (Entry(0.0004, spread=0.1, interval=(0.4, 0.6), format=".3f", least=0.001), "<0.001"),
    ],
)
def test_an_entry_prints_its_numbers_in_their_format(entry, text):
    assert entry.text() == text


def tricky():
    row = (Entry("a|b [x](y) `c` <d>"), Entry(1.0, format=".2f", marks=("*",)))
    return Table("T|itle", (Column("objective", numeric=False), Column("v|alue")), (Group("g", (row,), notes=("* a|b",)),), ("caption",))


def told_apart():
    """One entry of each kind."""
    row = (
        Entry("cka"),
        Entry(0.9399, spread=0.0061, emphasis=BEST, marks=("▲",), **NUMBER),
        Entry(0.9359, spread=0.0188, emphasis=TIED, **NUMBER),
        Entry(0.7333, apart=True, **NUMBER),
        Entry("*_a_*", emphasis=BEST, apart=True),
    )
    columns = (Column("objective", numeric=False), Column("a"), Column("b"), Column("c"), Column("d", numeric=False))
    return Table("T", columns, (Group("g", (row,)),), ("caption",))


def test_markdown_escapes_what_would_be_markup():
    lines = markdown(report(tricky())).splitlines()
    assert "| a\\|b [x]\\(y) \\`c\\` \\<d> | 1.00\\* |" in lines
    assert "| objective | v\\|alue |" in lines and "|:---|---:|" in lines
    assert "## T\\|itle" in lines and "- caption" in lines


def test_markdown_tells_the_best_the_tied_and_the_published_apart_and_still_escapes():
    (line,) = [line for line in markdown(report(told_apart())).splitlines() if line.startswith("| cka")]
    assert line == "| cka | **93.99**▲ ± 0.61 | <u>93.59</u> ± 1.88 | *73.33* | ***\\*\\_a\\_\\**** |"


def plain_of(text):
    """What a reader of Markdown sees, without the markup."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    assert not {token.type for one in tokens for token in one.children or ()} - {"text", "text_special", "softbreak"}
    return ["".join(token.content for token in one.children) for one in tokens if one.type == "inline"], [one.type for one in tokens]


@given(some.text(some.sampled_from("ab1 \\`*_|<>[]()#-+.!&~;:$=é中lt"), min_size=1, max_size=12).filter(str.strip))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_markdown_prints_any_text_as_it_stands(text):
    given_table = Table("T", (Column(f"x{text}", numeric=False),), (Group("", ((Entry(f"x{text}"),),), facts=(text,)),), (text,))
    seen, kinds = plain_of(markdown(Document("t", (), (given_table,))).replace("# t\n", "", 1))
    whole = " ".join(text.split())
    assert seen == ["T", whole, " ".join(f"x{text}".split()), " ".join(f"x{text}".split()), whole]
    assert kinds.count("heading_open") == 1 and kinds.count("list_item_open") == 1 and "hr" not in kinds


def test_an_empty_box_and_one_without_a_value_are_never_told_apart():
    assert emphasis(replace(EMPTY, emphasis=BEST, apart=True)) == emphasis(Entry(None, emphasis=TIED)) == ()
    table = Table("T", (Column("a"), Column("b")), (Group("g", ((replace(EMPTY, emphasis=BEST), Entry(None, emphasis=BEST)),)),))
    assert "|  | – |" in markdown(report(table)) and "*" not in rendered(report(table))


def test_both_renderings_show_each_code_of_warnings_on_one_line_after_the_tables():
    warnings = (
        ReportWarning("few-repeats", "n = 2: nothing is tested"),
        ReportWarning("incomplete", "digits · student small: 1 run *failed*"),
        ReportWarning("few-repeats", "mnist: n = 1"),
    )
    figure = Figure("seeds", "Every seed", "c")
    text = rendered(report(tricky(), warnings=warnings, figures=(figure,)), width=120)
    assert "\nWarning [few-repeats] n = 2: nothing is tested; mnist: n = 1\n" in text
    assert text.index("caption") < text.index("Warning [incomplete] digits · student small: 1 run *failed*") < text.index("Every seed")
    lines = markdown(report(tricky(), warnings=warnings, figures=(figure,))).splitlines()
    places = [
        lines.index(line)
        for line in ("- caption", "## Warnings", "- `[incomplete]` digits · student small: 1 run \\*failed\\*", "## Every seed")
    ]
    assert places == sorted(places) and "- `[few-repeats]` n = 2: nothing is tested; mnist: n = 1" in lines


def test_figures_are_images_with_captions_in_markdown_and_words_on_a_terminal():
    figure = Figure("seeds", "Every seed", "Each point [x](y) is a run.")
    lines = markdown(report(figures=(figure,))).splitlines()
    assert "![Each point \\[x\\]\\(y) is a run.](figures/seeds.png)" in lines and "Each point [x]\\(y) is a run." in lines
    assert "Every seed (figures/seeds.png): Each point [x](y) is a run." in rendered(report(figures=(figure,)))


def test_the_terminal_shows_labels_as_they_are_and_no_escape_codes_in_a_file():
    text = rendered(report(tricky()), width=80)
    assert "a|b [x](y) `c` <d>" in text and "\x1b" not in text


def test_plain_text_marks_what_has_no_font_and_says_so_once():
    text = rendered(report(told_apart()), width=140)
    assert "**93.99**▲ ± 0.61" in text and "_93.59_ ± 1.88" in text and "~73.33~" in text and "**~*_a_*~**" in text
    (said,) = [line for line in text.splitlines() if line.startswith("In plain text")]
    assert "**x** is bold (the best), _x_ is underlined (not distinguishable from the best), ~x~ is italic" in said
    assert "In plain text" not in rendered(report(tricky()))


def test_a_live_terminal_uses_fonts_and_needs_no_such_sentence():
    text = rendered(report(told_apart()), width=100, live=True)
    assert "\x1b[1m93.99\x1b[0m▲ ± 0.61" in text and "\x1b[4m93.59\x1b[0m" in text and "\x1b[3m73.33\x1b[0m" in text
    assert "In plain text" not in text and "**93.99**" not in text


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_prints_every_row_of_the_main_table_on_one_line(width):
    table = compared()
    lines = rendered(report(table), width=width).splitlines()
    assert max(map(len, lines)) <= width
    for row in table.groups[0].rows:
        name, verdict = row[0].text(), row[-1].text()
        mine = [line for line in lines if line.startswith(f"{name} ") and line.endswith(verdict or row[-2].text())]
        assert len(mine) == 2 and all(entry.text() in line for line in mine for entry in row)
    assert sum("verdict" in line for line in lines) == 1  # groups stand below each other, so that one header is enough


def test_a_narrow_terminal_leaves_out_what_is_not_essential_and_says_so():
    lines = rendered(report(compared()), width=72).splitlines()
    assert max(map(len, lines)) <= 72 and "Not shown at this width (report.md shows them): top-1, %; p (Holm)." in lines
    assert all(any(line.startswith(name.split()[0]) and "-53.12 [-105.23, +9.77]" in line for line in lines) for name in LOSSES)
    assert not any("93.12" in line for line in lines)


def test_a_very_narrow_terminal_folds_texts_and_loses_no_essential_entry():
    text = rendered(report(compared()), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("-53.12 [-105.23, +9.77]") == 2 * len(LOSSES)
    document = report(compared(("x" * 300, "kd"), ("g",)))
    long = rendered(document, width=60)
    assert long.count("x") == 39 and "…" in long and max(map(len, long.splitlines())) <= 60
    assert f"{'x' * 20}…{'x' * 19}" in markdown(document) and "Not shown" not in rendered(document)


def test_a_terminal_that_has_no_greek_letters_gets_the_report_without_them():
    whole = io.BytesIO()
    out = io.TextIOWrapper(whole, encoding="ascii")
    terminal(report(compared()), out, width=100)
    out.flush()
    assert b"cc (taylor)" in whole.getvalue() and b"? to kd" in whole.getvalue()


def test_a_thousand_rows_are_printed_within_seconds():
    start = time.process_time()
    text = rendered(report(compared([f"loss {number}" for number in range(1000)], ("g",))), width=100)
    assert time.process_time() - start < 4 and "loss 999" in text  # alone it takes half a second


def test_control_characters_in_names_are_harmless_in_both_renderings():
    hostile = "\x1b[31mkd\x1b[0m\x07\r\n\u202eb\x9b2J"
    row = (Entry(hostile), Entry(1.0, marks=("\x1b",)))
    table = Table(hostile, (Column(hostile, numeric=False), Column("v")), (Group(hostile, (row,), (hostile,), (hostile,)),), (hostile,))
    document = Document(hostile, (hostile,), (table,), (ReportWarning("c", hostile),), (Figure("f", hostile, hostile),))
    for text in (markdown(document), rendered(document)):
        assert "�[31mkd�[0m� �b�2J" in text
        assert all(line.isprintable() for line in text.split("\n"))
