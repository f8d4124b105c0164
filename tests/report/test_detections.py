"""Stored detections: the interval of AP over new images, its table, AP of each class, and files that contradict their records."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from kdbench.report.predictions_table import predictions_table
from kdbench.report.study import study
from kdbench.report.write import ReportOptions, from_store, report, report_tables
from kdbench.stats.average_precision import Matches
from kdbench.stats.per_image import seed_by_image
from kdbench.store.frame import frame
from kdbench.store.from_file import read
from kdbench.store.predictions import read_predictions
from kdbench.tasks import _ap
from tests.detections import CLASSES, drawn

SHARE = {"ce": 0.6, "kd": 0.7, "cc": 0.75, "cka": 0.8, None: 0.9}


def keep(suite, cell_id, columns, value=None, **options):
    file = io.BytesIO()
    np.savez_compressed(file, target=np.zeros(3), **columns)
    suite.store.write_bytes(suite.store.file(cell_id, "predictions.npz"), file.getvalue())
    value = Matches.of(columns).metrics["hits"] if value is None else value
    suite.finish(cell_id, value, **{"n_test": len(columns["positives"]), **options})


def detecting(made, **options):
    """A suite of detectors, which lose some of the objects that one of them finds, and the columns of each."""
    suite = made(**options)
    suite.manifest["metrics"][0] |= {"label": "AP", "per_image": "hits"}
    predictions, objects = drawn(0, crowds=0.0)
    found = {**predictions, **_ap.matches(predictions, _ap.truth_of(objects), CLASSES)}
    draw, suite.columns = np.random.default_rng(0), {}
    easy = {objective: draw.uniform(-0.3, 0.3, (len(predictions["labels"]), 1)) for objective in SHARE}  # images differ for an objective
    for cell in suite.manifest["cells"]:
        lost = draw.random(found["hits"].shape) > SHARE[cell["objective"]] + easy[cell["objective"]]
        suite.columns[cell["id"]] = {**found, "hits": np.where(lost, 0, found["hits"]).astype(np.uint16)}
        keep(suite, cell["id"], suite.columns[cell["id"]])
    return suite


def texts(group):
    return [[box.text() for box in row] for row in group.rows]


def loaded(suite):
    return from_store(suite.store, suite.checked(), ReportOptions())


def test_differences_of_ap_have_the_interval_over_new_seeds_and_new_images(made):
    suite = detecting(made, repeats=4)
    images = loaded(suite).images
    assert (images.intervals["why"] == "").all() and (images.intervals["n_images"] == 24).all() and images.checkpoints.empty
    asked = images.intervals[(images.intervals["objective"] == "cka") & (images.intervals["baseline"] == "kd")]
    (line,) = asked.to_dict(orient="records")
    runs = [cell for name in ("cka", "kd") for cell in suite.cells(objective=name, role="student")]
    parts = np.array([Matches.of(suite.columns[cell["id"]]).over_images for cell in runs])
    students = images.predictions[images.predictions["objective"].isin(["cka", "kd"])]
    places = {cell["id"]: row for row, cell in enumerate(runs)}
    (alone,) = seed_by_image(parts, students.assign(row=students["id"].map(places)), asked).to_dict(orient="records")
    for name in ("difference", "se_seeds", "se_images", "low_images", "high_images", "df"):
        assert line[name] == pytest.approx(alone[name], rel=1e-5)
    aps = np.array([Matches.of(suite.columns[cell["id"]]).metrics["hits"] for cell in runs]).reshape(2, 4)
    assert line["difference"] == pytest.approx(np.diff(aps[::-1].mean(axis=1)).item())
    assert line["se_images"] > 0 and line["low_images"] < line["difference"] < line["high_images"]


def test_their_table_has_differences_and_nothing_of_classifiers(made):
    suite = detecting(made, repeats=3)
    whole = loaded(suite)
    (table,) = [table for table in report_tables(whole) if table.name == "predictions"]
    assert table.title == "Differences on new images"
    assert [column.title for column in table.columns] == [
        "loss",
        *(f"Δ to {name} on new images, points [95 % CI]" for name in ("ce", "kd")),
    ]
    (group,) = table.groups
    assert {len(row) for row in group.rows} == {3} and "24 test images" in group.facts[0]
    line = whole.images.intervals.query("objective == 'cka' and baseline == 'ce'").iloc[0]
    text = {row[0]: row[1] for row in texts(group)}
    assert text["cka"] == f"{100 * line['difference']:+.2f} [{100 * line['low_images']:+.2f}, {100 * line['high_images']:+.2f}]"
    text = " ".join((*table.caption, *table.notes))
    assert "jackknife" in text and "AP" in text and not any(word in text for word in ("NLL", "McNemar", "ECE"))


def test_each_class_has_its_ap_and_its_number_of_objects(made):
    suite = detecting(made, repeats=3)
    whole = loaded(suite)
    (table,) = [table for table in report_tables(whole) if table.name == "classes"]
    assert table.title == "AP of each class" and table.columns[1].title == "objects" and "recall" not in " ".join(table.caption)
    (line,) = whole.images.per_class.query("objective == 'kd' and `class` == 1").to_dict(orient="records")
    columns = [suite.columns[cell["id"]] for cell in suite.cells(objective="kd", role="student")]
    assert line["mean"] == pytest.approx(np.mean([Matches.of(one).by_class[1] for one in columns]))
    assert line["n_images"] == columns[0]["positives"][:, 1].sum() > 0


def test_a_committed_folder_gives_the_same_tables_as_the_detections(made):
    suite = detecting(made, repeats=3).write()
    folder = report(suite.store, ["quickstart"], io.StringIO()).folders["quickstart"]
    found = read(folder / "frame.csv")
    of_file = {table.name: table for table in report_tables(replace(study(found.runs, found.costs, found.manifest), images=found.images))}
    for table in report_tables(loaded(suite)):
        if table.name in ("predictions", "classes"):
            again = of_file[table.name]
            assert (table.title, table.columns, table.caption, table.notes) == (again.title, again.columns, again.caption, again.notes)
            assert [texts(group) for group in table.groups] == [texts(group) for group in again.groups]


def test_without_the_metric_that_follows_from_them_there_is_no_table(made):
    suite = detecting(made, repeats=3)
    whole = from_store(suite.store, suite.checked().compared_by("nll"), ReportOptions())
    assert len(whole.images.intervals) == 0
    assert predictions_table(whole.images, whole.manifest) is None


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda columns: {"value": 0.9}, "its record contradicts its predictions: top1_last is 0.9, and its detections give"),
        (lambda columns: {"columns": {**columns, "hits": 0 * columns["hits"]}}, "its detections give 0"),
        (
            lambda columns: {"columns": {**columns, "hits": 0 * columns["hits"], "positives": 0 * columns["positives"]}},
            "detections give nan",
        ),
        (lambda columns: {"n_test": 25}, "n_test is 25, and 24 images are predicted"),
    ],
)
def test_a_record_that_contradicts_its_detections_is_damaged(made, spoil, told):
    suite = detecting(made, repeats=3)
    cell = suite.cells(objective="cc", repeat=1)[0]
    mine = suite.columns[cell["id"]]
    changed = {"columns": mine, "value": Matches.of(mine).metrics["hits"], **spoil(mine)}
    keep(suite, cell["id"], **changed)
    manifest = suite.checked()
    runs, read = read_predictions(suite.store, manifest, frame(suite.store, manifest))
    (run,) = runs[runs["id"] == cell["id"]].to_dict(orient="records")
    assert run["state"] == "damaged" and told in run["why"] and read[cell["id"]] == run["why"]
    assert set(runs.loc[runs["id"] != cell["id"], "state"]) == {"finished"}


def test_a_file_that_cannot_be_used_costs_its_own_run_alone_and_says_why(made):
    suite = detecting(made, repeats=3)
    one, other, third = (suite.cells(objective=name, repeat=1)[0]["id"] for name in ("cc", "cka", "kd"))
    mine = suite.columns[one]
    ap = Matches.of(mine).metrics["hits"]
    keep(suite, one, {name: column for name, column in mine.items() if name != "ignored"}, ap)
    moved = np.roll(mine["positives"], 1, axis=0)
    keep(suite, other, {**mine, "positives": moved}, ap)
    keep(suite, third, {**mine, "hits": mine["hits"] * 0, "positives": moved}, 0.0)
    whole = loaded(suite)
    why = whole.images.predictions.set_index("id")["why"]
    assert why[one] == "its predictions lack ignored" and why[other].startswith("its predictions are damaged: more objects of an image")
    assert why[third] == "its predictions are of other images than those of the other runs of this dataset"
    assert whole.images.intervals.groupby("objective")["n"].max().to_dict() == {"cc": 2, "cka": 2, "kd": 2}
