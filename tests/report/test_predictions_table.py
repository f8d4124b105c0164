"""Stored predictions: what is read of them, what is refused and why, and what their table prints."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from kdbench.report.comparison import comparisons, student_runs
from kdbench.report.predictions_table import predictions_table
from kdbench.report.study import study
from kdbench.stats.calibration import expected_calibration_error
from kdbench.stats.predictions import Predictions, image_statistics
from kdbench.store.frame import costs, frame
from kdbench.store.predictions import read_predictions

N, CLASSES = 120, 4
SHARE = {"ce": 0.6, "kd": 0.7, "cc": 0.75, "cka": 0.8, None: 0.85}


def predict(draw, target, share):
    """Columns as a cell keeps them, right on about `share` of the images."""
    right = draw.random(len(target)) < share
    predicted = np.where(right, target, (target + draw.integers(1, CLASSES, len(target))) % CLASSES).astype(np.int32)
    confidence = draw.uniform(0.3, 1, len(target)).astype(np.float32)
    nll = draw.exponential(size=len(target)).astype(np.float32)
    return {"target": target, "correct": predicted == target, "nll": nll, "predicted": predicted, "confidence": confidence}


def keep(suite, cell_id, columns, value=None, logits=None, **options):
    file = io.BytesIO()
    np.savez_compressed(file, logits=np.zeros((3, 2), np.float16) if logits is None else logits, **columns)
    suite.store.write_bytes(suite.store.file(cell_id, "predictions.npz"), file.getvalue())
    value = float(columns["correct"].mean()) if value is None else value
    suite.finish(cell_id, value, **{"n_test": len(columns["target"]), **options})


def predicting(made, seed=0, **options):
    """A suite whose cells all keep their predictions, and the columns of each."""
    suite = made(**options)
    suite.manifest["metrics"][0]["per_image"] = "correct"
    draw = np.random.default_rng(seed)
    target = draw.integers(0, CLASSES, N)
    suite.columns = {}
    for cell in suite.manifest["cells"]:
        suite.columns[cell["id"]] = predict(draw, target, SHARE[cell["objective"]])
        keep(suite, cell["id"], suite.columns[cell["id"]])
    return suite


def loaded(suite):
    manifest = suite.checked()
    runs, read = read_predictions(suite.store, manifest, frame(suite.store, manifest))
    whole = study(runs, costs(suite.store, manifest), manifest)
    return image_statistics(whole.students, whole.comparisons, read, whole.teacher_ids, manifest.alpha)


def chosen(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def test_each_run_says_how_it_predicts(made):
    suite = predicting(made, repeats=3)
    images = loaded(suite)
    assert len(images.predictions) == 12 and (images.predictions["why"] == "").all()
    for run in images.predictions.to_dict(orient="records"):
        own = suite.columns[run["id"]]
        (cell,) = suite.cells(id=run["id"])
        (teacher,) = suite.cells(role="teacher")
        shared = (own["predicted"] == suite.columns[teacher["id"]]["predicted"]).mean()
        assert run["nll"] == pytest.approx(own["nll"].mean()) and run["confidence"] == pytest.approx(own["confidence"].mean())
        assert run["ece"] == pytest.approx(expected_calibration_error(own["confidence"], own["correct"]))
        assert run["agreement_block"] == pytest.approx(shared)
        # Cross-entropy had no teacher to agree with; what it shares with the block's is a figure of its own.
        assert np.isnan(run["agreement"]) if cell["objective"] == "ce" else run["agreement"] == run["agreement_block"]


def test_intervals_and_checkpoints_are_of_the_runs_own_predictions(made):
    suite = predicting(made, repeats=4)
    images = loaded(suite)
    right = {(cell["objective"], cell["repeat"]): suite.columns[cell["id"]]["correct"] for cell in suite.cells(role="student")}
    delta = np.array([right["cka", repeat].mean() - right["kd", repeat].mean() for repeat in range(4)])
    (line,) = chosen(images.intervals, objective="cka", baseline="kd").to_dict(orient="records")
    assert (line["n"], line["n_images"], line["why"]) == (4, N, "")
    assert line["difference"] == pytest.approx(delta.mean()) and line["se_seeds"] == pytest.approx(delta.std(ddof=1) / 2)
    assert line["low_images"] < line["difference"] < line["high_images"]

    third = chosen(images.checkpoints, objective="cka", baseline="kd", repeat=2).iloc[0]
    assert third["n_objective_only"] == (right["cka", 2] & ~right["kd", 2]).sum()
    assert third["n_both"] + third["n_objective_only"] + third["n_baseline_only"] + third["n_neither"] == N
    assert len(images.checkpoints) == 4 * len(images.intervals) == 20


def test_the_differences_are_those_of_the_comparisons_and_in_their_order(made):
    suite = predicting(made, repeats=3, teachers=("big", "other"), students=("small", "tiny"), teacher_seeds=2)
    manifest = suite.checked()
    runs, read = read_predictions(suite.store, manifest, frame(suite.store, manifest))
    runs = student_runs(runs, manifest)
    asked = comparisons(runs, manifest).sample(frac=1, random_state=0)
    images = image_statistics(runs.sample(frac=1, random_state=1), asked, read, {}, manifest.alpha)
    keys = ["dataset", "teacher", "student", "baseline", "objective", "n"]
    pd.testing.assert_frame_equal(images.intervals[keys], asked[keys].reset_index(drop=True), check_dtype=False)
    np.testing.assert_allclose(images.intervals["difference"], asked["difference"])
    np.testing.assert_allclose(images.intervals["se_seeds"], asked["sd"] / np.sqrt(3))


def test_each_dataset_has_images_of_its_own(made):
    suite = predicting(made, repeats=3, students=("small", "tiny"))
    draw = np.random.default_rng(1)
    target = draw.integers(0, 7, 90)
    for line in (*suite.manifest["blocks"], *suite.manifest["cells"]):
        if line["student"] == "tiny":
            line["dataset"] = "letters"
    for cell in suite.cells(student="tiny"):
        keep(suite, cell["id"], predict(draw, target, 0.7), fingerprint="beef")
    images = loaded(suite)
    assert images.intervals.groupby("dataset", sort=False)["n_images"].unique().map(list).to_dict() == {"digits": [N], "letters": [90]}
    assert (images.intervals["n"] == 3).all()
    assert images.per_class.groupby("dataset")["class"].max().to_dict() == {"digits": 3, "letters": 6}
    assert [group.title.split()[0] for group in predictions_table(images, suite.checked()).groups] == ["digits", "letters"]
    for cell in suite.cells(student="tiny"):
        suite.store.file(cell["id"], "predictions.npz").unlink()
    some = loaded(suite)
    assert len(some.intervals) == len(images.intervals) and set(some.intervals.loc[some.intervals["dataset"] == "letters", "n"]) == {0}
    pd.testing.assert_frame_equal(some.per_class, images.per_class[images.per_class["dataset"] == "digits"], check_dtype=False)


def test_classes_are_averaged_over_teacher_seeds_and_then_over_repeats(made):
    suite = predicting(made, repeats=3, teacher_seeds=2)
    (first, *_) = suite.columns.values()
    target = first["target"]
    means = [
        np.mean([suite.columns[cell["id"]]["correct"][target == 2].mean() for cell in suite.cells(objective="kd", repeat=repeat)])
        for repeat in range(3)
    ]
    (line,) = chosen(loaded(suite).per_class, objective="kd", **{"class": 2}).to_dict(orient="records")
    assert line["n"] == 3 and [line["mean"], line["sd"]] == pytest.approx([np.mean(means), np.std(means, ddof=1)])


def test_cross_entropy_agrees_with_the_mean_of_the_blocks_teachers(made):
    suite = predicting(made, repeats=2, teachers=("big", "other"), teacher_seeds=2)
    images = loaded(suite)
    for name in ("big", "other"):
        run = chosen(images.predictions, teacher=name, objective="ce", repeat=1).iloc[0]
        teachers = [suite.columns[cell["id"]]["predicted"] for cell in suite.cells(role="teacher", student=name)]
        assert len(teachers) == 2
        shares = [(suite.columns[run["id"]]["predicted"] == teacher).mean() for teacher in teachers]
        assert run["agreement_block"] == pytest.approx(np.mean(shares))


def with_logits(made, **options):
    """A suite whose cells keep logits, too, and the logits of each before they were rounded."""
    suite, draw = predicting(made, **options), np.random.default_rng(5)
    logits = {cell_id: draw.normal(scale=4, size=(N, CLASSES)) for cell_id in suite.columns}
    for cell_id, columns in suite.columns.items():
        keep(suite, cell_id, columns, logits=logits[cell_id].astype(np.float16))
    return suite, logits


def test_the_divergence_from_the_teacher_is_that_of_its_probabilities_and_needs_no_more_digits_than_are_stored(made):
    suite, logits = with_logits(made, repeats=2, teacher_seeds=2)
    predictions = loaded(suite).predictions

    def divergence(teacher, student):
        p, q = (special.softmax(logits[one], axis=1) for one in (teacher, student))
        return np.mean([stats.entropy(*pair) for pair in zip(p, q, strict=True)])

    teachers = [cell["id"] for cell in suite.cells(role="teacher")]
    for run in predictions.to_dict(orient="records"):
        (cell,) = suite.cells(id=run["id"])
        own = cell["depends"].values()
        expected = np.mean([divergence(teacher, run["id"]) for teacher in own or teachers])
        assert run["kl_block"] == pytest.approx(expected, rel=1e-3) and expected > 1
        assert run["kl"] == run["kl_block"] if own else np.isnan(run["kl"])
    table = predictions_table(loaded(suite), suite.checked())
    assert [column.title for column in table.columns][4] == "KL from the teacher, nats"
    kd = chosen(predictions, objective="kd").groupby("repeat")["kl"].mean()
    assert texts(table.groups[0])["kd"][3] == f"{kd.mean():.3f} ± {kd.std():.3f}"


def test_logits_that_cannot_be_used_cost_the_divergence_and_say_so(made):
    suite, _ = with_logits(made, repeats=3)
    (cell,) = suite.cells(objective="cc", repeat=1)
    keep(suite, cell["id"], suite.columns[cell["id"]], logits=np.full((N, CLASSES), np.nan, np.float16))
    images = loaded(suite)
    run = chosen(images.predictions, id=cell["id"]).iloc[0]
    assert np.isnan(run["kl"]) and not np.isnan(run["nll"]) and not np.isnan(run["agreement"])
    (group,) = predictions_table(images, suite.checked()).groups
    assert "† runs of cc (taylor) (1): its logits, or its teacher's, cannot be used: ValueError" in group.notes
    assert "†" in texts(group)["cc (taylor)"][3] and "†" not in texts(group)["cc (taylor)"][0]


def spoiled(made, spoil):
    """A suite one of whose runs was spoiled, and what is said of that run."""
    suite = predicting(made, repeats=3)
    (cell,) = suite.cells(objective="cc", repeat=1)
    spoil(suite, cell["id"], suite.store.file(cell["id"], "predictions.npz"))
    images = loaded(suite)
    run = chosen(images.predictions, id=cell["id"]).iloc[0]
    assert np.isnan(run["nll"]) and np.isnan(run["agreement"])
    assert chosen(images.intervals, objective="cc", baseline="kd")["n"].item() == 2
    assert chosen(images.intervals, objective="cka", baseline="kd")["n"].item() == 3
    return suite, images, run["why"]


def but(columns, **changed):
    return {name: value for name, value in {**columns, **changed}.items() if value is not None}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda suite, cell_id, path: path.write_bytes(path.read_bytes()[:300]), "its predictions are damaged: BadZipFile"),
        (lambda suite, cell_id, path: path.write_bytes(b""), "its predictions are damaged: BadZipFile"),
        (lambda suite, cell_id, path: path.write_bytes(b"no archive"), "its predictions are damaged: BadZipFile"),
        (lambda suite, cell_id, path: path.unlink(), "its predictions are not there"),
        (
            lambda suite, cell_id, path: keep(
                suite, cell_id, {name: column[:50] for name, column in suite.columns[cell_id].items()}, n_test=N
            ),
            "the run is damaged",
        ),
        (lambda suite, cell_id, path: keep(suite, cell_id, suite.columns[cell_id], value=0.25), "the run is damaged"),
        (
            lambda suite, cell_id, path: keep(suite, cell_id, but(suite.columns[cell_id], nll=None, confidence=None)),
            "its predictions lack nll, confidence",
        ),
        (
            lambda suite, cell_id, path: keep(suite, cell_id, but(suite.columns[cell_id], target=suite.columns[cell_id]["target"][::-1])),
            "its predictions are of other images than those of the other runs of this dataset",
        ),
        (
            lambda suite, cell_id, path: keep(suite, cell_id, but(suite.columns[cell_id], nll=np.full(N, np.inf, np.float32))),
            "nll or confidence is not finite",
        ),
        (
            lambda suite, cell_id, path: keep(suite, cell_id, but(suite.columns[cell_id], confidence=np.full(N, 1.5, np.float32))),
            "a confidence lies outside of 0 to 1",
        ),
        (
            lambda suite, cell_id, path: keep(suite, cell_id, but(suite.columns[cell_id], predicted=np.zeros((N, 2), np.int32))),
            "the columns do not have one number an image",
        ),
        (
            lambda suite, cell_id, path: keep(suite, cell_id, but(suite.columns[cell_id], predicted=np.zeros(N, np.float32))),
            "target and predicted are no classes",
        ),
        (lambda suite, cell_id, path: suite.finish(cell_id, None, outcome="diverged"), "the run is diverged"),
    ],
)
def test_a_run_whose_predictions_cannot_be_trusted_counts_as_one_without_and_says_why(made, spoil, told):
    suite, images, why = spoiled(made, spoil)
    assert told in why
    (group,) = predictions_table(images, suite.checked()).groups
    assert f"† runs of cc (taylor) (1): {why}" in group.notes


def test_an_altered_file_is_never_fatal(made):
    suite = predicting(made, repeats=2)
    (cell,) = suite.cells(objective="cc", repeat=1)
    path = suite.store.file(cell["id"], "predictions.npz")
    manifest = suite.checked()
    runs = frame(suite.store, manifest)
    run = runs[runs["id"] == cell["id"]]
    whole, draw, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        altered = bytearray(whole)
        altered[int(draw.integers(len(whole)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(altered if draw.random() < 0.7 else whole[: int(draw.integers(len(whole)))])
        (found,) = read_predictions(suite.store, manifest, run)[1].values()
        assert isinstance(found, Predictions) or found
        refused += isinstance(found, str)
    assert refused > 300


def test_a_run_on_different_data_is_not_compared_image_by_image(made):
    suite = predicting(made, repeats=3)
    (cell,) = suite.cells(objective="cc", repeat=1)
    keep(suite, cell["id"], suite.columns[cell["id"]], fingerprint="beef")
    intervals = loaded(suite).intervals
    assert set(intervals.loc[intervals["objective"] == "cc", "n"]) == {2} and set(intervals.loc[intervals["objective"] == "kd", "n"]) == {3}


def test_a_teacher_without_predictions_costs_the_agreement_and_nothing_else(made):
    suite = predicting(made, repeats=3)
    (teacher,) = suite.cells(role="teacher")
    suite.store.file(teacher["id"], "predictions.npz").unlink()
    images = loaded(suite)
    assert images.predictions["agreement_block"].isna().all() and images.predictions["nll"].notna().all()
    assert (images.predictions["why"] == f"its teacher (run {teacher['id']}): its predictions are not there").all()
    assert images.intervals["low_images"].notna().all()


def test_a_teacher_of_other_images_has_no_agreement(made):
    suite = predicting(made, repeats=3)
    (teacher,) = suite.cells(role="teacher")
    keep(suite, teacher["id"], but(suite.columns[teacher["id"]], target=suite.columns[teacher["id"]]["target"][::-1]))
    predictions = loaded(suite).predictions
    assert predictions["agreement"].isna().all() and predictions["why"].str.contains("of other images").all()


def test_cells_without_columns_of_one_number_an_image_and_other_tasks_have_no_statistics(made):
    suite = predicting(made, repeats=2)
    for cell in suite.cells():
        keep(suite, cell["id"], but(suite.columns[cell["id"]], nll=None), value=float(suite.columns[cell["id"]]["correct"].mean()))
    assert loaded(suite) is None
    other = predicting(made, repeats=2, suite="boxes")
    other.manifest["metrics"][0]["per_image"] = None
    assert loaded(other) is None
    del other.manifest["metrics"][0]["per_image"]
    assert loaded(other) is None


def test_repeats_that_do_not_pair_have_no_interval_over_images(made):
    suite = predicting(made, repeats=3)
    manifest = suite.checked()
    runs, read = read_predictions(suite.store, manifest, frame(suite.store, manifest))
    runs = student_runs(runs, manifest)
    asked = comparisons(runs, manifest).assign(test="Welch t")
    intervals = image_statistics(runs, asked, read, {}, manifest.alpha).intervals
    assert (
        intervals["low_images"].isna().all()
        and (intervals["why"] == "its repeats do not pair, so there is no difference image by image").all()
    )


def texts(group):
    return {row[0].text(): [entry.text() for entry in row[1:]] for row in group.rows}


def test_the_table_prints_what_the_frames_hold(made):
    suite = predicting(made, repeats=3)
    images = loaded(suite)
    table = predictions_table(images, suite.checked())
    assert table.name == "predictions"
    assert [column.title for column in table.columns] == [
        "loss",
        "NLL",
        "ECE, %",
        "agreement with the teacher, %",
        "Δ to ce on new images, points [95 % CI]",
        "checkpoints that differ from ce, p < 0.05",
        "Δ to kd on new images, points [95 % CI]",
        "checkpoints that differ from kd, p < 0.05",
    ]
    (group,) = table.groups
    assert group.title == "digits · student small · teacher big" and group.notes == ()
    rows = texts(group)
    assert list(rows) == ["ce", "kd", "cc (taylor)", "cka"]
    (line,) = chosen(images.intervals, objective="cka", baseline="ce").to_dict(orient="records")
    assert rows["cka"][3] == f"{100 * line['difference']:+.2f} [{100 * line['low_images']:+.2f}, {100 * line['high_images']:+.2f}]"
    p = chosen(images.checkpoints, objective="cka", baseline="ce")["p"]
    assert rows["cka"][4] == f"{(p < 0.05).sum()} of 3"
    nll, ece, shared = (chosen(images.predictions, objective="kd")[name] for name in ("nll", "ece", "agreement"))
    assert rows["kd"][:3] == [
        f"{nll.mean():.3f} ± {nll.std():.3f}",
        f"{100 * ece.mean():.2f} ± {100 * ece.std():.2f}",
        f"{100 * shared.mean():.2f} ± {100 * shared.std():.2f}",
    ]
    seeds, more = (100 * images.intervals[name].median() for name in ("se_seeds", "se_images"))
    assert group.facts == (
        f"120 test images. Median standard error of a difference: {seeds:.2f} points by seeds, {more:.2f} points by test images.",
    )
    assert set(group.rows[3][4].runs) == {cell["id"] for cell in suite.cells() if cell["objective"] in ("ce", "cka")}


def test_of_two_baselines_the_mirrored_comparison_is_printed_too(made):
    suite = predicting(made, repeats=3)
    images = loaded(suite)
    rows = texts(predictions_table(images, suite.checked()).groups[0])
    (line,) = chosen(images.intervals, objective="kd", baseline="ce").to_dict(orient="records")
    assert rows["ce"][5] == f"{-100 * line['difference']:+.2f} [{-100 * line['high_images']:+.2f}, {-100 * line['low_images']:+.2f}]"
    assert rows["ce"][6] == rows["kd"][4]
    assert rows["ce"][3:5] == rows["kd"][5:7] == ["", ""]


def test_what_was_not_compared_is_marked_and_explained(made):
    suite = predicting(made, repeats=3)
    for cell in suite.cells(objective="cc"):
        suite.store.file(cell["id"], "predictions.npz").unlink()
    group = predictions_table(loaded(suite), suite.checked()).groups[0]
    assert texts(group)["cc (taylor)"] == ["–†", "–†", "–†", "–‡", "–", "–‡", "–"]
    assert group.notes == (
        "† runs of cc (taylor) (3): its predictions are not there",
        "‡ cc (taylor) - ce, cc (taylor) - kd: not tested: no repeat has the predictions of both",
    )


def test_the_caption_says_what_each_column_answers(made):
    suite = predicting(made, repeats=3)
    table = predictions_table(loaded(suite), suite.checked())
    text = " ".join((*table.caption, *table.notes))
    for words in ("15 bins", "not two losses", "not adjusted", "these teachers and training images", "new test images"):
        assert words in text
    assert sum(len(sentence) for sentence in table.caption) < 8 * 110
    suite.manifest["baselines"] = []
    alone = predictions_table(loaded(suite), suite.checked())
    assert len(alone.columns) == 4 and "McNemar" not in " ".join((*alone.caption, *alone.notes))


@pytest.mark.parametrize("objective", ["cc", None])
def test_a_record_that_contradicts_its_own_predictions_is_damaged(made, objective):
    suite = predicting(made, repeats=3)
    cell = suite.cells(objective=objective)[0]
    keep(suite, cell["id"], suite.columns[cell["id"]], value=0.25)
    manifest = suite.checked()
    runs, read = read_predictions(suite.store, manifest, frame(suite.store, manifest))
    (run,) = runs[runs["state"] != "finished"].to_dict(orient="records")
    right = suite.columns[cell["id"]]["correct"].mean()
    assert (run["id"], run["state"]) == (cell["id"], "damaged") and run["why"] == read[cell["id"]]
    assert run["why"] == f"its record contradicts its predictions: top1_last is 0.25, and {right:.6g} of the images are right"
    keep(suite, cell["id"], {name: column[:50] for name, column in suite.columns[cell["id"]].items()}, n_test=N)
    runs, _ = read_predictions(suite.store, manifest, frame(suite.store, manifest))
    assert "n_test is 120, and 50 images are predicted" in runs.set_index("id").loc[cell["id"], "why"]
    # The rounding of a mean over float32 is no contradiction.
    keep(suite, cell["id"], suite.columns[cell["id"]], value=round(float(right), 4))
    assert (read_predictions(suite.store, manifest, frame(suite.store, manifest))[0]["state"] == "finished").all()


def test_where_runs_collapse_there_is_no_interval_on_new_images(made):
    suite = predicting(made, repeats=3)
    group = predictions_table(loaded(suite), suite.checked(), {"cc"}).groups[0]
    assert "[" not in texts(group)["cc (taylor)"][3] and "[" in texts(group)["cka"][3]
    assert "! cc (taylor) - ce, cc (taylor) - kd: no verdict, since some runs of cc (taylor) collapse" in group.notes
