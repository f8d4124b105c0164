"""The page as text: what stands in it, what is escaped, what it may load, how large it gets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pytest

from kdbench.cell import Cell
from kdbench.errors import KdbenchError
from kdbench.report.document import Document, Figure, Owed
from kdbench.report.frame import frame
from kdbench.report.history import histories
from kdbench.report.page.page import page
from kdbench.report.page.payload import payload
from kdbench.report.page.runs import Curve, RunDetails, run_details
from kdbench.report.table import BEST, TIED, Column, Entry, Group, Table

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
        "objective": "kd",
        "label": "kd",
        "repeat": number,
        "teacher_seed": 0,
        "state": "finished",
        "why": "",
        "metrics": {"top1_last": 0.9, "nll_last": None},
        "percent": frozenset({"top1_last"}),
        "circumstance": {"n_train": 300, "device": "cpu"},
        "config": {"recipe": {"epochs": 3, "lr": 0.05}, "repeat": number},
        "curve": Curve("test top-1", True, (1, 2, 3), (0.5, 0.75, 0.9)),
    }
    return RunDetails(**{**same, **changes})


def table(*rows: tuple[Entry, ...], titles=("objective", "top-1, %")) -> Table:
    columns = tuple(Column(title, numeric=place > 0) for place, title in enumerate(titles))
    return Table("Accuracies", columns, (Group("digits · small", rows, ("a fact",), ("† a note",)),), ("What is claimed.",), ("A note.",))


def document(*tables: Table, **parts) -> Document:
    return Document("My suite", ("21 of 21 runs finished.",), tables, **parts)


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def words_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_everything_in_the_document_stands_on_the_page():
    number = Entry(0.9123, spread=0.004, interval=(0.90, 0.92), format=".2f", scale=100, marks=("†",), runs=("0" * 12,))
    warnings = (Owed("one-teacher", "its luck is in no interval", "digits"), Owed("test-set", "on these 900 images"))
    figures = (Figure("seeds", "Every seed", "A point a run."),)
    html = page(document(table((Entry("kd"), number)), warnings=warnings, figures=figures), [run(0)], {})
    words = words_of(html)
    for text in (
        "My suite",
        "21 of 21 runs finished.",
        "Accuracies",
        "digits · small",
        "a fact",
        "† a note",
        "What is claimed.",
        "A note.",
    ):
        assert text in words
    for text in ("Warnings (2)", "one-teacher", "digits: its luck is in no interval", "test-set", "on these 900 images"):
        assert text in words
    assert number.text() in words and "91.23† ± 0.40 [90.00, 92.00]" in words
    assert "Every seed. A point a run." in words and "Not drawn." in words


def test_numbers_stand_beside_their_text_so_that_they_sort_as_numbers():
    rows = [(Entry("a"), Entry(0.0004, format=".3f", least=0.001)), (Entry("b"), Entry(None)), (Entry("c"), Entry("5/5"))]
    html = page(document(table(*rows)), [], {})
    assert 'data-v="0.0004">&lt;0.001</td>' in html and 'data-v="">–</td>' in html and '<td class="n">5/5</td>' in html


def test_what_is_seen_in_the_type_is_also_said():
    rows = [(Entry("a"), Entry(1.0, emphasis=BEST)), (Entry("b"), Entry(0.9, emphasis=TIED)), (Entry("c"), Entry(0.8, apart=True))]
    html = page(document(table(*rows)), [], {})
    assert '<b class="best">1.0</b><span class="heard"> (best)' in html
    assert '<b class="tied">0.9</b><span class="heard"> (not distinguishable from the best)' in html
    assert '<i class="apart">0.8</i><span class="heard"> (published elsewhere)' in html


def test_an_entry_names_the_places_of_its_runs_and_a_row_what_it_is_chosen_by():
    runs = [run(0, teacher=None, label="ce"), run(1), run(2, state="failed")]
    rows = [(Entry("ce", runs=(runs[0].id,)), Entry(0.9)), (Entry("kd", runs=(runs[2].id, runs[1].id, "unknown")), Entry(0.9))]
    html = page(document(table(*rows)), runs, {})
    assert '<tr data-student="small" data-teacher="big" data-objective="ce" data-state="finished"><th scope="row" data-r="0">' in html
    assert 'data-objective="kd" data-state="failed\nfinished"><th scope="row" data-r="2 1">' in html


def test_a_hostile_name_is_text_wherever_it_stands():
    hostile = run(0, label=EVIL, student=EVIL, why=f"raised: {EVIL}", config={"loss": EVIL}, failure={"message": EVIL, "traceback": EVIL})
    evil = table((Entry(EVIL, runs=(hostile.id,)), Entry(EVIL)), titles=(EVIL, EVIL))
    evil = replace(
        evil, title=EVIL, caption=(EVIL,), notes=(EVIL,), groups=(replace(evil.groups[0], title=EVIL, facts=(EVIL,), notes=(EVIL,)),)
    )
    whole = Document(EVIL, (EVIL,), (evil,), (Owed(EVIL, EVIL, EVIL),), (Figure(EVIL, EVIL, EVIL), Figure("drawn", EVIL, EVIL)))
    html = page(whole, [hostile], {"drawn": '<svg xmlns="http://www.w3.org/2000/svg"><text>x</text></svg>'})
    assert "<img" not in html and words_of(html).count(EVIL) >= 20
    assert data_of(html)["shared"].count(EVIL) == 1


def test_json_ends_no_script_and_breaks_no_line():
    text = "</script><!--<script>&\u2028\u2029"
    packed = payload([run(0, why=text)])
    assert not re.search("[<>&\u2028\u2029]", packed)
    assert text in json.loads(packed)["shared"]


def test_the_same_report_gives_the_same_bytes_in_any_process():
    whole = document(table((Entry("kd", runs=(run(0).id, run(1).id)), Entry(0.9))))
    assert page(whole, [run(0), run(1)], {}) == page(whole, [run(0), run(1)], {})
    assert " at 0x" not in page(whole, [run(0)], {})


def test_the_page_loads_nothing_and_its_policy_names_its_one_script():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"><image href="https://x.org/a.png"/><a xlink:href="http://x.org"/></svg>'
    html = page(document(table((Entry("kd"), Entry(0.9))), figures=(Figure("f", "F", "c"),)), [run(0)], {"f": svg})
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';") and "unsafe" not in policy.split(";")[1]
    outside_script = html.replace(script, "")
    assert not re.search(r"https?://", outside_script) and not re.search(r"@import|url\((?!#)", html)
    assert re.findall(r"https?://[^\"']*", script) == ["http://www.w3.org/2000/svg"]  # the name of a namespace, for createElementNS
    assert not re.search(r"<[^>]*\son[a-z]+=", outside_script)


def test_the_page_is_built_for_readers_of_all_kinds():
    html = page(document(table((Entry("kd"), Entry(0.9)))), [run(0)], {})
    assert '<html lang="en">' in html and 'class="skip" href="#main"' in html and "@media print" in html and "prefers-color-scheme" in html
    assert re.search(r'<div class="scroll" role="region" tabindex="0" aria-labelledby="table-1 table-1-1">', html)
    assert re.search(r"<noscript>.*<td>000000000000.*<td>90.00 %.*</noscript>", html, re.DOTALL)


def test_figures_side_by_side_share_no_id_and_no_style():
    svg = (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="360pt" height="216pt">'
        "<defs><style>*{stroke-linejoin: round} #c {fill: url(#g)}</style><path id='m'/><clipPath id='c'/></defs>"
        "<g clip-path='url(#c)' onclick='x()'><use xlink:href='#m'/><script>x()</script><text>top-1</text></g></svg>"
    )
    figures = (Figure("a", "A", "first"), Figure("b", "B", "second"))
    html = page(document(figures=figures), [], {"a": svg, "b": svg})
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids)) and {"figure-1-m", "figure-2-m", "figure-1-c", "figure-2-c"} <= set(ids)
    assert 'clip-path="url(#figure-2-c)"' in html and 'href="#figure-2-m"' in html
    assert "#figure-1 * {stroke-linejoin: round}" in html and "#figure-1 #figure-1-c {fill: url(#figure-1-g)}" in html
    assert "onclick" not in html and html.count("x()") == 0 and "<text>top-1</text>" in html
    assert 'viewBox="0 0 360 216"' in html and 'role="img" aria-label="B. second"' in html


@pytest.mark.parametrize(
    ("drawings", "told"), [({"a": "<svg"}, "no SVG"), ({"a": "<p/>"}, "root is <p>"), ({"b": "<svg/>"}, "does not have: b")]
)
def test_a_drawing_that_is_none_or_belongs_nowhere_is_refused(drawings, told):
    with pytest.raises(KdbenchError, match=told):
        page(document(figures=(Figure("a", "A", "first"),)), [], drawings)


@pytest.mark.parametrize(
    "values",
    [(0.1, 0.73125, 0.9), (2.302585092994046, 1.5, 0.001), (0.0, 0.0), (12345.678, 3.0), (-1e-7, 2e-7), (0.5, 0.25), (1.25e9, 7.0)],
)
def test_a_curve_is_packed_to_five_digits_of_its_largest_value(values):
    epochs = tuple(range(2, 2 * len(values) + 1, 2))
    packed = json.loads(payload([run(0, curve=Curve("training loss", False, epochs, values))]))
    label, spaced, decimals, steps = packed["runs"][0][8]
    assert np.allclose(np.cumsum(steps) / 10.0**decimals, values, rtol=0, atol=0.5e-4 * max(map(abs, values)))
    assert packed["shared"][label] == ["training loss", False]
    assert packed["shared"][spaced] == {"first": 2, "step": 2 if len(values) > 1 else 1, "count": len(values)}


def test_what_runs_share_stands_on_the_page_once():
    recipe = {"epochs": 240, "milestones": [150.0, 180.0, 210.0]}
    packed = json.loads(payload([run(number, config={"recipe": dict(recipe), "repeat": number}) for number in range(50)]))
    assert packed["shared"].count(recipe) == 1
    assert [packed["shared"][place] for place in packed["runs"][7][6]] == [recipe, 7]


def test_a_number_that_is_none_becomes_null():
    packed = json.loads(payload([run(0, metrics={"top1_last": float("nan")}, config={"x": [float("inf"), 1.0]})]))
    assert packed["runs"][0][4] == [None] and [None, 1.0] in packed["shared"]


def history(epochs: int) -> list[dict]:
    terms = {"task": {"raw": 1.0, "weighted": 1.0}, "kd": {"raw": 2.0, "weighted": 2.0, "gradient_ratio": 0.5}}
    return [
        {"epoch": at, "lr": 0.1, "loss": 3.0 - at, "terms": terms, **({"test": {"top1": 0.1 * at, "nll": 1.0}} if at % 2 else {})}
        for at in range(epochs)
    ]


@pytest.fixture
def told(made):
    """A suite with a finished run, a diverged, a failed and a missing one, and their configurations."""
    suite = made(repeats=1)
    teacher, ce, kd, cc, cka = suite.manifest["cells"]
    cell = Cell({"role": "student", "depends": {}, "recipe": {"epochs": 4}})
    kd["id"] = cell.id
    suite.store.put_cell(cell)
    suite.finish(teacher["id"], 0.96)
    suite.finish(cell.id, 0.91, history=history(4))
    suite.finish(ce["id"], None, outcome="diverged", history=[{"epoch": 0, "lr": 0.1, "loss": 9.5, "terms": {}}])
    suite.store.put_failure(cc["id"], {"class": "raised", "message": "ValueError: no", "traceback": "Traceback", "last_lines": ["one"]})
    suite.write()
    return suite


@pytest.mark.parametrize("with_frame", [True, False])
def test_each_run_is_told_with_its_configuration_curve_and_failure(told, with_frame):
    manifest = told.checked()
    epochs = histories(told.store, manifest) if with_frame else None
    teacher, ce, kd, cc, cka = run_details(told.store, manifest, frame(told.store, manifest), epochs)
    assert kd.config == {"role": "student", "depends": {}, "recipe": {"epochs": 4}} and kd.failure is None
    assert kd.curve == Curve("test top-1", True, (2, 4), (0.1, pytest.approx(0.3)))
    assert kd.metrics["top1_last"] == 0.91 and kd.metrics["top1_best_val"] is None and "top1_last" in kd.percent
    assert kd.circumstance["n_train"] == 300 and kd.circumstance["train_s"] == 1.5 and kd.label == "kd" and kd.repeat == 0
    assert ce.curve == Curve("training loss", False, (1,), (9.5,)) and ce.why == "diverged at step 120" and ce.teacher is None
    assert cc.failure["message"] == "ValueError: no" and cc.state == "failed" and cc.curve is None
    assert cka.state == "missing" and cka.failure is None and "there is no cell" in cka.no_config


def test_a_failure_of_an_earlier_attempt_is_not_told_of_a_run_that_finished(told):
    cell = told.cells(objective="kd")[0]
    told.store.put_failure(cell["id"], {"class": "killed", "message": "earlier"})
    details = run_details(told.store, told.checked(), frame(told.store, told.checked()))
    assert next(one for one in details if one.id == cell["id"]).failure is None


def test_rows_from_a_file_are_told_without_a_store(told, tmp_path):
    manifest = told.checked()
    frame(told.store, manifest).to_csv(tmp_path / "frame.csv", index=False)
    histories(told.store, manifest).to_csv(tmp_path / "histories.csv", index=False)
    rows, epochs = pd.read_csv(tmp_path / "frame.csv"), pd.read_csv(tmp_path / "histories.csv")
    kd = next(one for one in run_details(None, None, rows, epochs) if one.objective == "kd")
    assert kd.config is None and "file of rows" in kd.no_config and kd.failure is None
    assert kd.curve == Curve("test top1", False, (2, 4), (0.1, pytest.approx(0.3))) and kd.metrics["top1_last"] == 0.91
    assert "000" in page(document(), run_details(None, manifest, rows), {})


def many(count: int) -> tuple[Document, list[RunDetails]]:
    """Runs with configurations as large as the suites' own and an evaluation an epoch, and a table with an entry for each five."""
    draw = np.random.default_rng(0)
    options = {f"option_{number}": number / 3 for number in range(30)}
    runs = []
    for number in range(count):
        block, objective, repeat = number // 100, number // 5 % 20, number % 5
        shared = {"objective": {"task": 1.0, "terms": [{"loss": f"loss{objective}", "options": options, "weight": 1.0}]}, "recipe": options}
        curve = Curve("test top-1", True, tuple(range(1, EPOCHS + 1)), tuple((np.round(7000 + draw.normal(0, 60, EPOCHS)) / 1e4).tolist()))
        circumstance = {"n_train": 50000, "device": "NVIDIA H200", "train_s": 7000.123 + number, "weights_digest": f"{number:016x}"}
        place = {"student": f"student{block}", "label": f"loss{objective}", "objective": f"loss{objective}", "repeat": repeat}
        config = {**shared, "dataset": dict(options), "repeat": repeat, "depends": {"teacher": f"{block:012x}"}}
        runs.append(run(number, **place, config=config, curve=curve, circumstance=circumstance, metrics={"top1_last": curve.values[-1]}))
    rows = [
        tuple(Entry(number / 7, format=".2f", runs=tuple(one.id for one in runs[at : at + 5])) for number in range(8))
        for at in range(0, count, 5)
    ]
    columns = tuple(Column(f"column {number}") for number in range(8))
    groups = tuple(Group(f"block {at // 20}", tuple(rows[at : at + 20])) for at in range(0, len(rows), 20))
    return document(Table("Accuracies", columns, groups)), runs


def test_five_thousand_runs_stay_within_the_stated_size():
    whole, runs = many(5000)
    html = page(whole, runs, {})
    assert len(html.encode()) < LARGEST_MB * 1e6
    assert len(data_of(html)["runs"]) == 5000
