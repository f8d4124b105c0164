"""The long format: what became of every cell."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest

from kdbench.errors import DamagedError, StoreError
from kdbench.record import Record
from kdbench.report.frame import costs, frame, write_frame
from kdbench.report.manifest import checked
from kdbench.store import Store


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


@pytest.fixture
def indexed(made, monkeypatch):
    """A suite that has been reported once, so that its records stand in an index."""
    monkeypatch.setattr("kdbench.report.records.WORTH_KEEPING", 5)
    monkeypatch.setattr("kdbench.store.YOUNG_S", -60)
    suite = made(repeats=2).finish_all()
    cell = suite.cells(objective="cc")[0]
    suite.finish(cell["id"], 0.75, history=[entry(cc=0.3)])
    for other in suite.manifest["cells"]:  # of last week
        os.utime(suite.store.file(other["id"], "record.json"), (1e9, 1e9))
    suite.first = frame(suite.store, suite.checked())
    return suite


def refuse(*_):
    raise AssertionError("a record was parsed")


def index_of(suite):
    return suite.store.suite_folder(suite.suite) / ".records.index"


def test_records_that_were_read_once_are_not_parsed_again_and_the_frame_is_the_same(indexed, monkeypatch):
    monkeypatch.setattr(Store, "record", refuse)
    pd.testing.assert_frame_equal(frame(indexed.store, indexed.checked()), indexed.first)


def test_a_record_that_was_replaced_damaged_or_removed_since_is_seen_as_it_is(indexed):
    replaced, damaged, removed, same_size = indexed.cells(role="student")[:4]
    indexed.finish(replaced["id"], 0.125)
    indexed.store.file(damaged["id"], "record.json").write_text("{")
    indexed.store.file(removed["id"], "record.json").unlink()
    path = indexed.store.file(same_size["id"], "record.json")
    path.write_text(path.read_text().replace('"top1_last": 0.9', '"top1_last": 0.1'))
    os.utime(path, (1e9, 1e9))  # with the size and the time of the last change that it had
    found = states(indexed)
    assert found.loc[replaced["id"], "top1_last"] == 0.125
    assert found.loc[[damaged["id"], removed["id"]], "state"].tolist() == ["damaged", "missing"]
    assert 0.1 <= found.loc[same_size["id"], "top1_last"] < 0.2


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: raw.replace(b"0.75", b"0.99")])
def test_a_damaged_index_counts_for_nothing(indexed, spoil):
    path = index_of(indexed)
    path.write_bytes(spoil(path.read_bytes()))
    pd.testing.assert_frame_equal(frame(indexed.store, indexed.checked()), indexed.first)


def test_an_index_of_another_schema_counts_for_nothing(indexed, monkeypatch):
    monkeypatch.setattr("kdbench.report.records.SCHEMA", 99)
    monkeypatch.setattr(Store, "record", refuse)
    with pytest.raises(AssertionError, match="parsed"):
        frame(indexed.store, indexed.checked())


def test_a_record_so_young_that_it_may_change_unseen_is_not_kept(indexed, monkeypatch):
    monkeypatch.setattr("kdbench.store.YOUNG_S", 60)
    monkeypatch.setattr(Store, "record", refuse)
    with pytest.raises(AssertionError, match="parsed"):
        frame(indexed.store, indexed.checked())


def test_a_small_suite_leaves_no_index_and_one_that_cannot_be_written_is_no_trouble(made, monkeypatch):
    monkeypatch.setattr("kdbench.store.YOUNG_S", -60)
    suite = made().finish_all()
    table = frame(suite.store, suite.checked())
    assert not index_of(suite).exists()
    monkeypatch.setattr("kdbench.report.records.WORTH_KEEPING", 5)
    tried = []

    def full(self, path, data):
        tried.append(path)
        raise StoreError("no space left")

    monkeypatch.setattr(type(suite.store), "write_bytes", full)
    pd.testing.assert_frame_equal(frame(suite.store, suite.checked()), table)
    assert tried == [index_of(suite)]
