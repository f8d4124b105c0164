"""The report as a whole: files, several suites, speed, and what it loads."""

from __future__ import annotations

import ast
import errno
import io
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import kdbench.stats
from kdbench.errors import StoreError, UsageError
from kdbench.report.report_command import run
from kdbench.report.write import ReportOptions, report

FAST_S = 6.0
"""Of processor time, for 2,000 records in 740 comparisons; half of it is the usual."""


def test_a_report_leaves_the_frame_and_markdown_and_prints_the_same_tables(made):
    suite = made().finish_all().write()
    out = io.StringIO()
    done = report(suite.store, None, out, width=110)
    folder = done.folders["quickstart"]
    assert {path.name for path in folder.iterdir()} == {
        *("frame.csv", "frame.parquet", "manifest.json", "summaries.csv", "comparisons.csv", "overall.csv", "warnings.json"),
        *("report.md", "report.tex", "tables", ".written.json"),
    }
    assert {path.name for path in (folder / "tables").iterdir()} == {"vs_ce.tex", "vs_kd.tex", "comparisons.tex"}
    assert folder == suite.store.suite_folder("quickstart") / "report" and not done.problems
    page = (folder / "report.md").read_text(encoding="utf-8")
    for text in (page, out.getvalue()):
        assert "Compared: 4 losses" in text and "Four objectives on the digits." in text
        assert "cc (taylor)" in text and "Δ to kd" in text
    assert len(pd.read_parquet(folder / "frame.parquet")) == 21


def test_the_same_records_give_the_same_bytes(made):
    suite = made().finish_all().write()
    suite.profile("kd")
    suite.write()
    told = []
    for _ in range(2):
        out = io.StringIO()
        folder = report(suite.store, ["quickstart"], out).folders["quickstart"]
        told.append([out.getvalue(), *(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())])
    assert told[0] == told[1]


def test_a_damaged_or_absent_suite_does_not_stop_the_others(made):
    good = made(suite="good").finish_all().write()
    for name, text in (("torn", '{"schema": 1, '), ("empty", "{}"), ("odd", "[]")):
        path = good.store.suite_folder(name) / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    out = io.StringIO()
    done = report(good.store, ["torn", "empty", "odd", "absent", "good"], out)
    assert list(done.folders) == ["good"]
    assert sorted(done.problems) == ["absent", "empty", "odd", "torn"]
    assert "torn cannot be reported: " in out.getvalue() and "no results under" in done.problems["absent"]
    assert sorted(report(good.store, None, out).problems) == ["empty", "odd", "torn"]


def test_nothing_to_report_is_said(made):
    out = io.StringIO()
    assert not report(made().store, None, out).folders
    assert "nothing to report" in out.getvalue()


def test_failed_and_missing_runs_stand_in_the_first_lines(made):
    suite = made().finish_all().write()
    one, other, *_ = suite.cells(objective="cc")
    suite.finish(one["id"], None, outcome="diverged")
    suite.store.file(other["id"], "record.json").unlink()
    out = io.StringIO()
    report(suite.store, None, out)
    assert "19 of 21 runs finished; 1 diverged, 1 missing." in out.getvalue()


@pytest.fixture
def many(made):
    objectives = [(name, name, "published") for name in ("ce", "kd", *(f"loss{number}" for number in range(18)))]
    gain = dict.fromkeys((name for name, _, _ in objectives), 0.01)
    suite = made(teachers=("big", "other"), students=[f"s{number}" for number in range(10)], objectives=objectives)
    return suite.finish_all(gain=gain).write()


@pytest.mark.slow
def test_two_thousand_records_are_reported_in_seconds(many):
    assert len(many.manifest["cells"]) > 1900
    report(many.store, None, io.StringIO())  # the first imports pandas, SciPy, statsmodels
    start = time.process_time()
    report(many.store, None, io.StringIO())
    assert time.process_time() - start < FAST_S


