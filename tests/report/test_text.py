"""Renderings of the table model: plain text for a terminal, and Markdown."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdbench.report.document import Document, Figure, Owed
from kdbench.report.table import BEST, EMPTY, TIED, Column, Entry, Group, Table
from kdbench.report.text import emphasis, markdown, pieces, terminal

NUMBER = {"format": ".2f", "scale": 100.0}


def report(*tables, **more):
    return Document("suite", ("a fact",), tables, **more)


def accuracies(objectives=("ce", "kd", "cc (taylor)", "cka"), baselines=("ce", "kd")):
    """A table as wide as that of the accuracies."""
    delta = Entry(0.0512, interval=(-0.0123, 0.0977), format="+z.2f", scale=100, marks=("▲",))
    p = Entry(0.0004, format=".3f", least=0.001)
    columns = [Column("objective", numeric=False), Column("top-1, %"), Column("n")]
    for baseline in baselines:
        columns += [Column(f"Δ to {baseline}, points [95 %]"), Column("p (Holm)")]
    rows = [(Entry(name), Entry(0.9312, spread=0.004, **NUMBER), Entry("5/5"), *[delta, p] * len(baselines)) for name in objectives]
    return Table("T", tuple(columns), (Group("g", tuple(rows)),))


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
        (Entry(-1e-9, format="+z.2f"), "+0.00"),
        (Entry(0.0004, format=".3f", least=0.001), "<0.001"),
        (Entry(None, marks=("‡",)), "–‡"),
        (Entry("4/5", marks=("†",)), "4/5†"),
        (Entry(0.5, spread=0.1, interval=(0.4, 0.6), format=".1f", marks=("†", "▲")), "0.5†▲ ± 0.1 [0.4, 0.6]"),
        (Entry(0.0004, spread=0.1, interval=(0.4, 0.6), format=".3f", least=0.001), "<0.001"),
    ],
)
def test_an_entry_prints_its_numbers_in_their_format_and_its_pieces_are_its_text(entry, text):
    parts = pieces(entry)
    assert entry.text() == text == parts.value + parts.marks + parts.spread + parts.interval


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


@given(some.text(some.sampled_from("ab1 \\`*_|<>[]()#-+.!&~;=é中lt"), min_size=1, max_size=12).filter(str.strip))
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


def test_both_renderings_show_every_warning_with_its_code_before_the_tables():
    owed = (Owed("few-repeats", "n = 2: nothing is tested"), Owed("incomplete", "1 run *failed*", "digits · student small"))
    text = rendered(report(tricky(), warnings=owed))
    assert "Warning [few-repeats] n = 2: nothing is tested" in text
    assert text.index("Warning [incomplete] digits · student small: 1 run *failed*") < text.index("T|itle")
    lines = markdown(report(tricky(), warnings=owed)).splitlines()
    assert lines.index("- Warning [incomplete] digits · student small: 1 run \\*failed\\*") < lines.index("## T\\|itle")


def test_figures_are_images_with_captions_in_markdown_and_words_on_a_terminal():
    figure = Figure("seeds", "Every seed", "Each point [x](y) is a run.")
    lines = markdown(report(figures=(figure,))).splitlines()
    assert "![Each point \\[x\\](y) is a run.](<figures/seeds.png>)" in lines and "Each point [x]\\(y) is a run." in lines
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
def test_the_terminal_prints_every_entry_whole_within_its_width(width):
    table = accuracies()
    lines = rendered(report(table), width=width).splitlines()
    assert max(map(len, lines)) <= width
    for row in table.groups[0].rows:
        assert any(all(entry.text() in line for entry in row) for line in lines)


def test_where_numbers_do_not_fit_on_one_line_their_spreads_stand_below_them():
    numbers = [Entry(0.9312, spread=0.004, **NUMBER) for _ in range(8)]
    table = Table("T", (Column("teacher", numeric=False), *[Column("KD")] * 8), (Group("g", ((Entry("resnet34"), *numbers),)),))
    lines = rendered(report(table), width=80).splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("resnet34"))
    assert lines[place].count("93.12") == 8 and lines[place + 1].count("± 0.40") == 8


def test_a_narrow_terminal_loses_no_entry():
    text = rendered(report(accuracies()), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("5/5") == 4


def test_a_terminal_that_knows_no_greek_is_still_served():
    whole = io.BytesIO()
    out = io.TextIOWrapper(whole, encoding="ascii")
    terminal(report(accuracies()), out, width=100)
    out.flush()
    assert b"cc (taylor)" in whole.getvalue()


@pytest.mark.parametrize("width", [60, 90, 110, 200])
def test_what_is_written_at_once_is_what_rich_would_print(monkeypatch, width):
    document = Document("suite", ("a fact",), (accuracies(), replace(accuracies(), title="again")))
    told = []
    for _ in range(2):
        out = io.StringIO()
        terminal(document, out, width)
        told.append(out.getvalue())
        monkeypatch.setattr("kdbench.report.text._plain_grid", lambda *_: None)
    assert told[0] == told[1] and "────" in told[0]
