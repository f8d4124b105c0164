"""The long format: what became of every cell."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from kdbench.failure import Failure
from kdbench.record import Record
from kdbench.report.cost_table import cost_table
from kdbench.report.write import ReportOptions, report
from kdbench.store.frame import costs, frame, write_frame
from kdbench.store.frame_files import load_frame


def states(suite):
    table = frame(suite.store, suite.checked())
    return table.set_index("id")


def test_every_cell_has_one_row_in_the_order_of_the_manifest(made):
    suite = made().finish_all()
    table = frame(suite.store, suite.checked())
    assert table["id"].tolist() == [cell["id"] for cell in suite.manifest["cells"]]
    assert (table["state"] == "finished").all() and (table["why"] == "").all()
    assert table["role"].value_counts().to_dict() == {"student": 20, "teacher": 1}
    first = table[table["objective"] == "cc"].iloc[0]
    assert first[["label", "repeat", "n_train", "n_test", "device", "code_version", "train_s"]].tolist() == [
        "cc (taylor)",
        0,
        300,
        900,
        "cpu",
        "0.1.0",
        1.5,
    ]
    assert 0 < first["top1_last"] < 1 and first["nll_last"] == 0.5
    assert table["top1_best_val"].isna().all()


def test_a_suite_that_never_ran_has_every_column_and_no_value(made):
    table = frame(made().store, made().checked())
    assert (table["state"] == "missing").all()
    assert table[["top1_last", "nll_last", "n_train"]].isna().all(axis=None)


def test_each_state_is_told_with_its_reason(made):
    suite = made().finish_all()
    diverged, failed, damaged, truncated, running, missing = (cell["id"] for cell in suite.cells(role="student")[:6])
    suite.finish(diverged, None, outcome="diverged")
    for cell_id in (failed, running, missing):
        suite.store.file(cell_id, "record.json").unlink()
    suite.store.put_failure(failed, Failure("device memory", "no memory", "…"))
    suite.store.file(damaged, "record.json").write_text('{"schema": 1, "id"')
    suite.store.file(truncated, "record.json").write_text(json.dumps({"id": truncated}))
    with suite.store.claim(running):
        found = states(suite)
    assert found.loc[diverged, ["state", "why"]].tolist() == ["diverged", "diverged at step 120"]
    assert found.loc[failed, ["state", "why"]].tolist() == ["failed", "device memory: no memory"]
    assert found.loc[damaged, "state"] == found.loc[truncated, "state"] == "damaged"
    assert "is damaged" in found.loc[damaged, "why"]
    assert found.loc[running, "state"] == "running"
    assert found.loc[missing, ["state", "why"]].tolist() == ["missing", ""]
    assert found.loc[[diverged, failed, damaged, running, missing], "top1_last"].isna().all()


def test_a_record_counts_although_an_earlier_attempt_failed(made):
    suite = made().finish_all()
    cell_id = suite.cells(objective="cc")[0]["id"]
    suite.store.put_failure(cell_id, Failure("disk", "once"))
    assert states(suite).loc[cell_id, "state"] == "finished"


def test_students_of_a_teacher_that_failed_or_is_below_the_required_value_are_blocked(made):
    suite = made(teachers=("big", "other"))
    big, other = (cell["id"] for cell in suite.cells(role="teacher"))
    suite.finish(big, 0.15)
    suite.manifest["teacher_requirements"] = {big: {"metric": "top1", "min": 0.2}}
    suite.store.put_failure(other, Failure("data", "truncated"))
    found = states(suite)
    assert found.loc[big, ["state", "why"]].tolist() == ["finished", "top-1 15.00 %, below the required 20.00 %"]
    assert found.loc[suite.cells(objective="cc", teacher="big")[0]["id"], ["state", "why"]].tolist() == [
        "blocked",
        f"its teacher (run {big}): top-1 15.00 %, below the required 20.00 %",
    ]
    assert found.loc[suite.cells(objective="cc", teacher="other")[0]["id"], "why"] == f"its teacher (run {other}): data: truncated"
    assert found.loc[suite.cells(objective="ce")[0]["id"], "state"] == "missing"


def test_parquet_and_csv_give_back_what_was_written(made, tmp_path):
    suite = made().finish_all()
    suite.finish(suite.cells(objective="cc")[1]["id"], None, outcome="diverged")
    suite.manifest["objectives"][2]["label"] = 'cc (τ, "taylor"), β|γ'
    table = frame(suite.store, suite.checked())
    folder = tmp_path / "somewhere"
    write_frame(suite.store, folder, table)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "frame.parquet"), table)
    back = pd.read_csv(folder / "frame.csv", dtype={"id": str})
    assert back["label"].fillna("").tolist() == table["label"].fillna("").tolist()
    assert back["top1_last"].tolist() == pytest.approx(table["top1_last"].tolist(), nan_ok=True, abs=0)
    assert back["id"].tolist() == table["id"].tolist()


def test_costs_are_numbers_with_their_quartiles_and_a_missing_profile_stays_in_the_frame(made):
    suite = made()
    suite.profile("ce", None)
    suite.profile("cc")
    suite.manifest["profiles"].append({**suite.manifest["profiles"][1], "objective": "kd", "id": "0" * 12})
    table = costs(suite.store, suite.checked()).set_index("objective")
    assert table["state"].to_dict() == {"ce": "measured", "cc": "measured", "kd": "missing"}
    assert table.loc["cc", ["step_ms", "step_ms_q1", "step_ms_q3", "added_flops"]].tolist() == pytest.approx([12.34, 11.34, 13.34, 2.5e6])
    assert table.loc["cc", ["peak_mem_gib", "optimizer_ms_q1"]].isna().all()


def test_what_a_comparison_should_have_in_common_stands_in_the_frame(made):
    suite = made(repeats=1)
    one, other = suite.cells(role="student")[:2]
    suite.finish(one["id"], 0.5)
    record = suite.store.record(one["id"])
    more = {"timm": "1.0.22", "torchvision": "0.24", "pillow": "12", "host": "node7", "job": {"id": "12_3", "restart": 2}}
    more["sources"] = {"task classification": "222", "loss kd": "111"}
    result = {**record.result, "weights_digest": "aa", "predictions_digest": "bb"}
    suite.store.put_record(Record(other["id"], {}, "finished", result, {**record.circumstance, **more}))
    table = frame(suite.store, suite.checked())
    new = [
        "timm",
        "torchvision",
        "pillow",
        "host",
        "job",
        "restarts",
        "weights_digest",
        "predictions_digest",
        "idle_term",
        "sources",
        "why",
    ]
    assert table.columns[-len(new) :].tolist() == new
    found = table.set_index("id")
    wanted = ["1.0.22", "0.24", "12", "node7", "12_3", 2, "aa", "bb"]
    assert found.loc[other["id"], new[:8]].tolist() == wanted
    assert found.loc[other["id"], "sources"] == "task classification 222; loss kd 111"
    assert found.loc[one["id"], [*new[:3], *new[4:10]]].isna().all() and found.loc[one["id"], "host"] == "node1"


def entry(**ratios):
    terms = {name: {"raw": 1.0, "weighted": 1.0, "gradient_ratio": ratio} for name, ratio in ratios.items()}
    return {"epoch": 0, "lr": 0.1, "terms": {"task": {"raw": 1.0, "weighted": 1.0}, **terms}}


def test_the_term_with_the_least_gradient_is_named_by_its_largest_over_the_epochs(made):
    suite = made(repeats=1)
    two, unknown, alone = suite.cells(role="student")[:3]
    # Each is small at some time; `late` never gets beyond 0.2, and it is not there from the beginning.
    suite.finish(two["id"], 0.5, history=[entry(early=0.9), entry(early=0.001, late=0.2), entry(early=None, late=0.1)])
    suite.finish(unknown["id"], 0.5, history=[entry(early=None)])
    suite.finish(alone["id"], 0.5, history=[entry()])
    found = states(suite)
    assert found.loc[two["id"], ["least_gradient", "idle_term"]].tolist() == [0.2, "late"]
    assert found.loc[[unknown["id"], alone["id"]], ["least_gradient", "idle_term"]].isna().all(axis=None)


WRONG_RECORDS = [
    (lambda r: r.update(schema=99), "schema: 99: expected a number of at most 1 (another version of kdbench wrote it)"),
    (lambda r: r.pop("outcome"), "the key 'outcome' is missing"),
    (lambda r: r.update(outcome="done"), "outcome: 'done': expected 'finished' or 'diverged'"),
    (lambda r: r.update(id="x"), "id: 'x': expected text of the form ^[0-9a-f]{12}$"),
    (lambda r: r.update(config=[]), "config: expected a mapping"),
    (lambda r: r.update(result=None), "result: None: expected a mapping"),
    (lambda r: r["result"].pop("n_test"), "result: the key 'n_test' is missing"),
    (lambda r: r["result"].update(n_test="many"), "result.n_test: 'many': expected a whole number"),
    (lambda r: r["result"].update(n_train=-5), "result.n_train: -5: expected a number of at least 0"),
    (lambda r: r["result"].update(n_train=True), "result.n_train: True: expected a whole number"),
    (lambda r: r["result"].update(history={}), "result.history: expected a list"),
    (lambda r: r["result"].update(history=[3]), "result.history.0: 3: expected a mapping"),
    (lambda r: r["result"].update(history=[{"epoch": 0}]), "result.history.0: the key 'terms' is missing"),
    (lambda r: r["result"].update(history=[{"epoch": 0, "terms": {"cc": 1}}]), "result.history.0.terms.cc: 1: expected a mapping"),
    (lambda r: r["result"].update(metrics=[]), "result.metrics: expected a mapping"),
    (lambda r: r["result"]["metrics"].update(top1_last=1.94), "result.metrics.top1_last is 1.94: a fraction between 0 and 1"),
    (lambda r: r["result"]["metrics"].update(top1_best_test=-0.1), "result.metrics.top1_best_test is -0.1: a fraction between 0 and 1"),
    (lambda r: r["result"]["metrics"].update(nll_last="low"), "result.metrics.nll_last: 'low': expected a number"),
    (lambda r: r["result"]["metrics"].update(nll_last=1e999), "is damaged"),
    (lambda r: r["result"].update(weights_digest=7), "result.weights_digest: 7: expected text"),
    (lambda r: r["circumstance"].update(train_s=-1.0), "circumstance.train_s: -1.0: expected a number of at least 0"),
    (lambda r: r["circumstance"].update(train_s=float("nan")), "is damaged"),
    (lambda r: r["circumstance"].update(job="12"), "circumstance.job: '12': expected a mapping"),
    (lambda r: r["circumstance"].update(sources={"loss kd": 3}), "circumstance.sources.loss kd: 3: expected text"),
    (lambda r: r["circumstance"].update(device=3), "circumstance.device: 3: expected text"),
]


def test_a_record_that_cannot_be_is_damaged_and_named_with_file_field_and_value(made):
    suite = made(repeats=1).finish_all()
    cell = suite.cells(objective="kd")[0]["id"]
    path = suite.store.file(cell, "record.json")
    whole = json.loads(path.read_text())
    for spoil, message in WRONG_RECORDS:
        raw = json.loads(json.dumps(whole))
        spoil(raw)
        path.write_text(json.dumps(raw))
        line = states(suite).loc[cell]
        assert line["state"] == "damaged" and str(path) in line["why"] and message in line["why"], (message, line["why"])
        assert pd.isna(line["top1_last"]) and pd.isna(line["n_test"])
    for text in ("[]", "null", "3", '"x"', "{}", "{", ""):
        path.write_text(text)
        assert states(suite).loc[cell, "state"] == "damaged"


def test_a_damaged_profile_is_named_and_gives_no_number(made):
    suite = made()
    suite.profile("kd")
    path = suite.store.profile_file(suite.manifest["profiles"][0]["id"])
    whole = json.loads(path.read_text())
    spoiled = [
        (lambda p: p.update(schema=99), "schema: 99: expected a number of at most 1"),
        (lambda p: p.update(device=3), "device: 3: expected text"),
        (lambda p: p["result"].pop("step_ms"), "result: the key 'step_ms' is missing"),
        (lambda p: p["result"]["step_ms"].update(median=-1), "result.step_ms.median: -1: expected a number of at least 0"),
        (lambda p: p["result"].update(images_per_s="fast"), "result.images_per_s: 'fast': expected a"),
        (lambda p: p.update(setting=[]), "setting: expected a mapping"),
    ]
    for spoil, message in spoiled:
        raw = json.loads(json.dumps(whole))
        spoil(raw)
        path.write_text(json.dumps(raw))
        (line,) = costs(suite.store, suite.checked()).to_dict(orient="records")
        assert line["state"] == "damaged" and str(path) in line["why"] and message in line["why"]
        assert pd.isna(line["step_ms"])
        (group,) = cost_table(costs(suite.store, suite.checked()), suite.checked()).groups
        assert any(str(path) in note for note in group.notes) and group.rows[0][1].text() == "–"
    for text in ("{}", "[]", "null", "3", "{"):
        path.write_text(text)
        assert costs(suite.store, suite.checked())["state"].tolist() == ["damaged"]


def test_records_from_before_a_metric_are_read_and_printed(made):
    """Their top-1 is compared as before; of the later metric they have no value."""
    suite = made(repeats=3)
    suite.manifest["metrics"].append({"name": "macro_f1", "label": "macro-F1", "percent": True, "higher_is_better": True})
    suite.finish_all().write()
    out = io.StringIO()
    report(suite.store, ["quickstart"], out, 120, ReportOptions(page=True))
    assert "top-1 compared with kd" in out.getvalue() and "incomplete" not in out.getvalue()
    table = load_frame(suite.store.suite_folder("quickstart"))
    assert (table["state"] == "finished").all() and table["macro_f1_last"].isna().all()
    out = io.StringIO()
    report(suite.store, ["quickstart"], out, 120, ReportOptions(metric="macro_f1"))
    assert "macro-F1 compared with kd" in out.getvalue() and "incomplete" in out.getvalue()