def test_a_table_of_thousands_of_rows_is_left_out_of_print_and_said_to_be(made, monkeypatch):
    monkeypatch.setattr("kdbench.report.write.MOST_ROWS_IN_PRINT", 4)
    suite = made().finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO()).folders["quickstart"]
    assert {path.name for path in (folder / "tables").iterdir()} == {"vs_ce.tex", "vs_kd.tex"}  # of four rows; five comparisons
    assert "Its 5 rows are not printed here. They are in report.md." in (folder / "report.tex").read_text()
    assert "| cka - kd |" in (folder / "report.md").read_text()


VERBS = ("cli", "plan.summary", "run.verbs", "run.status", "slurm.cluster_verbs", "slurm.queue_status")


def loaded_after(code: str) -> set[str]:
    names = ["torch", "torchvision", "timm", "pandas", "scipy", "statsmodels"]
    tail = f"\nimport sys; print(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_a_verb_loads_neither_torch_nor_pandas_before_it_needs_them():
    assert loaded_after("\n".join(f"import kdbench.{name}" for name in VERBS)) == set()


def test_reporting_loads_no_torch(made):
    suite = made().finish_all().write()
    load = "import sys\nfrom kdbench.store import Store\nfrom kdbench.report.write import report\n"
    code = f"{load}report(Store({str(suite.store.root)!r}), None, sys.stdout)\nprint()"
    assert not loaded_after(code) & {"torch", "torchvision", "timm"}


def test_the_whole_report_is_the_same_bytes_again(made):
    suite = made().finish_all().write()
    suite.profile("kd")
    suite.profile("ce", None)
    suite.write()
    asked = ReportOptions(figures=True, page=True, histories=True)
    told = []
    for _ in range(2):
        folder = report(suite.store, ["quickstart"], io.StringIO(), options=asked).folders["quickstart"]
        told.append({str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})
    assert told[0].keys() == told[1].keys() >= {"report.html", "figures/seeds.pdf", "figures/seeds.png", "figures/cost.pdf"}
    assert [name for name in told[0] if told[0][name] != told[1][name]] == []


def test_the_paper_layout_and_a_published_table_stand_in_the_report(made):
    suite = made().finish_all().write()
    out = io.StringIO()
    report(suite.store, ["quickstart"], out, options=ReportOptions(layout="paper", beside="saha2022_table1"))
    folder = suite.store.suite_folder("quickstart") / "report"
    assert {"paper.tex", "vs_ce.tex", "vs_kd.tex", "beside.tex", "comparisons.tex"} == {path.name for path in (folder / "tables").iterdir()}
    assert "Student alone" in out.getvalue()


def printed_of(suite, **options):
    out = io.StringIO()
    report(suite.store, [suite.suite], out, width=110, options=ReportOptions(images=False, **options))
    return out.getvalue()


def test_the_terminal_shows_all_pairs_first_and_says_how_to_see_the_rest(made):
    few, many = (
        made(suite="few").finish_all().write(),
        made(suite="many", teachers=[f"t{place}" for place in range(8)]).finish_all().write(),
    )
    assert "digits · student small · teacher big" in printed_of(few)
    short, full = printed_of(many), printed_of(many, full=True)
    assert "all pairs (1 student x 8 teachers)" in short and "· teacher t3" not in short and len(short.splitlines()) <= 70
    assert "--full prints all tables" in short and short.count("Holm-corrected for") == 1
    assert all(words in full for words in ("· teacher t3", "Comparisons of top-1", "top-1 across pairs", "simultaneous"))
    assert f"{many.store.suite_folder('many') / 'report' / 'report.md'}." in short.splitlines()[-1]


def test_the_measured_quickstart_takes_seventy_lines_and_full_prints_all():
    path = Path(kdbench.__file__).parents[1] / "results/measured/quickstart/frame.csv"
    out = io.StringIO()
    assert run(Path("results"), [str(path)], [], None, ReportOptions(), False, (), out) == 0
    assert len(out.getvalue().splitlines()) <= 70
    full = io.StringIO()
    assert run(Path("results"), [str(path)], [], None, ReportOptions(full=True), False, (), full) == 0
    assert all(words in full.getvalue() for words in ("Comparisons of top-1", "across pairs", "Cost of a training step"))


