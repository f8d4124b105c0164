"""Ten thousand records are read in seconds: each at full length once, and afterwards only what changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kdbench.report import records
from kdbench.report.frame import frame

FIRST_S = 12.0
"""CPU time to read 10,000 records of 60 epochs for the first time, on a machine that does other things too; alone it takes 2.5 s."""
AGAIN_S = 3.0
"""The same, when they have been read before; alone it takes 0.5 s."""


def fill(suite, epochs: int):
    """Finish every cell of a suite with a history of that many epochs and two terms."""
    terms = {"task": {"raw": 2.784057580947876, "weighted": 2.784057580947876}}
    terms["cc"] = {"raw": 0.010225944018363953, "weighted": 1.0225943969726563, "gradient_ratio": 9.70615377721849}
    test = {"top1": 0.2155, "top5": 0.612, "nll": 2.5259942429619926}
    history = [{"epoch": epoch, "lr": 0.05, "terms": terms, "loss": 3.8066519638061522, "test": test} for epoch in range(epochs)]
    one, *others = suite.manifest["cells"]
    suite.finish(one["id"], 0.75, history=history)
    text = suite.store.file(one["id"], "record.json").read_text()
    for number, cell in enumerate(others):
        path = suite.store.file(cell["id"], "record.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(one["id"], cell["id"]).replace('"top1_last": 0.75', f'"top1_last": {0.75 + number / 1e6!r}'))
    return suite


def read(suite) -> tuple[pd.DataFrame, float]:
    start = time.process_time()
    table = frame(suite.store, suite.checked())
    return table, time.process_time() - start


@pytest.mark.slow
def test_ten_thousand_records_are_read_in_seconds_and_again_in_one(made, monkeypatch) -> None:
    monkeypatch.setattr("kdbench.store.YOUNG_S", -60)
    monkeypatch.setattr(records, "_spare_processors", lambda: 0)
    objectives = [(name, name, "published") for name in ("ce", *(f"loss{number}" for number in range(20)))]
    students, teachers = ([f"{kind}{number}" for number in range(10)] for kind in "st")
    suite = fill(made(teachers=teachers, students=students, objectives=objectives), epochs=60)
    assert len(suite.manifest["cells"]) > 10_000
    first, first_s = read(suite)
    again, again_s = read(suite)

    pd.testing.assert_frame_equal(first, again)
    assert first_s < FIRST_S and again_s < AGAIN_S


@pytest.fixture
def few(made, monkeypatch):
    """Twenty-one long records, with a second process to read them."""
    monkeypatch.setattr(records, "WORTH_SHARING_BYTES", 1)
    monkeypatch.setattr("kdbench.store.YOUNG_S", -60)
    monkeypatch.setattr(records, "_spare_processors", lambda: 1)
    return fill(made(), epochs=3)


def test_two_processes_read_the_same_as_one(few, monkeypatch) -> None:
    one, other = (cell["id"] for cell in few.cells(role="student")[:2])
    few.store.file(one, "record.json").write_text("{")
    few.store.file(other, "record.json").unlink()
    begun = []
    begin = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **named: begun.append(begin(*arguments, **named)) or begun[-1])
    shared, _ = read(few)
    assert len(begun) == 1 and begun[0].returncode == 0
    monkeypatch.setattr(records, "_spare_processors", lambda: 0)
    alone, _ = read(few)

    assert len(begun) == 1
    pd.testing.assert_frame_equal(shared, alone)
    assert shared.set_index("id").loc[[one, other], "state"].tolist() == ["damaged", "missing"]
    assert shared["idle_term"].value_counts().to_dict() == {"cc": 19}


@pytest.mark.parametrize("broken", ["/nowhere/python", "false"])
def test_what_the_second_process_cannot_read_the_first_does(few, monkeypatch, broken: str) -> None:
    monkeypatch.setattr(sys, "executable", broken)
    table, _ = read(few)

    assert (table["state"] == "finished").all() and len(table) == 21


def test_a_thousand_records_are_parsed_once(made, monkeypatch) -> None:
    monkeypatch.setattr("kdbench.store.YOUNG_S", -60)
    objectives = [(name, name, "published") for name in ("ce", *(f"loss{number}" for number in range(20)))]
    suite = fill(made(students=[f"s{number}" for number in range(10)], objectives=objectives), epochs=10)
    assert len(suite.manifest["cells"]) > 1000
    first, _ = read(suite)
    changed = suite.manifest["cells"][7]["id"]
    suite.finish(changed, 0.125)
    parsed = []
    record = type(suite.store).record
    monkeypatch.setattr(type(suite.store), "record", lambda store, cell_id: parsed.append(cell_id) or record(store, cell_id))
    again, _ = read(suite)

    assert parsed == [changed]
    assert again.set_index("id").loc[changed, "top1_last"] == 0.125
    pd.testing.assert_frame_equal(first[first["id"] != changed], again[again["id"] != changed])


def test_reading_loads_no_torch(few) -> None:
    root: Path = few.store.root
    code = (
        "import json, sys; from kdbench.store import Store; from kdbench.report.frame import frame\n"
        "frame(Store(sys.argv[1]), json.load(sys.stdin)); print(*[name for name in ('torch', 'timm') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, os.fspath(root)], input=json.dumps(few.manifest), capture_output=True, text=True, check=True
    )

    assert told.stdout.strip() == ""
