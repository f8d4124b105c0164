"""The page as text: what stands in it, what is escaped, what it may load, how large it gets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pytest

from kdbench.cell import Cell
from kdbench.failure import Failure
from kdbench.report.document import Document, Figure, ReportWarning
from kdbench.report.page.page import page
from kdbench.report.page.runs import Curve, RunDetails, run_details, runs_table
from kdbench.report.table import BEST, TIED, Column, Entry, Group, Table
from kdbench.store.frame import frame
from kdbench.store.histories import histories

SVG = '<svg xmlns="http://www.w3.org/2000/svg" onload="x()"><text>x</text></svg>'
EVIL = "<img src=x onerror=alert(1)>"
LARGEST_MB = 12.0
EPOCHS = 240


def run(number: int, **changes) -> RunDetails:
    same = {
        "id": f"{number:012x}",
        "role": "student",
        "dataset": "digits",
        "teacher": "big",
        "student": "small",
        "label": "kd",
        "repeat": number,
        "teacher_seed": 0,
        "state": "finished",
        "why": "",
        "metrics": {"top1_last, %": Entry(0.9, format=".2f", scale=100), "nll_last": Entry(None)},
        "circumstance": {"n_train": 300, "device": "cpu"},
        "config": {"recipe": {"epochs": 3, "lr": 0.05}, "repeat": number},
        "curve": Curve("test top-1, %", (1, 2, 3), (50.0, 75.0, 90.0)),
    }
    return RunDetails(**{**same, **changes})


def table(*rows: tuple[Entry, ...], titles=("loss", "top-1, %")) -> Table:
    columns = tuple(Column(title, numeric=place > 0) for place, title in enumerate(titles))
    return Table(
        "Accuracies", columns, (Group("digits: big → small", rows, ("a fact",), ("† a note",)),), ("What is claimed.",), ("A note.",)
    )


def document(*tables: Table, **parts) -> Document:
    return Document("My suite", ("21 of 21 runs finished.",), tables, **parts)


def data_of(html: str) -> list[dict]:
    """The runs as the script of the page reads them."""
    return json.loads(zlib.decompress(base64.b64decode(re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', html)[1])))


def words_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html[html.index("<body>") :]))


def test_everything_in_the_document_stands_on_the_page():
    number = Entry(0.9123, spread=0.004, interval=(0.90, 0.92), format=".2f", scale=100, marks=("†",), runs=("0" * 12,))
    warnings = (
        ReportWarning("one-teacher", "digits: The claims are for this teacher."),
        ReportWarning("test-set", "The claims are for these 900 images."),
        ReportWarning("one-teacher", "letters: And for this one."),
    )
    figures = (Figure("seeds", "Every repeat", "A point is a run."),)
    html = page(document(table((Entry("kd"), number)), warnings=warnings, figures=figures), [run(0)], {})
    words = words_of(html)
    order = ["My suite", "21 of 21 runs finished.", "Accuracies", "digits: big → small", "a fact", number.text(), "† a note"]
    order += ["What is claimed.", "A note.", "one-teacher", "digits: The claims are for this teacher.; letters: And for this one."]
    order += ["test-set", "The claims are for these 900 images.", "Every repeat. A point is a run.", "All runs (1)"]
    places = [words.index(text, words.index("21 of 21")) for text in order[1:]]
    assert places == sorted(places) and words.index("My suite") < places[0] and "91.23† ± 0.40 [90.00, 92.00]" in words
    assert words.count("one-teacher") == 1


def test_numbers_stand_beside_their_text_so_that_they_sort_as_numbers():
    values = [Entry(0.0004, format=".3f", least=0.001), Entry(None), Entry("5/5"), Entry(np.float64(-0.5), format=".1f"), Entry(np.inf)]
    html = page(document(table(*((Entry("a"), value) for value in values))), [], {})
    for cell in (' data-v="0.0004">&lt;0.001', ' data-v="NaN">–', ">5/5", ' data-v="-0.5">−0.5', ' data-v="Infinity">inf'):
        assert f'<td class="n"{cell}</td>' in html


def test_only_the_hyphen_before_a_number_becomes_a_minus_sign():
    facts = ("top-1 of resnet-8 is [-0.5, -.25] below 3-4, not -x",)
    html = page(Document("My suite", facts, ()), [], {})
    assert "top-1 of resnet-8 is [−0.5, −.25] below 3-4, not -x" in words_of(html)


def test_what_is_seen_in_the_type_is_also_said():
    rows = [(Entry("a"), Entry(1.0, emphasis=BEST)), (Entry("b"), Entry(0.9, emphasis=TIED)), (Entry("c"), Entry(0.8, apart=True))]
    html = page(document(table(*rows)), [], {})
    assert '<b class="best">1.0</b><span class="heard"> (best)' in html
    assert '<b class="tied">0.9</b><span class="heard"> (not distinguishable from the best)' in html
    assert '<b class="apart">0.8</b><span class="heard"> (published elsewhere)' in html


def test_an_entry_names_the_places_of_its_runs_and_a_run_what_it_is_filtered_by():
    runs = [
        run(0, teacher=None, label="ce"),
        run(1),
        run(2, state="failed"),
        run(3, role="teacher", student="big", teacher=None, label=None),
    ]
    rows = [(Entry("ce", runs=(runs[0].id,)), Entry(0.9)), (Entry("kd", runs=(runs[2].id, runs[1].id, "unknown")), Entry(0.9))]
    html = page(document(table(*rows)), runs, {})
    assert '<tr><th scope="row" data-r="0">ce</th>' in html and '<tr><th scope="row" data-r="2 1">kd</th>' in html
    assert [one["choices"] for one in data_of(html)] == [
        ["small", None, "ce", "finished"],
        ["small", "big", "kd", "finished"],
        ["small", "big", "kd", "failed"],
        [None, "big", None, "finished"],
    ]
    assert '<select name="loss"><option value="">all</option><option>ce</option><option>kd</option></select>' in html
    assert re.search(r'<label hidden>student <select name="student">', html)  # there is one student


def test_columns_that_are_not_essential_are_marked_for_narrow_screens():
    whole = table((Entry("kd"), Entry(0.9)))
    first, second = whole.columns
    html = page(document(replace(whole, columns=(first, replace(second, essential=False)))), [], {})
    assert '<td class="n extra" data-v="0.9">' in html and '<label class="all"><input type="checkbox"> all columns</label>' in html
    assert 'class="all"' not in page(document(whole), [], {})


def test_the_pairs_of_a_long_table_are_folded_but_the_first_group():
    for count, folded in ((9, False), (10, True)):
        whole = table((Entry("kd"), Entry(0.9)))
        html = page(document(replace(whole, groups=tuple(replace(whole.groups[0], title=f"pair {at}") for at in range(count)))), [], {})
        fold = '<details class="fold"><summary>9 more: pair 1 to pair 9</summary>'
        assert (fold in html) is folded and html.count("<details") == html.count("</details>")
        assert not folded or html.index("pair 0") < html.index(fold) < html.index("</h3>", html.index(fold))


def test_a_hostile_name_is_text_wherever_it_stands():
    hostile = run(0, label=EVIL, student=EVIL, why=f"raised: {EVIL}", config={"loss": EVIL}, failure={"message": EVIL, "traceback": EVIL})
    evil = table((Entry(EVIL, runs=(hostile.id,)), Entry(EVIL)), titles=(EVIL, EVIL))
    evil = replace(
        evil, title=EVIL, caption=(EVIL,), notes=(EVIL,), groups=(replace(evil.groups[0], title=EVIL, facts=(EVIL,), notes=(EVIL,)),)
    )
    whole = Document(EVIL, (EVIL,), (evil,), (ReportWarning(EVIL, EVIL),), (Figure(EVIL, EVIL, EVIL), Figure("drawn", EVIL, EVIL)))
    html = page(whole, [hostile], {"drawn": SVG})
    assert html.count("<img") == 1 and html.count('<img src="data:image/svg+xml;base64,') == 1 and words_of(html).count(EVIL) >= 20
    assert data_of(html)[0]["failure"]["message"] == EVIL


def test_the_same_report_gives_the_same_bytes_in_any_process():
    whole = document(table((Entry("kd", runs=(run(0).id, run(1).id)), Entry(0.9))))
    assert page(whole, [run(0), run(1)], {}) == page(whole, [run(0), run(1)], {})
    assert " at 0x" not in page(whole, [run(0)], {})


def test_the_page_loads_nothing_and_its_policy_names_its_one_script():
    html = page(document(table((Entry("kd"), Entry(0.9))), figures=(Figure("f", "F", "c"),)), [run(0)], {"f": SVG})
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';") and "unsafe" not in policy.split(";")[1]
    outside_script = html.replace(script, "")
    assert not re.search(r"https?://", outside_script) and not re.search(r"@import|url\(", html)
    assert re.findall(r"https?://[^\"']*", script) == ["http://www.w3.org/2000/svg"]  # the name of a namespace, for createElementNS
    assert not re.search(r"<[^>]*\son[a-z]+=", outside_script)


def test_the_page_is_built_for_readers_of_all_kinds():
    html = page(document(table((Entry("kd"), Entry(0.9)))), [run(0)], {})
    assert '<html lang="en">' in html and 'class="skip" href="#main"' in html and "@media print" in html and "prefers-color-scheme" in html
    assert re.search(r'<div class="scroll" role="region" tabindex="0" aria-labelledby="table-1 table-1-1">', html)
    assert re.search(r'<th scope="row" data-r="0">000000000000</th>.*<td class="n" data-v="0.9">90.00</td>', html)


def test_a_figure_is_an_image_of_its_own_with_its_caption_in_place_of_it():
    html = page(document(figures=(Figure("a", "A", "first -1"), Figure("b", "B", "second"))), [], {"a": SVG})
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]*)" alt="([^"]*)">', html)
    assert [(base64.b64decode(one).decode(), alt) for one, alt in images] == [(SVG, "first -1")]
    assert "B. second" in words_of(html)


def test_a_run_is_shown_with_the_numbers_as_they_are_printed():
    one = data_of(page(document(), [run(0, circumstance={"train_s": 1.23456789, "restarts": 0, "host": None})], {}))[0]
    assert one["title"] == "kd · small · teacher big" and one["brief"] == ["repeat 0", "90.00"] and one["series"] == "kd"
    assert one["facts"][0] == ["top1_last, %", "90.00"] and [name for name, _ in one["facts"]].count("nll_last") == 0
    assert one["facts"][-2:] == [["train_s", "1.23457"], ["restarts", "0"]] and ["loss", "kd"] in one["facts"]
    assert one["curve"] == {"label": "test top-1, %", "epochs": [1, 2, 3], "values": [50.0, 75.0, 90.0]}


def test_the_list_of_runs_leaves_out_columns_that_no_run_fills():
    columns = [column.title for column in runs_table([run(0, teacher_seed=None)]).columns]
    assert columns == ["run", "role", "dataset", "student", "teacher", "loss", "repeat", "state", "top1_last, %"]
    assert [one.title for one in runs_table([run(0), run(1, why="raised")]).columns][-1] == "reason"


def test_a_number_that_is_none_becomes_null():
    one = data_of(page(document(), [run(0, metrics={"top1_last": Entry(float("nan"))}, config={"x": [float("inf"), 1.0]})], {}))[0]
    assert one["config"] == {"x": [None, 1.0]}


def history(epochs: int) -> list[dict]:
    terms = {"task": {"raw": 1.0, "weighted": 1.0}, "kd": {"raw": 2.0, "weighted": 2.0, "gradient_ratio": 0.5}}
    return [
        {"epoch": at, "lr": 0.1, "loss": 3.0 - at, "terms": terms, **({"test": {"top1": 0.1 * at, "nll": 1.0}} if at % 2 else {})}
        for at in range(epochs)
    ]


CONFIG = {
    **dict.fromkeys(("task", "dataset", "student", "depends", "objective", "numerics"), {}),
    **{"schema": 1, "role": "student", "recipe": {"epochs": 4}, "seed": 0, "repeat": 0},
}


@pytest.fixture
def suite(made):
    """A suite with a finished run, a diverged, a failed and a missing one, and their configurations."""
    suite = made(repeats=1)
    teacher, ce, kd, cc, cka = suite.manifest["cells"]
    cell = Cell(CONFIG)
    kd["id"] = cell.id
    suite.store.put_cell(cell)
    suite.finish(teacher["id"], 0.96)
    suite.finish(cell.id, 0.91, history=history(4))
    suite.finish(ce["id"], None, outcome="diverged", history=[{"epoch": 0, "lr": 0.1, "loss": 9.5, "terms": {}}])
    suite.store.put_failure(cc["id"], Failure("raised", "ValueError: no", "Traceback", ("one",)))
    suite.write()
    return suite


def test_each_run_has_its_configuration_curve_and_failure(suite):
    manifest = suite.checked()
    teacher, ce, kd, cc, cka = run_details(suite.store, manifest, frame(suite.store, manifest), histories(suite.store, manifest))
    assert kd.config == CONFIG and kd.failure is None
    assert kd.curve == Curve("test top-1, %", (2, 4), (10.0, 30.0))
    assert kd.metrics["top1_last, %"].text() == "91.00" and kd.metrics["top1_best_val, %"].text() == "–"
    assert kd.circumstance["n_train"] == 300 and kd.circumstance["train_s"] == 1.5 and kd.label == "kd" and kd.repeat == 0
    assert ce.curve == Curve("training loss", (1,), (9.5,)) and ce.why == "diverged at step 120" and ce.teacher is None
    assert cc.failure["message"] == "ValueError: no" and cc.state == "failed" and cc.curve is None
    assert cka.state == "missing" and cka.failure is None and "there is no cell" in cka.config
    assert teacher.choices == (None, "big", None, "finished")
    assert all(one.curve is None for one in run_details(suite.store, manifest, frame(suite.store, manifest)))


def test_a_failure_of_an_earlier_attempt_is_not_shown_for_a_run_that_finished(suite):
    cell = suite.cells(objective="kd")[0]
    suite.store.put_failure(cell["id"], Failure("killed", "earlier"))
    details = run_details(suite.store, suite.checked(), frame(suite.store, suite.checked()))
    assert next(one for one in details if one.id == cell["id"]).failure is None


def test_rows_from_a_file_are_shown_without_a_store(suite, tmp_path):
    manifest = suite.checked()
    frame(suite.store, manifest).to_csv(tmp_path / "frame.csv", index=False)
    histories(suite.store, manifest).to_csv(tmp_path / "histories.csv", index=False)
    rows, epochs = pd.read_csv(tmp_path / "frame.csv"), pd.read_csv(tmp_path / "histories.csv")
    kd = next(one for one in run_details(None, None, rows, epochs) if one.label == "kd")
    assert "frame file" in kd.config and kd.failure is None
    assert kd.curve == Curve("test top1", (2, 4), (0.1, 0.3)) and kd.metrics["top1_last"].value == 0.91
    assert "000" in page(document(), run_details(None, manifest, rows), {})


def many(count: int) -> tuple[Document, list[RunDetails]]:
    """Runs with configurations as large as the suites' own and an evaluation an epoch, and a table with an entry for each five."""
    draw = np.random.default_rng(0)
    options = {f"option_{number}": number / 3 for number in range(30)}
    runs = []
    for number in range(count):
        block, objective, repeat = number // 100, number // 5 % 20, number % 5
        shared = {"objective": {"task": 1.0, "terms": [{"loss": f"loss{objective}", "options": options, "weight": 1.0}]}, "recipe": options}
        curve = Curve("test top-1, %", tuple(range(1, EPOCHS + 1)), tuple((np.round(7000 + draw.normal(0, 60, EPOCHS)) / 100).tolist()))
        circumstance = {"n_train": 50000, "device": "NVIDIA H200", "train_s": 7000.123 + number, "weights_digest": f"{number:016x}"}
        place = {"student": f"student{block}", "label": f"loss{objective}", "repeat": repeat}
        config = {**shared, "dataset": dict(options), "repeat": repeat, "depends": {"teacher": f"{block:012x}"}}
        runs.append(
            run(number, **place, config=config, curve=curve, circumstance=circumstance, metrics={"top1_last": Entry(curve.values[-1])})
        )
    rows = [
        tuple(Entry(number / 7, format=".2f", runs=tuple(one.id for one in runs[at : at + 5])) for number in range(8))
        for at in range(0, count, 5)
    ]
    columns = tuple(Column(f"column {number}") for number in range(8))
    groups = tuple(Group(f"block {at // 20}", tuple(rows[at : at + 20])) for at in range(0, len(rows), 20))
    return document(Table("Accuracies", columns, groups)), runs


@pytest.mark.slow
def test_five_thousand_runs_stay_within_the_stated_size():
    whole, runs = many(5000)
    html = page(whole, runs, {})
    assert len(html.encode()) < LARGEST_MB * 1e6
    assert len(data_of(html)) == 5000
