"""The long format: what became of every cell."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kdbench.errors import DamagedError
from kdbench.report.frame import costs, frame, write_frame
from kdbench.report.manifest import checked


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
    suite.store.put_failure(failed, {"class": "OutOfMemoryError", "message": "no memory", "traceback": "…"})
    suite.store.file(damaged, "record.json").write_text('{"schema": 1, "id"')
    suite.store.file(truncated, "record.json").write_text(json.dumps({"id": truncated}))
    with suite.store.claim(running):
        found = states(suite)
    assert found.loc[diverged, ["state", "why"]].tolist() == ["diverged", "diverged at step 120"]
    assert found.loc[failed, ["state", "why"]].tolist() == ["failed", "OutOfMemoryError: no memory"]
    assert found.loc[damaged, "state"] == found.loc[truncated, "state"] == "damaged"
    assert "is damaged" in found.loc[damaged, "why"]
    assert found.loc[running, "state"] == "running"
    assert found.loc[missing, ["state", "why"]].tolist() == ["missing", ""]
    assert found.loc[[diverged, failed, damaged, running, missing], "top1_last"].isna().all()


def test_a_record_counts_although_an_earlier_attempt_failed(made):
    suite = made().finish_all()
    cell_id = suite.cells(objective="cc")[0]["id"]
    suite.store.put_failure(cell_id, {"class": "OSError", "message": "once"})
    assert states(suite).loc[cell_id, "state"] == "finished"


def test_students_of_a_teacher_that_failed_or_is_below_its_gate_are_blocked(made):
    suite = made(teachers=("big", "other"))
    big, other = (cell["id"] for cell in suite.cells(role="teacher"))
    suite.finish(big, 0.15)
    suite.manifest["gates"] = {big: {"metric": "top1", "min": 0.2}}
    suite.store.put_failure(other, {"class": "DataError", "message": "truncated"})
    found = states(suite)
    assert found.loc[big, ["state", "why"]].tolist() == ["finished", "top-1 15.00 %, below its gate of 20.00 %"]
    assert found.loc[suite.cells(objective="cc", teacher="big")[0]["id"], ["state", "why"]].tolist() == [
        "blocked",
        f"its teacher (run {big}): top-1 15.00 %, below its gate of 20.00 %",
    ]
    assert found.loc[suite.cells(objective="cc", teacher="other")[0]["id"], "why"] == f"its teacher (run {other}): DataError: truncated"
    assert found.loc[suite.cells(objective="ce")[0]["id"], "state"] == "missing"


def test_parquet_and_csv_give_back_what_was_written(made):
    suite = made().finish_all()
    suite.finish(suite.cells(objective="cc")[1]["id"], None, outcome="diverged")
    suite.manifest["objectives"][2]["label"] = 'cc (τ, "taylor"), β|γ'
    table = frame(suite.store, suite.checked())
    write_frame(suite.store, suite.suite, table)
    folder = suite.store.suite_folder(suite.suite) / "report"
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "frame.parquet"), table)
    back = pd.read_csv(folder / "frame.csv", dtype={"id": str})
    assert back["label"].fillna("").tolist() == table["label"].fillna("").tolist()
    assert back["top1_last"].tolist() == pytest.approx(table["top1_last"].tolist(), nan_ok=True, abs=0)
    assert back["id"].tolist() == table["id"].tolist()


def test_costs_are_numbers_with_their_quartiles_and_a_missing_profile_stays_in_the_frame(made):
    suite = made()
    suite.profile("ce", None)
    suite.profile("cc")
    suite.manifest["profiles"].append({**suite.manifest["profiles"][1], "objective": "kd", "id": "nowhere"})
    table = costs(suite.store, suite.checked()).set_index("objective")
    assert table["state"].to_dict() == {"ce": "measured", "cc": "measured", "kd": "missing"}
    assert table.loc["cc", ["step_ms", "step_ms_q1", "step_ms_q3", "added_flops"]].tolist() == pytest.approx([12.34, 11.34, 13.34, 2.5e6])
    assert table.loc["cc", ["peak_mem_gib", "optimizer_ms_q1"]].isna().all()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda manifest: manifest.pop("objectives"), "objectives"),
        (lambda manifest: manifest.update(cells=3), "cells"),
        (lambda manifest: manifest["cells"][0].pop("id"), "cells.0.id"),
        (lambda manifest: manifest.update(schema=2), "schema 2"),
        (lambda manifest: manifest.update(metrics=[]), "no metric"),
    ],
)
def test_a_manifest_with_mistakes_is_refused_with_the_place(made, spoil, said):
    suite = made()
    spoil(suite.manifest)
    with pytest.raises(DamagedError, match=said):
        checked(suite.manifest)
