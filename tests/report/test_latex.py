"""LaTeX: what is printed is what was meant, it fits papers of one and of two columns, and it compiles whatever the names hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from kdbench.report import latex
from kdbench.report.document import Document, Figure, ReportWarning
from kdbench.report.latex import arranged
from kdbench.report.latex_text import escaped, number
from kdbench.report.table import BEST, EMPTY, TIED, Column, Entry, Group, Table
from kdbench.report.text import shortened
from tests.report.columns import VERSUS_KD

HOSTILE = r"a_b%c&d#e é ~f ^g {h} \i $j <k> |l| 中 *m* [n] -- `o' " + "\"p\" `` '' ,, Δ ≤ ²⁻ ż x̂ \x1b[31m \u202e Кир"
NUMBER = {"format": ".2f", "scale": 100.0}
LOSSES = ("ce", "kd", "sp", "cc (taylor)", "rkd", "cka (centred)", "rcka (centred, ours)", "rcka (released)")
VERDICTS = ("", "", "▼ worse", "▽ worse, below the margin", "▲ better", "△ better, below the margin", "! unstable", "= equal")
CAPTION = tuple(
    f"Sentence {number} of the caption is about as long as the sentences of real captions are, ± a few words." for number in range(8)
)
PAPERS = {"article": r"\documentclass[10pt,twocolumn]{article}", "IEEEtran": r"\documentclass[conference]{IEEEtran}"}
PACKAGES = {"pdflatex": "texlive-latex-recommended", "xelatex": "texlive-xetex", "lualatex": "texlive-luatex", "pdftotext": "poppler-utils"}


def needed(found: object, package: str) -> None:
    """Skip the test without a program or file; where KDBENCH_NO_SKIP is set, fail."""
    if not found:
        (pytest.fail if "KDBENCH_NO_SKIP" in os.environ else pytest.skip)(f"Debian's {package} is not installed")


@pytest.fixture
def compiled(tmp_path):
    """Compiles LaTeX once in a folder of its own: `compiled(text)` gives the log; the PDF lies in `tmp_path`."""

    def compile_it(text, command="pdflatex", name="report"):
        needed(shutil.which(command), PACKAGES[command])
        (tmp_path / f"{name}.tex").write_text(text, encoding="utf-8")
        order = [command, "-halt-on-error", "-interaction=nonstopmode", f"{name}.tex"]
        done = subprocess.run(order, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
        return (tmp_path / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    return compile_it


def whole(document, suite):
    return latex.document(document, suite, [latex.table(table, latex.label(suite, table.name)) for table in document.tables])


def too_large(log):
    """Every box that is too wide, and every float that is higher than its page."""
    return re.findall(r"Overfull \\hbox.*|Float too large.*", log)


def printed(folder, name="report"):
    needed(shutil.which("pdftotext"), PACKAGES["pdftotext"])
    done = subprocess.run(["pdftotext", "-layout", f"{name}.pdf", "-"], cwd=folder, capture_output=True, text=True, check=True)
    return unicodedata.normalize("NFKC", done.stdout)


def paper(kind, *fragments):
    """A paper in two columns that has the fragments between its paragraphs."""
    text = "This is the text of a paper. " * 200
    packages = r"\usepackage[T1]{fontenc}\usepackage{amssymb,booktabs,tabularx,graphicx}"
    return f"{PAPERS[kind]}{packages}\\begin{{document}}{text}\n{text.join(fragments)}{text}\\end{{document}}"


def versus(losses=LOSSES, students=2, teachers=4):
    """The main table of one baseline."""

    def rows(mark):
        delta = Entry(-0.5068, interval=(-0.9437, 0.0005), format="+z.2f", scale=100, runs=("b1",))
        p = Entry(0.0004, format=".3f", least=0.001)
        numbers = [Entry(0.4953, spread=0.1203, marks=(mark,) if loss == "rkd" else (), runs=("a1", "a2"), **NUMBER) for loss in losses]
        ends = [(EMPTY, EMPTY) if loss == "kd" else (delta, p) for loss in losses]
        verdicts = [Entry(VERDICTS[place % len(VERDICTS)]) for place, _ in enumerate(losses)]
        return tuple((Entry(loss), mean, *end, say) for loss, mean, end, say in zip(losses, numbers, ends, verdicts, strict=True))

    groups = [Group(f"all pairs ({students} students x {teachers} teachers)", rows(""))]
    groups += [
        Group(
            f"cifar100 · student resnet8x{student} · teacher resnet32x{teacher}",
            rows("†"),
            (f"Teacher resnet32x{teacher}: top-1 {70 + teacher}.41 %.", "50000 training images, 10000 test images."),
            ("† rkd: 4 of 5 repeats complete",),
        )
        for student in range(students)
        for teacher in range(teachers)
    ]
    return Table("top-1 compared with kd", VERSUS_KD, tuple(groups), CAPTION, ("A note.",), "vs_kd")


def comparisons(rows=56):
    """The widest table: 14 columns."""
    titles = (
        "n",
        "Δ, points [95 % alone]",
        "sim. 95 % from",
        "to",
        "d_z",
        "p",
        "p (Holm)",
        "p equal (Holm)",
        "ρ",
        "could see, points",
        "n needed",
    )
    columns = (*(Column(title, numeric=False) for title in ("comparison", "test")), *map(Column, titles), Column("verdict", numeric=False))
    bound = Entry(-0.1068, format="+z.2f", scale=100)
    numbers = (Entry("5/5"), replace(bound, interval=(-0.1437, 0.0005)), *[bound] * 2, *[Entry(0.0497, format=".3f")] * 7)
    made = [(Entry(f"{LOSSES[row % 8]} - kd"), Entry("paired t"), *numbers, Entry(VERDICTS[row % 8])) for row in range(rows)]
    return Table("Everything that was tested", columns, (Group("student a · teacher b", tuple(made)),), CAPTION[:4], name="comparisons")


def by_teacher(columns=10):
    """The layout of a paper."""
    titles = [Column(LOSSES[place % 8]) for place in range(columns - 1)]
    row = [Entry(0.9312, spread=0.0124, marks=("▲",) if place == 3 else (), **NUMBER) for place in range(columns - 1)]
    groups = [Group(f"student {student}", tuple((Entry(f"resnet32x{place}"), *row) for place in range(4))) for student in "ab"]
    return Table("top-1 in %", (Column("teacher", numeric=False), *titles), tuple(groups), CAPTION[:3], name="paper")


def one(*entries, **more):
    columns = [Column("loss", numeric=False), *[Column(f"c{place}") for place in range(1, len(entries))]]
    return Table("T", tuple(columns), (Group("g", (tuple(entries),)),), **more)


def rows_of(text):
    """The rows of the entries, without rules, titles and comments."""
    return [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith(("%", r"\kdband"))][1:]


def named_everywhere(name):
    """A report that has a name at every place where one can be."""
    row = (Entry(name, runs=(name, "x\r\ny")), Entry(0.5, marks=("†", "*", "▲", "%"), spread=0.1, runs=("z",), **NUMBER), Entry(name))
    columns = (Column(name, numeric=False), Column(name), Column(name, numeric=False))
    table = Table(name, columns, (Group(name, (row, row), (name,), (f"† {name}",)),), (name,), (name,), name="a b_c")
    return Document(name, (name,), (table,), (ReportWarning("a_b", name),), (Figure("seeds", name, name),))


def test_text_is_escaped_as_by_hand():
    for text, wanted in {
        "a_b & 5 %": r"a\_b \& 5 \%",
        "# $x {y} ~ ^ \\": r"\# \$x \{y\} {\textasciitilde} {\textasciicircum} {\textbackslash}",
        "[2cm] *": "{[}2cm{]} {*}",
        "é ß ő": r"\'e {\ss} \H{o}",
        "--": r"-{\kern0pt}-",
        "Δ ± ≤ −": r"\ensuremath{\Delta} \ensuremath{\pm} \ensuremath{\leq} \ensuremath{-}",
        "▲ △ ▼ ▽ = †": r"\ensuremath{\blacktriangle} \ensuremath{\vartriangle} \ensuremath{\blacktriangledown} \ensuremath{\triangledown} = {\textdagger}",
        "中文 Кир": r"\otherletters{中文} \otherletters{Кир}",
        "a\x1b[31m\x07\ud800": "a?{[}31m??",
        "a\n\t\r b\u00a0c": "a b c",
    }.items():
        assert escaped(text) == wanted
    assert escaped(unicodedata.normalize("NFD", "é ő")) == escaped("é ő")
    assert number("-0.50 [-1.00, +0.20]") == r"\ensuremath{-}0.50~{[}\ensuremath{-}1.00,~+0.20{]}"


@given(some.text() | some.text(some.sampled_from("\\{}$&#^_%~<>|\"'`-,![]*i\u0301\u0323中é \n\x1b"), max_size=20))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_no_text_becomes_a_command_an_alignment_or_a_second_line(text):
    shown = escaped(text)
    left = re.sub(r"\\[a-zA-Z]+|\\.|(?<=otherletters\{)[^{}]*", "", shown)
    assert not set("\\$&#%~\n\r\x1b") & set(left) and not re.search(r"(?<!ensuremath\{)[_^]", left)
    assert left.count("{") == left.count("}") and "--" not in shown and shown.isprintable()


def test_every_character_that_has_a_command_compiles(compiled):
    chars = [char for code in range(0x20, 0x3000) if "otherletters" not in escaped(char := chr(code)) and escaped(char) != "?"]
    assert len(chars) > 700
    lines = [f"x{escaped(char)}y \\textbf{{{escaped(char)}}} {escaped(char + char)}\n" for char in chars]
    empty = whole(Document("s", (), ()), "s")
    assert "Missing character" not in compiled(empty.replace(r"\end{document}", "\n".join([*lines, r"\end{document}"])))


@pytest.mark.slow
@given(texts=some.lists(some.text(min_size=1), min_size=30, max_size=60))
@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_compiles_anywhere(compiled, texts):
    rows = tuple((Entry(text, runs=(text,)), Entry(1.0, marks=(text[0],))) for text in texts)
    table = Table(texts[0], (Column(texts[1], numeric=False), Column(texts[2])), (Group(texts[3], rows[:30], texts[4:6], texts[6:9]),))
    warnings = tuple(ReportWarning(text, text) for text in texts[:3])
    compiled(whole(Document(texts[0], tuple(texts[:3]), (table,), warnings), texts[0]))


def test_a_fragment_begins_with_what_its_letters_need():
    for name, letters in (("kd α é", False), ("中文", True), ("Кир", True)):
        first, *_ = latex.table(one(Entry(name), Entry(1.0), Entry(1.0), Entry(1.0)), "tab:t").splitlines()
        assert ("xelatex or lualatex with fontspec (not fontenc) and a font that has them" in first) is letters
        assert first.startswith(r"% Needs \usepackage[T1]{fontenc}") is not letters


def test_a_worked_table_is_set_as_by_hand():
    table = one(
        Entry("kd_1", runs=("a1", "a2")),
        Entry(0.9312, spread=0.004, emphasis=BEST, runs=("a1", "a2"), **NUMBER),
        Entry(-0.005, interval=(-0.009, 0.001), format="+z.2f", scale=100, marks=("▼",)),
        Entry(0.0004, format=".3f", least=0.001, marks=("†",)),
        caption=("One sentence.",),
        notes=("† kd_1: one failed",),
    )
    assert latex.table(table, "tab:suite_x-t").splitlines()[5:] == [
        r"\begin{table}[htbp]\centering",
        r"\caption{T.\label{tab:suite-x-t}}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        r"\begin{tabularx}{\linewidth}{@{}>{\hsize=1.000\hsize\raggedright\arraybackslash}X r r r@{}}",
        r"\toprule",
        r"loss & \kdhead{c1} & \kdhead{c2} & \kdhead{c3} \\",
        r"\midrule",
        r"\kdband{4}{\textit{g}\quad } \\",
        "% g | kd_1, loss; c1: run a1, a2",
        r"kd\_1 & \textbf{93.12}~\ensuremath{\pm}~0.40 & \ensuremath{-}0.50~{[}\ensuremath{-}0.90,~+0.10{]}\rlap{\ensuremath{\blacktriangledown}} "
        r"& \ensuremath{<}0.001\rlap{\textsuperscript{{\textdagger}}} \\",
        r"\bottomrule",
        r"\end{tabularx}",
        r"\par\smallskip{\raggedright\par One sentence.\par {\textdagger} kd\_1: one failed\par}",
        r"\end{table}",
    ]


def test_best_tied_published_and_empty_entries_are_told_apart():
    best, tied = (Entry(0.5, emphasis=kind, **NUMBER) for kind in (BEST, TIED))
    (row,) = rows_of(latex.table(one(Entry("a"), best, tied, Entry(0.4, apart=True, **NUMBER), Entry(None, emphasis=BEST), EMPTY), "t"))
    assert row == r"a & \textbf{50.00} & \underline{50.00} & \textit{40.00} & {\textendash} &  \\"


def test_every_entry_with_runs_is_traced_to_them_above_its_row():
    lines = latex.table(versus(students=1, teachers=2), "t").splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith("cc (taylor) &")]
    assert len(places) == 3
    for teacher, place in enumerate(places[1:]):
        named = f"% cifar100 · student resnet8x0 · teacher resnet32x{teacher} | cc (taylor), "
        assert lines[place - 2 : place] == [f"{named}top-1, %: run a1, a2", f"{named}Δ to kd, points [95 % CI]: run b1"]


def test_no_run_id_ends_its_comment():
    text = latex.table(one(Entry("a", runs=("x\ny", "x\r\\\\y", "x\u2028y^^My\x00")), Entry(1.0)), "t")
    assert "% g | a, loss: run x y, x \\\\y, x y^^My�" in text.splitlines()


@pytest.mark.parametrize("kind", PAPERS)
def test_the_tables_of_a_suite_fit_a_paper_of_two_columns(compiled, tmp_path, kind):
    needed(shutil.which("kpsewhich") and subprocess.run(["kpsewhich", f"{kind}.cls"], capture_output=True).stdout, "texlive-publishers")
    tables = (versus(), comparisons(), by_teacher(), one(Entry("kd"), Entry(0.5, spread=0.1, **NUMBER)))
    text = paper(kind, *(latex.table(table, f"tab:{table.name}") for table in tables))
    assert "longtable" not in text and text.count(r"\begin{table}") == 1 and text.count(r"\begin{table*}") > 5
    assert too_large(compiled(text)) == []
    seen = printed(tmp_path)
    assert seen.count("cc (taylor)") == 9 + 7 and "4 of 5 repeats complete" in seen and "Sentence 7 of the caption" in seen
    assert seen.upper().count("TABLE 4" if kind == "article" else "TABLE IV") == 1


def test_the_check_of_the_size_can_fail(compiled):
    assert too_large(compiled(paper("article", r"\noindent\hbox to 17cm{x}")))


def test_a_table_is_divided_between_its_groups_and_a_long_group_between_its_rows():
    text = latex.table(versus(), "t")
    floats = text.split(r"\begin{table*}")[1:]
    assert len(floats) > 1 and text.count(r"\caption{") == text.count(r"\label") == 1
    assert all(r"top-1 compared with kd (continued)." in one and r"\addtocounter{table}{-1}" in one for one in floats[1:])
    assert all(one.count(r"\kdband{5}{\textit") * len(LOSSES) == one.count("0.001") + one.count("\nkd & 49.53") for one in floats)
    long = latex.table(comparisons(rows=100), "t")
    assert long.count(r"\textit{student a \ensuremath{\cdot} teacher b}") == 1 and "teacher b (continued)" in long
    assert len(rows_of(long)) - long.count(r"\begin{table*}") + 1 == 100


def test_a_table_with_more_columns_than_a_page_holds_is_scaled_and_loses_none(compiled, tmp_path):
    text = latex.table(by_teacher(31), "t")
    assert r"\resizebox{\linewidth}{!}{\begin{tabularx}" in text and "tabularx,graphicx}" in text
    assert too_large(compiled(paper("article", text))) == []
    assert printed(tmp_path).count("93.12") == 8 * 30
    assert "resizebox" not in latex.table(by_teacher(), "t") + latex.table(versus(), "t")


def test_titles_that_are_wider_than_their_numbers_are_folded(compiled):
    wide = replace(by_teacher(), columns=tuple(replace(column, title="MWM percent of all") for column in by_teacher().columns))
    assert too_large(compiled(paper("article", latex.table(wide, "t")))) == []


def test_numbers_that_do_not_fit_beside_their_spreads_stand_above_them():
    assert arranged(by_teacher()).stacked and not arranged(by_teacher(5)).stacked
    row = rows_of(latex.table(by_teacher(), "t"))[0]
    assert r" & \kdstack{93.12\rlap{\ensuremath{\blacktriangle}}}{\ensuremath{\pm}~1.24} & " in row


def test_long_sentences_in_a_table_are_folded_also_in_the_last_column(compiled, tmp_path):
    reason = "undecided, since two of five runs of the baseline failed and a mean over the other runs may be too high, as it often is"
    columns = (Column("comparison", numeric=False), Column("Δ"), Column("verdict and its reason", numeric=False))
    rows = ((Entry(reason), Entry(0.5, format=".2f"), Entry(reason)), (Entry("second"), Entry(0.25, format=".2f"), Entry("[row]")))
    table = Table("T", columns, (Group("a title of a group that is much longer than the table below it " * 3, rows),))
    assert max(arranged(table).columns) < len(reason) / 2
    assert too_large(compiled(whole(Document("s", (), (table,)), "s"))) == []
    assert " ".join(printed(tmp_path).split()).count("[row]") == 1


def test_long_names_are_shortened_in_their_middle_and_fit(compiled):
    assert shortened("x" * 32) == "x" * 32 and shortened(f"a {'b' * 200}{'c' * 100}") == f"a {'b' * 16}…{'c' * 15}"
    assert shortened("中" * 300) == f"{'中' * 8}…{'中' * 7}"
    names = ("x" * 300, "resnet_W40" * 30, "中" * 300, "a name " * 45)
    fragments = [latex.table(versus([name, f"2{name}"], 1, 1), "t") for name in names]
    assert too_large(compiled(paper("article", *fragments).replace("label{t}", "relax"))) == []
    for name in names[1:3]:
        assert too_large(compiled(whole(named_everywhere(name), "s"))) == []


@pytest.mark.parametrize("command", ["pdflatex", "xelatex", pytest.param("lualatex", marks=pytest.mark.slow)])
def test_hostile_names_compile_in_one_run_and_are_printed(compiled, tmp_path, command):
    text = whole(named_everywhere(HOSTILE), "suite_1 %é")
    log = compiled(text, command)
    assert "multiply defined" not in log and too_large(log) == [] and "\x1b" not in text
    seen = " ".join(printed(tmp_path).split())
    assert r"a_b%c&d#e é" in seen and "{h}" in seen and "<k> |l|" in seen and "*m* [n] -" in seen
    assert "figures/seeds.pdf is not here" in seen
    letters = "中" in seen and "Кир" in seen
    assert letters is (command != "pdflatex") and ("pdfLaTeX prints ? for letters" in seen) is not letters


def test_a_figure_is_printed_where_its_file_is(compiled, tmp_path):
    compiled("\\documentclass{article}\\pdfpagewidth=40cm\\begin{document}a figure stands here\\end{document}", name="seeds")
    (tmp_path / "figures").mkdir()
    shutil.move(tmp_path / "seeds.pdf", tmp_path / "figures" / "seeds.pdf")
    assert too_large(compiled(whole(Document("s", (), (), figures=(Figure("seeds", "t", "c"),)), "s"))) == []
    seen = printed(tmp_path)
    assert "a figure stands here" in seen and "is not here" not in seen


def test_a_report_without_anything_but_a_title_compiles(compiled):
    compiled(whole(Document("suite", (), ()), "suite"))
    compiled(whole(Document("suite", (), (Table("T", (Column("loss"),), ()),)), "suite"))


def test_a_label_that_begins_with_a_bracket_or_a_star_is_no_option(compiled, tmp_path):
    rows = tuple((Entry(name), Entry(1.0)) for name in ("[2cm]", "*", "[x]"))
    table = Table("[T]", (Column("[c]", numeric=False), Column("*")), (Group("[g]", rows), Group("*", rows)))
    compiled(whole(Document("[t]", ("[f]",), (table,), (ReportWarning("c", "[m]"),)), "s"))
    seen = printed(tmp_path)
    assert seen.count("[2cm]") == 2 and seen.count("[x]") == 2 and "[g]" in seen and "[m]" in seen and "[c]" in seen


def test_the_whole_report_is_in_order_facts_tables_warnings_figures():
    warnings = (ReportWarning("code", "first"), ReportWarning("code", "second"))
    document = Document("title of it", ("a fact",), (versus(), by_teacher()), warnings, (Figure("seeds", "every seed", "c"),))
    text = whole(document, "s")
    places = [
        text.index(part) for part in ("title of it", "a fact", "{tab:s-vs-kd}", "{tab:s-paper}", "{]}} first; second", "{fig:s-seeds}")
    ]
    assert all(before < after for before, after in pairwise(places))
    assert text == whole(document, "s")
    assert "today" not in text and r"\date" not in text


def test_a_report_of_two_thousand_rows_compiles(compiled):
    tables = (versus([f"loss {place}" for place in range(40)], students=4, teachers=6), comparisons(rows=1000))
    assert too_large(compiled(whole(Document("s", (), tables), "s"))) == []


def test_labels_hold_what_labels_may_hold():
    assert latex.label("suite_1 %é", "a b") == "tab:suite-1--a-b"