def test_a_results_folder_that_may_not_be_written_to_is_reported_anyway(made, monkeypatch):
    suite = made().finish_all().write()
    number = [errno.EROFS]

    def refuse(*_):
        try:
            raise OSError(number[0], "Read-only file system")
        except OSError as error:
            raise StoreError("the folder cannot be written (Read-only file system): choose another folder") from error

    monkeypatch.setattr(type(suite.store), "make_folder", refuse)
    out = io.StringIO()
    assert report(suite.store, None, out).problems == {}
    assert "compared with kd" in out.getvalue() and out.getvalue().splitlines()[-1].startswith("Nothing was written: the folder cannot")
    for asked in ({"figures": True}, {"page": True}, {"histories": True}, {"tensorboard": Path("events")}):
        monkeypatch.setattr("kdbench.report.figures.draw.KINDS", {})
        assert "quickstart" in report(suite.store, None, io.StringIO(), options=ReportOptions(**asked)).problems
    number[0] = errno.ENOSPC
    with pytest.raises(StoreError):  # a full disk is no state to go on in
        report(suite.store, None, io.StringIO())


def test_a_frame_file_is_printed_before_its_folder_turns_out_not_to_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    out = io.StringIO()
    with pytest.raises(StoreError):
        run(tmp_path, [str(Path(__file__).parent / "frames/kd2x4x8.csv")], [], tmp_path / "file" / "to", ReportOptions(), False, (), out)
    assert "▲ better" in out.getvalue()


def test_statistics_open_no_file():
    sources = Path(kdbench.stats.__file__).parent.glob("*.py")
    nodes = itertools.chain.from_iterable(ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in sources)
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not names & {"open", "Path", "Store"}


def test_where_only_single_pairs_can_be_tested_the_terminal_shows_them_and_the_facts_say_why():
    out = io.StringIO()
    path = Path(__file__).parent / "frames/17_missing_repeat.csv"
    assert run(Path("results"), [str(path)], [], None, ReportOptions(), False, (), out) == 0
    text = " ".join(out.getvalue().split())
    assert "all pairs cannot be tested: runs without a repeat number cannot be joined over pairs. The results are pair by pair." in text
    assert "is shown" not in text and "all pairs (2 students x 1 teacher) Δ" not in text
    assert text.count("d · student s1 · teacher t1") == 2 and "▲ better" in text


def test_the_caption_of_the_measured_quickstart_takes_eight_lines():
    path = Path(kdbench.__file__).parents[1] / "results/measured/quickstart/frame.csv"
    out = io.StringIO()
    run(Path("results"), [str(path)], [], None, ReportOptions(), False, (), out)
    lines = out.getvalue().splitlines()
    first, last = (next(place for place, line in enumerate(lines) if line.startswith(words)) for words in ("top-1 on the", "--full"))
    assert last - first <= 8 and max(map(len, lines)) <= 110


def test_a_folder_that_is_no_suite_and_a_suite_without_records_replace_no_report(made, tmp_path):
    suite = made().finish_all().write()
    out, kept = io.StringIO(), suite.store.suite_folder("quickstart") / "report" / "report.md"
    report(suite.store, ["quickstart"], out)
    before = kept.read_text()
    for cell in suite.cells():
        suite.store.file(cell["id"], "record.json").unlink()
    done = report(suite.store, ["quickstart"], out)
    assert "none of its runs is under" in done.problems["quickstart"] and kept.read_text() == before
    (tmp_path / "measured").mkdir()
    for name, accepted, words in ((str(tmp_path / "measured"), (), "did you mean .*frame.csv"), ("quickstart", ("no-kd",), "--accept")):
        with pytest.raises(UsageError, match=words):
            run(tmp_path, [name], [name], None, ReportOptions(), False, accepted, out)
