"""LaTeX: what is printed is what was meant, and pdflatex compiles whatever the names hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from kdbench.report import latex
from kdbench.report.document import Document, Figure, Owed
from kdbench.report.latex_layout import LAYOUTS, fit, title_lines
from kdbench.report.latex_text import CHARACTERS, LETTERS, comment, escaped
from kdbench.report.table import BEST, EMPTY, TIED, Column, Entry, Group, Table

HOSTILE = r"a_b%c&d#e é ~f ^g {h} \i $j <k> |l| 中 *m* [n] -- `o' " + "\"p\" `` '' ,, Δ ≤ ²⁻ ż x̂"
NUMBER = {"format": ".2f", "scale": 100.0}


@pytest.fixture
def compiled(tmp_path):
    """Compiles LaTeX in a folder of its own: `compiled(text)` gives the log, with lines joined; the PDF lies in `tmp_path`."""
    if shutil.which("pdflatex") is None:
        if "KDBENCH_NO_SKIP" in os.environ:
            pytest.fail("pdflatex is promised, and is not here")
        pytest.skip("pdflatex is not installed (Debian's texlive-latex-recommended)")

    def compile_it(text, times=1, name="report"):
        (tmp_path / f"{name}.tex").write_text(text, encoding="utf-8")
        for _ in range(times):
            told = subprocess.run(
                ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", f"{name}.tex"], cwd=tmp_path, capture_output=True, check=False
            )
            assert told.returncode == 0, told.stdout.decode("utf-8", "replace")[-2000:]
        return (tmp_path / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    return compile_it


def overfull(log, more_than=1.0):
    """Every box that sticks out by more points, and every float that is longer than its page."""
    wide = [line for line in re.findall(r"Overfull \\hbox \(([\d.]+)pt.*", log) if float(line) > more_than]
    return [*wide, *re.findall(r"Float too large.*", log)]


def printed(folder, name="report"):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (Debian's poppler-utils)")
    told = subprocess.run(["pdftotext", "-layout", f"{name}.pdf", "-"], cwd=folder, capture_output=True, text=True, check=True)
    # Some fonts draw these as rules and accents.
    return unicodedata.normalize("NFC", told.stdout).replace("˜", "~").replace("ˆ", "^").replace("_", " ")


def accuracies(blocks=1, objectives=("ce", "kd", "sp", "cc (taylor)", "rkd", "cka (centred)", "rcka (centred, ours)")):
    """A table as wide and as wordy as that of the accuracies, with two baselines."""
    delta = Entry(-0.1068, interval=(-0.1437, 0.0005), format="+z.2f", scale=100, marks=("▼",), runs=("b1",))
    p = Entry(0.0004, format=".3f", least=0.001)
    columns = [Column("objective", numeric=False), Column("top-1, %"), Column("n")]
    for baseline in ("ce", "kd"):
        columns += [Column(f"Δ to {baseline}, points [95 %]"), Column("p (Holm)")]
    rows = [
        (Entry(name), Entry(0.4953, spread=0.0103, runs=("a1", "a2"), **NUMBER), Entry("5/5"), delta, p, delta, p) for name in objectives
    ]
    groups = [
        Group(f"cifar100 · student resnet8 · teacher resnet{place}", tuple(rows), ("Teacher: 60 %.", f"With n = {place}."), ("† kd: lost",))
        for place in range(blocks)
    ]
    return Table(
        "top-1 of the students", tuple(columns), tuple(groups), ("A sentence of the caption, as long as such are. ",) * 12, name="accuracy"
    )


def one(*entries, columns=None, **more):
    columns = columns or [Column("objective", numeric=False), *[Column(f"c{place}") for place in range(1, len(entries))]]
    return Table("T", tuple(columns), (Group("g", (tuple(entries),)),), **more)


def rows_of(text):
    """The rows of the entries, without rules and comments."""
    return [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith(("%", r"\multicolumn", r"\end"))]


def everything_hostile():
    row = (
        Entry(HOSTILE, runs=(HOSTILE, "x\r\ny")),
        Entry(0.5, marks=("†", "*", "▲", "%"), spread=0.1, runs=("z",), **NUMBER),
        Entry(HOSTILE),
    )
    columns = (Column(HOSTILE, numeric=False), Column(HOSTILE), Column(HOSTILE, numeric=False))
    table = Table(HOSTILE, columns, (Group(HOSTILE, (row, row), (HOSTILE,), (f"† {HOSTILE}",)),), (HOSTILE,), (HOSTILE,), name="a b_c")
    return Document(HOSTILE, (HOSTILE,), (table,), (Owed("a_b", HOSTILE, HOSTILE),), (Figure("seeds", HOSTILE, HOSTILE),))


MEANT = re.compile(r"\$[^$]*\$|\\`\{\}|\\(?:[a-zA-Z]+(?:\{\})?|[`'^~=.\"](?=\{)|[\\{}$&#_%,-])|[{}]|~")
"""Math, accents, the commands of the escaper, braces and ties."""
PLAIN = re.compile(rf"[A-Za-z0-9 !()+,./:;=?@'\-\[\]*{''.join(sorted(LETTERS))}]*")


def harmless(text):
    """Whether nothing in LaTeX's text is a command that was not meant, is unbalanced, or leaves its line."""
    rest = MEANT.sub("", text)
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", re.sub(r"\\[{}]", "", text)):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    return PLAIN.fullmatch(rest) is not None and not re.search(r"--|''|,,|(?<!\{)[\[\]*]", text)


@pytest.mark.parametrize(
    ("text", "latex_text"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("# $x {y} ~ ^ \\", r"\# \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"),
        ("é ß ł ő", "é ß ł ő"),
        (unicodedata.normalize("NFD", "é ő"), "é ő"),
        ("ṭ ệ x̂ ĭ", r"\d{t} \d{\^{e}} \^{x} ĭ"),
        ("-- ,, ''", r"-{}- ,{}, '{}'"),
        ("Δ ± ≤ ²⁻", r"$\Delta$ $\pm$ $\leq$ $^{2}$$^{-}$"),
        ("† ▲ – …", r"$\dagger$ $\blacktriangle$ \textendash{} \ldots{}"),
        ("中", "{[}U+4E2D{]}"),
        ("🙂\u200b\x07\ud800", "{[}U+1F642{]}{[}U+200B{]}{[}U+0007{]}{[}U+D800{]}"),
        ("a\n\t\r b", "a b"),
        ("a\u00a0b", "a~b"),
    ],
)
def test_text_is_escaped_as_by_hand(text, latex_text):
    assert escaped(text) == latex_text


@given(some.text() | some.text(some.sampled_from("\\{}$&#^_%~<>|\"'`-,![]*i\u0301\u0323中é \n"), max_size=20))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_no_text_becomes_a_command_a_ligature_or_a_second_line(text):
    assert harmless(escaped(text))
    assert escaped(unicodedata.normalize("NFD", text)) == escaped(text)
    assert comment(text).isprintable()
    comment(text).encode("utf-8")


def test_the_check_of_harmless_text_can_fail():
    assert not any(map(harmless, ["a & b", "50%", "a_b", r"\input|", "--", "a\nb", "x^2", "#1", "中"]))


def test_every_character_that_the_escaper_prints_compiles(compiled):
    known = [char for code in range(0x20, 0x30000) if "U+" not in escaped(char := chr(code))]
    assert set(CHARACTERS) | LETTERS <= set(known)
    lines = [f"{escaped(f'x{char}y')} \\textbf{{{escaped(char)}}} \\texttt{{{escaped(char)}}} {escaped(char + char)}\n" for char in known]
    log = compiled("\n".join([latex.PREAMBLE, r"\begin{document}", *lines, r"\end{document}"]))
    assert "Missing character" not in log


@pytest.mark.slow
@given(texts=some.lists(some.text(min_size=1), min_size=30, max_size=60))
@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_compiles_anywhere(compiled, texts):
    rows = tuple((Entry(text, runs=(text,)), Entry(1.0, marks=(text[0],))) for text in texts)
    table = Table(texts[0], (Column(texts[1], numeric=False), Column(texts[2])), (Group(texts[3], rows[:30], texts[4:6], texts[6:9]),))
    owed = tuple(Owed(text, text, text) for text in texts[:3])
    compiled(latex.document(Document(texts[0], tuple(texts[:3]), (table,), owed), texts[0]))


def test_a_worked_table_is_set_as_by_hand():
    table = one(
        Entry("kd_1", runs=("a1", "a2")),
        Entry(0.9312, spread=0.004, emphasis=BEST, runs=("a1", "a2"), **NUMBER),
        Entry(-0.005, interval=(-0.009, 0.001), format="+z.2f", scale=100, marks=("▼",)),
        Entry("4/5", marks=("†",)),
        Entry(0.0004, format=".3f", least=0.001),
        caption=("One sentence.",),
        notes=("† kd_1: one is lost",),
    )
    assert latex.table(table, "tab:suite_x-t").splitlines() == [
        r"% Needs \usepackage[T1]{fontenc} and \usepackage{booktabs,amssymb}",
        r"\begin{table}[htbp]",
        r"\centering",
        r"\caption[{T}]{\textbf{T.} One sentence.\label{tab:suite-x-t}}",
        r"\small\setlength{\tabcolsep}{6pt}",
        r"\begin{tabular}{@{}l r@{}l r@{}l@{}l r@{}l r@{}}",
        r"\toprule",
        r"objective & \multicolumn{2}{c}{c1} & \multicolumn{3}{c}{c2} & \multicolumn{2}{c}{c3} & c4 \\",
        r"\midrule",
        r"\multicolumn{9}{@{}l@{}}{\textit{g}} \\*",
        r"\addlinespace[2pt]",
        "% g | kd_1, objective; c1: run a1, a2",
        r"kd\_1 & \textbf{93.12} & \,$\pm$\,0.40 & $-$0.50 & \,$\blacktriangledown$ & ~[$-$0.90, +0.10] & 4/5 & \textsuperscript{$\dagger$}"
        r" & $<$0.001 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\medskip",
        r"{\footnotesize\raggedright\setlength{\parindent}{0pt}\setlength{\parskip}{1pt}",
        r"\textsuperscript{$\dagger$} kd\_1: one is lost\par",
        "}",
        r"\end{table}",
    ]


def test_best_tied_and_published_numbers_are_told_apart():
    best, tied = (Entry(0.5, spread=0.1, emphasis=kind, **NUMBER) for kind in (BEST, TIED))
    (row,) = rows_of(latex.table(one(Entry("a"), best, tied, Entry(0.4, apart=True, **NUMBER), Entry(None, emphasis=BEST)), "t"))[1:]
    assert row == r"a & \textbf{50.00} & \,$\pm$\,10.00 & \underline{50.00} & \,$\pm$\,10.00 & \textit{40.00} & \textendash{} \\"


def test_every_entry_with_runs_is_traced_to_them_above_its_row():
    text = latex.table(accuracies(blocks=2), "t")
    lines = text.splitlines()
    rows = [place for place, line in enumerate(lines) if line.startswith("cc (taylor) &")]
    assert len(rows) == 2
    for block, place in enumerate(rows):
        above = lines[place - 2 : place]
        named = f"% cifar100 · student resnet8 · teacher resnet{block} | cc (taylor), "
        assert above == [
            f"{named}top-1, %: run a1, a2",
            f"{named}Δ to ce, points [95 %]; Δ to kd, points [95 %]: run b1",
        ]


def test_no_run_id_ends_its_comment():
    text = latex.table(one(Entry("a", runs=("x\ny", "x\r\\\\y", "x\u2028y^^My\x00")), Entry(1.0)), "t")
    assert "% g | a, objective: run x y, x \\\\y, x y^^My{[}U+0000{]}" in text.splitlines()


@pytest.mark.parametrize("with_figure", [True, False])
def test_hostile_names_compile_and_are_printed_with_and_without_figures(compiled, tmp_path, with_figure):
    if with_figure:
        compiled("\\documentclass{article}\\pagestyle{empty}\\begin{document}a figure stands here\\end{document}", name="seeds")
        (tmp_path / "figures").mkdir()
        shutil.move(tmp_path / "seeds.pdf", tmp_path / "figures" / "seeds.pdf")
    log = compiled(latex.document(everything_hostile(), "suite_1 %é"))
    assert "multiply defined" not in log and overfull(log) == []
    seen = " ".join(printed(tmp_path).split())
    assert r"a b%c&d#e é ~f ^g {h} \i $j <k> |l| [U+4E2D] *m* [n] --" in seen
    assert ("a figure stands here" in seen) is with_figure
    assert ("figures/seeds.pdf is not here" in seen) is not with_figure
    assert "[a b]" in seen


def test_a_report_without_anything_but_a_title_compiles(compiled):
    compiled(latex.document(Document("suite", (), ()), "suite"))
    compiled(latex.document(Document("suite", (), (Table("T", (Column("objective"),), ()),)), "suite"))


def test_a_label_that_begins_with_a_bracket_or_a_star_is_no_option(compiled, tmp_path):
    rows = tuple((Entry(name), Entry(1.0)) for name in ("[2cm]", "*", "[x]"))
    table = Table("[T]", (Column("[c]", numeric=False), Column("*")), (Group("[g]", rows), Group("*", rows)))
    compiled(latex.document(Document("[t]", ("[f]",), (table,), (Owed("c", "[m]"),)), "s"))
    seen = printed(tmp_path)
    assert seen.count("[2cm]") == 2 and seen.count("[x]") == 2 and "[g]" in seen and "[m]" in seen and "[c]" in seen


def test_the_accuracies_with_two_baselines_fit_the_page(compiled):
    log = compiled(latex.document(Document("s", (), (accuracies(blocks=2),)), "s"))
    assert overfull(log) == []


def test_the_check_of_the_width_can_fail(compiled):
    assert overfull(
        compiled(latex.document(Document("s", (), ()), "s").replace(r"\end{document}", r"\noindent\hbox to 17cm{x}\end{document}"))
    )


def test_a_table_longer_than_a_page_is_divided_between_its_groups(compiled, tmp_path):
    table = accuracies(blocks=10)
    text = latex.table(table, "tab:long")
    assert r"\begin{longtable}" in text and r"\begin{table}" not in text and "longtable" in text.splitlines()[0]
    log = compiled(latex.document(Document("s", (), (table, replace(accuracies(), name="short"))), "s"), times=2)
    assert overfull(log) == [] and "multiply defined" not in log
    pages = printed(tmp_path).split("\f")
    assert "Table 1" in pages[0] and "(continued)" in pages[1] and "Table 2" in "".join(pages)
    assert all(page.count("rcka (centred, ours)") == page.count("· student resnet8 · teacher") for page in pages[:2] if "† kd" not in page)


def wide(columns):
    titles = [Column(f"objective number {place}") for place in range(columns)]
    row = (Entry("resnet34x4"), *(Entry(0.9312 + place / 1000, spread=0.004, **NUMBER) for place in range(columns)))
    return Table("Wide", (Column("teacher", numeric=False), *titles), (Group("student x", (row, row)),))


def test_numbers_that_do_not_fit_beside_their_spreads_stand_above_them(compiled):
    table = wide(9)
    text = latex.table(table, "t")
    assert fit(table, 455).stacked and text.count(r"\begin{tabular}{@{}l c c c c c c c c c@{}}") == 1
    upper, lower = (
        [line for line in text.splitlines() if "93.12 &" in line][0],
        [line for line in text.splitlines() if "scriptsize" in line][0],
    )
    assert upper.startswith("resnet34x4 & 93.12 & 93.22") and lower.startswith(r" & {\scriptsize $\pm$\,0.40} & {\scriptsize $\pm$\,0.40}")
    assert overfull(compiled(latex.document(Document("s", (), (table,)), "s"))) == []


def test_more_columns_than_a_page_holds_are_divided_and_none_is_lost(compiled):
    table = wide(30)
    fitted = fit(table, 455)
    assert len(fitted.parts) > 1
    assert sorted(place for part in fitted.parts for place in part[1:]) == list(range(1, 31)) and all(part[0] == 0 for part in fitted.parts)
    assert max(map(len, fitted.parts)) - min(map(len, fitted.parts)) <= 2
    text = latex.table(table, "t")
    assert text.count(r"\caption") == 1 and text.count(r"\bottomrule") == len(fitted.parts)
    assert overfull(compiled(latex.document(Document("s", (), (table,)), "s"))) == []


def test_a_divided_table_longer_than_a_page_counts_as_one(compiled, tmp_path):
    whole = wide(30)
    rows = whole.groups[0].rows * 30
    table = Table("Wide", whole.columns, (Group("student x", rows),))
    log = compiled(latex.document(Document("s", (), (table, replace(accuracies(), name="short"))), "s"), times=2)
    assert overfull(log) == []
    assert "Table 2: top-1 of the students" in printed(tmp_path)


def test_long_sentences_in_a_table_are_folded_also_in_the_last_column(compiled, tmp_path):
    said = "undecided, since two of five runs of the baseline failed and a mean over survivors may flatter it"
    columns = [Column("comparison", numeric=False), Column("Δ"), Column("verdict and its reason", numeric=False)]
    rows = ((Entry(said), Entry(0.5, format=".2f"), Entry(said)), (Entry("second"), Entry(0.25, format=".2f"), Entry("[row]")))
    table = Table(
        "T", tuple(columns), (Group("a title of a group that is much longer than the table below it would ever need " * 3, rows),)
    )
    assert set(fit(table, 455).folded) == {0, 2}
    assert overfull(compiled(latex.document(Document("s", (), (table,)), "s"))) == []
    assert " ".join(printed(tmp_path).split()).count("[row]") == 1


def test_a_narrower_page_gets_smaller_type():
    table = accuracies()
    sizes = [fit(table, page).size for page in (500, 420, 390)]
    assert sizes == [r"\small", r"\footnotesize", r"\footnotesize"]
    assert r"\footnotesize\setlength" in latex.table(table, "t", page=390) and [size for size, *_ in LAYOUTS][0] == r"\small"


def test_titles_are_folded_at_blanks_but_not_inside_brackets():
    assert title_lines(Column("Δ to kd, points [95 %]"), 8.0) == ["Δ to kd, points", "[95 %]"]
    assert title_lines(Column("p (Holm)"), 2.0) == ["p", "(Holm)"]
    assert title_lines(Column(""), 2.0) == []


def test_what_every_group_says_is_said_once_below_the_table():
    text = latex.table(accuracies(blocks=3), "t")
    assert text.count("Teacher: 60") == 1 and text.count("kd: lost") == 1
    assert r"\textit{cifar100 $\cdot$ student resnet8 $\cdot$ teacher resnet1:} With n = 1.\par" in text.splitlines()


def test_the_same_report_gives_the_same_bytes_and_no_date():
    document = everything_hostile()
    assert latex.document(document, "s") == latex.document(document, "s")
    assert "today" not in latex.document(document, "s") and r"\date" not in latex.document(document, "s")


def test_labels_hold_what_labels_may_hold():
    assert latex.label("suite_1 %é", "a b") == "tab:suite-1--a-b"
    assert r"\label{tab:s-1-accuracy}" in latex.document(Document("s", (), (accuracies(),)), "s_1")


def test_a_figure_whose_file_latex_cannot_name_is_refused():
    with pytest.raises(ValueError, match="'a b%' is named with other characters"):
        latex.document(Document("s", (), (), figures=(Figure("a b%", "t", "c"),)), "s")


def test_empty_boxes_stay_empty():
    (row,) = rows_of(latex.table(one(Entry("kd"), EMPTY, Entry(1.0)), "t"))[1:]
    assert row == r"kd &  & 1.0 \\"
