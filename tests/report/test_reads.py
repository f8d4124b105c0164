"""How often the verbs ask the disk about each cell: with many cells, and a disk that is far away, that is what they cost."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from kdbench.report.write import ReportOptions, report
from kdbench.run import status
from kdbench.stats import per_image
from kdbench.store import Store
from tests.report.test_predictions_table import with_logits


@pytest.fixture
def asked(monkeypatch) -> Counter[tuple[str, str]]:
    """(read or stat, name of the file) of everything that is asked from now on of cells."""
    counts: Counter[tuple[str, str]] = Counter()
    read, stat = Store.read_bytes, os.stat

    def counted_read(store, path):
        counts["read", Path(path).name] += "cells" in Path(path).parts
        return read(store, path)

    def counted_stat(path, *others, **options):
        counts["stat", Path(str(path)).name] += "cells" in Path(str(path)).parts
        return stat(path, *others, **options)

    monkeypatch.setattr(Store, "read_bytes", counted_read)
    monkeypatch.setattr(os, "stat", counted_stat)
    return counts


def finished(made, **options):
    """A suite whose cells are done, with the files that their records name."""
    suite, _ = with_logits(made, **options)
    for cell_id in suite.columns:
        suite.store.write_bytes(suite.store.file(cell_id, "weights.bin"), b"weights")
        record = suite.store.record(cell_id)
        record.circumstance["files"] = suite.store.sizes_and_digests(cell_id)
        suite.store.put_record(record)
    return suite.write()


def test_status_reads_each_record_once_and_asks_for_each_file_once(made, asked):
    suite = finished(made, repeats=3)
    n = len(suite.columns)
    asked.clear()
    page = status.text(suite.store.root, "quickstart")

    assert page == f"quickstart: {n} cells: {n} finished\n"
    per_cell = [("read", "record.json"), ("stat", "record.json"), ("stat", "weights.bin"), ("stat", "predictions.npz")]
    assert {key: count for key, count in asked.items() if count} == dict.fromkeys(per_cell, n)


def test_status_asks_once_for_what_a_cell_that_is_not_trained_might_have(made, asked):
    suite = made(repeats=3).write()
    n = len(suite.manifest["cells"])
    page = status.text(suite.store.root, "quickstart")

    assert f"{n} cells: {n} waiting" in page
    names = [("read", "record.json"), ("stat", "claim.json"), ("read", "failure.json"), ("read", "progress.jsonl")]
    assert {key: count for key, count in asked.items() if count} == dict.fromkeys(names, n)


def test_a_report_reads_each_record_and_each_file_of_predictions_once(made, asked, tmp_path):
    suite = finished(made, repeats=4, students=("small", "other"))
    asked.clear()
    with open(tmp_path / "said.txt", "w") as out:
        done = report(Store(suite.store.root), ["quickstart"], out, options=ReportOptions())

    assert not done.problems
    n, teachers = len(suite.columns), len(suite.cells(role="teacher"))
    # The logits of a teacher, which all of its students need, are read a second time.
    read = {key: count for key, count in asked.items() if key[0] == "read" and count}
    assert read == {("read", "record.json"): n, ("read", "predictions.npz"): n + teachers}


def test_checkpoints_are_paired_without_looking_at_each_pair_of_repeats():
    class Counted(dict):
        looks = 0

        def items(self):
            for one in super().items():
                Counted.looks += 1
                yield one

    one, other = (Counted({(repeat, seed): repeat for repeat in range(50)}) for seed in (None, 0))
    assert per_image._pairs(one, other) == [(repeat, 0, repeat, repeat) for repeat in range(50)]
    assert Counted.looks == 100
