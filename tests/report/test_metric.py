"""A report compares any metric of the runs; the accuracy of each class does not depend on which one."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.metrics import recall_score

from kdbench.cli import main
from kdbench.record import Record
from kdbench.tasks.classification import Classification

SHARE = {"ce": 0.5, "kd": 0.6, "cc": 0.65, "cka": 0.7, None: 0.8}
IMAGES = [50, 20, 10, 5]
"""Of each class."""


@pytest.fixture
def suite(made):
    """Runs with predictions of an unbalanced test set, and all metrics of the task in their records."""
    suite, draw, task = made(repeats=3), np.random.default_rng(0), Classification()
    suite.manifest["metrics"] = [asdict(metric) for metric in task.metrics]
    target = draw.permutation(np.repeat(np.arange(4), IMAGES))
    for cell in suite.manifest["cells"]:
        right = draw.random(len(target)) < SHARE[cell["objective"]]
        said = np.where(right, target, draw.integers(0, 4, len(target)))
        logits = {"logits": draw.normal(size=(len(target), 4)).astype(np.float32) + 9 * (np.arange(4) == said[:, None])}
        file = io.BytesIO()
        np.savez_compressed(file, target=target, **task.per_image(logits, target))
        suite.store.write_bytes(suite.store.file(cell["id"], "predictions.npz"), file.getvalue())
        metrics = {f"{name}_last": value for name, value in task.measure(logits, target).items()}
        result = {"metrics": metrics, "history": [], "n_train": 300, "n_test": len(target), "data_fingerprint": "f00d"}
        suite.store.put_record(Record(cell["id"], {}, "finished", result, {"device": "cpu"}))
    return suite.write()


def reported(suite, *words):
    done = CliRunner().invoke(main, ["report", *words, "--results", str(suite.store.root)])
    assert done.exit_code == 0, done.output
    return done.output


def read(suite, name):
    return pd.read_csv(suite.store.suite_folder("quickstart") / "report" / f"{name}.csv")


def test_the_metric_that_is_asked_for_is_compared_with_its_own_statistics(suite):
    assert "top-1 compared with ce" in reported(suite, "quickstart")
    plain, per_class = read(suite, "frame"), read(suite, "images_per_class")
    text = reported(suite, "quickstart", "--metric", "balanced_accuracy_last", "--full")
    folder = suite.store.suite_folder("quickstart") / "report"
    assert "balanced accuracy compared with ce" in text and "in place of top-1" in (folder / "report.md").read_text()
    runs = plain[plain["role"] == "student"].pivot(index="repeat", columns="objective", values="balanced_accuracy_last")
    line = read(suite, "comparisons").set_index(["objective", "baseline"]).loc["cka", "kd"]
    difference = runs["cka"] - runs["kd"]
    assert [line["difference"], line["sd"]] == pytest.approx([difference.mean(), difference.std(ddof=1)], rel=1e-5)
    assert (line["test"], line["n"]) == ("paired t", 3)

    # Differences on new images are of the share of images that are right, and not of this metric.
    assert "NLL" in text and "on new images" not in text and not (folder / "images_intervals.csv").exists()
    pd.testing.assert_frame_equal(read(suite, "images_per_class"), per_class)

    # What was written is read again as it is.
    again = reported(suite, str(folder / "frame.csv"), "--full")
    assert "balanced accuracy compared with ce" in again and "Accuracy of each class" in again


def test_the_accuracy_of_each_class_is_in_a_file_and_a_table_for_teacher_and_losses(suite):
    text = reported(suite, "quickstart", "--full")
    table = read(suite, "images_per_class").set_index(["objective", "class"])
    assert table["n_images"].groupby("class").unique().map(list).tolist() == [[count] for count in IMAGES]
    for objective in ("teacher", "ce", "kd", "cc", "cka"):
        cells = suite.cells(role="teacher") if objective == "teacher" else suite.cells(objective=objective)
        kept = [np.load(suite.store.file(cell["id"], "predictions.npz")) for cell in cells]
        recalls = np.array([recall_score(one["target"], one["predicted"], average=None) for one in kept])
        mine = table.loc[objective]
        assert mine["mean"].to_numpy() == pytest.approx(recalls.mean(0), abs=1e-5) and set(mine["n"]) == {len(cells)}
        if objective != "teacher":
            assert mine["sd"].to_numpy() == pytest.approx(recalls.std(0, ddof=1), abs=1e-5)
    (teacher,) = {str(name) for name in table.loc["teacher"]["student"]}
    assert teacher == "big"
    rows = text[text.index("Accuracy of each class") :].splitlines()
    first = next(line for line in rows if line.split()[:1] == ["0"])
    assert f"{100 * table.loc['teacher', 0]['mean']:.2f}" in first and f"{100 * table.loc['cka', 0]['mean']:.2f} ±" in first
    assert "Accuracy of each class" in (suite.store.suite_folder("quickstart") / "report" / "report.tex").read_text()


def test_runs_from_before_a_metric_are_compared_by_it_with_their_predictions(suite):
    reported(suite, "quickstart", "--metric", "macro_f1", "--full")
    names = ("frame", "comparisons", "images_per_class", "images_predictions")
    whole = {name: read(suite, name) for name in names}
    older = suite.cells(role="teacher") + suite.cells(objective="kd") + suite.cells(objective="ce", repeat=0)
    for cell in older:
        record = suite.store.record(cell["id"])
        kept = {name: value for name, value in record.result["metrics"].items() if name in ("top1_last", "top5_last", "nll_last")}
        suite.store.put_record(replace(record, result={**record.result, "metrics": kept}))
    for metrics in (suite.manifest["metrics"], suite.manifest["metrics"][:3]):  # a manifest may be as old
        suite.manifest["metrics"] = metrics
        suite.write()
        text = reported(suite, "quickstart", "--metric", "macro_f1", "--full")
        assert "macro-F1 compared with ce" in text and "incomplete" not in text
        for name in names:
            lacking = ["balanced_accuracy_last"] if name == "frame" and len(metrics) == 3 else []
            one, other = (table.drop(columns=lacking) for table in (read(suite, name), whole[name]))
            pd.testing.assert_frame_equal(one, other, check_like=True)
    for metric in ("balanced_accuracy", "top1", "nll"):
        assert "without a value" not in reported(suite, "quickstart", "--metric", metric, "--full")


def test_runs_whose_predictions_do_not_give_the_metric_are_no_reason_to_run_the_suite_again(suite):
    for cell in suite.manifest["cells"]:
        record = suite.store.record(cell["id"])
        kept = {name: value for name, value in record.result["metrics"].items() if name != "top5_last"}
        suite.store.put_record(replace(record, result={**record.result, "metrics": kept}))
    reported(suite, "quickstart", "--metric", "top5")
    text = (suite.store.suite_folder("quickstart") / "report" / "report.md").read_text()
    assert "records of ce, kd, cc (taylor), cka have no top-5 (they are older than it, or" in text
    assert "remove these records and run the suite again" in text and "complete for" not in text
    # Calibration and the accuracy of each class do not depend on the metric.
    assert "Accuracy of each class" in text and "ECE" in text and read(suite, "images_predictions")["nll"].notna().all()


def test_many_classes_are_only_in_the_file(suite, monkeypatch):
    monkeypatch.setattr("kdbench.report.class_table.MOST_CLASSES", 3)
    assert "Accuracy of each class" not in reported(suite, "quickstart", "--full")
    assert len(read(suite, "images_per_class")) == 5 * len(IMAGES)


def test_a_frame_without_a_manifest_has_the_metrics_that_are_asked_for(suite, tmp_path):
    reported(suite, "quickstart", "--no-images")
    read(suite, "frame").to_csv(tmp_path / "runs.csv", index=False)
    for name, label in (("macro_f1", "macro-F1"), ("nll_last", "NLL")):
        assert f"{label} compared with ce" in reported(suite, str(tmp_path / "runs.csv"), "--metric", name)
    done = CliRunner().invoke(main, ["report", str(tmp_path / "runs.csv"), "--metric", "macro_f2"])
    assert done.exit_code == 2 and "has no metric 'macro_f2'" in done.output and "did you mean 'macro_f1'" in done.output
