"""The report as a whole: files, several suites, speed, and what it loads."""

from __future__ import annotations

import ast
import io
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import kdbench.stats
from kdbench.report.write import Asked, report

FAST_S = 6.0
"""Of processor time, for 2,000 records in 740 comparisons; half of it is the usual."""


def test_a_report_leaves_the_frame_and_markdown_and_prints_the_same_tables(made):
    suite = made().finish_all().write()
    out = io.StringIO()
    done = report(suite.store, None, out, width=110)
    folder = done.folders["quickstart"]
    assert {path.name for path in folder.iterdir()} == {
        *("frame.csv", "frame.parquet", "manifest.json", "summaries.csv", "comparisons.csv", "warnings.json"),
        *("report.md", "report.tex", "tables"),
    }
    assert {path.name for path in (folder / "tables").iterdir()} == {"accuracy.tex", "comparisons.tex"}
    assert folder == suite.store.suite_folder("quickstart") / "report" and not done.problems
    page = (folder / "report.md").read_text(encoding="utf-8")
    for text in (page, out.getvalue()):
        assert "21 of 21 runs finished." in text and "Four objectives on the digits." in text
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
    assert "torn: no report" in out.getvalue() and "never run" in done.problems["absent"]
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
    assert [path.name for path in (folder / "tables").iterdir()] == ["accuracy.tex"]  # of four rows; five comparisons
    assert "Its 5 rows are not printed here: they stand in report.md." in (folder / "report.tex").read_text()
    assert "| cka - kd |" in (folder / "report.md").read_text()


MODULES = [
    f"kdbench.{room}.{path.stem}"
    for room in ("stats", "report")
    for path in sorted((Path(kdbench.__file__).parent / room).glob("[!_]*.py"))
]


def loaded_after(code: str) -> set[str]:
    names = ["torch", "torchvision", "timm", "pandas", "scipy", "statsmodels"]
    tail = f"\nimport sys; print(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_report_loads_neither_torch_nor_pandas():
    assert loaded_after("\n".join(f"import {name}" for name in MODULES)) == set()


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
    asked = Asked(figures=True, page=True, histories=True)
    told = []
    for _ in range(2):
        folder = report(suite.store, ["quickstart"], io.StringIO(), asked=asked).folders["quickstart"]
        told.append({str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})
    assert told[0].keys() == told[1].keys() >= {"report.html", "figures/seeds.pdf", "figures/seeds.png", "figures/cost.pdf"}
    assert [name for name in told[0] if told[0][name] != told[1][name]] == []


def test_the_paper_layout_and_a_published_table_stand_in_the_report(made):
    suite = made().finish_all().write()
    out = io.StringIO()
    report(suite.store, ["quickstart"], out, asked=Asked(layout="paper", beside="saha2022_table1"))
    folder = suite.store.suite_folder("quickstart") / "report"
    assert {"paper.tex", "beside.tex", "comparisons.tex"} == {path.name for path in (folder / "tables").iterdir()}
    assert "Student alone" in out.getvalue()


def test_statistics_open_no_file():
    sources = Path(kdbench.stats.__file__).parent.glob("*.py")
    nodes = itertools.chain.from_iterable(ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in sources)
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not names & {"open", "Path", "Store"}
