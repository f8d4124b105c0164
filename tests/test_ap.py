"""AP of detections: pycocotools' numbers, whatever the order of the rows, and its matches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdbench.stats.average_precision import Matches, accumulated
from kdbench.tasks import _ap
from tests.detections import CLASSES, drawn, matched, oracle, precision

CASES = {
    "crowds, ties, empty images, a class without objects": {},
    "many detections of each image": {"most": 260, "objects": 90, "images": 8},
    "no ties": {"decimals": 7},
    "no crowds": {"crowds": 0.0, "classes": CLASSES},
    "crowds only": {"crowds": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_the_metrics_are_those_of_pycocotools_up_to_the_last_bit(case):
    for seed in range(2):
        predictions, objects = drawn(seed, **CASES[case])
        truth = _ap.truth_of(objects)
        reference = oracle(predictions, truth).stats
        found = _ap.measured(predictions, truth, CLASSES)
        assert list(found) == ["ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar_100"]
        wanted = [reference[_ap.METRICS[name]] for name in found]
        assert [value is None for value in found.values()] == [value == -1 for value in wanted]
        # pycocotools adds 2^-52 to the number of detections, which it divides by: its precision of a single one is 1 - 2^-52.
        np.testing.assert_allclose([-1 if value is None else value for value in found.values()], wanted, rtol=0, atol=2.0**-52)
    assert (found["ap"] is None) == (case == "crowds only")


def test_a_class_image_or_size_without_objects_has_no_number_and_no_detections_are_zero():
    predictions, objects = drawn(0)
    truth = _ap.truth_of(objects)
    nothing = {**predictions, "labels": np.full_like(predictions["labels"], -1)}
    assert set(_ap.measured(nothing, truth, CLASSES).values()) == {0.0}
    large = truth["area"] > 96**2
    small = {name: column if name == "sizes" else column[~large] for name, column in truth.items()}
    found = _ap.measured(predictions, small, CLASSES)
    assert found["ap_l"] is None and found["ap_m"] > 0
    empty = {name: column if name == "sizes" else column[:0] for name, column in truth.items()}
    assert set(_ap.measured(predictions, empty, CLASSES).values()) == {None}
    assert set(_ap.measured(nothing, empty, CLASSES).values()) == {None}


def test_the_order_of_the_rows_changes_nothing():
    predictions, objects = drawn(1, most=150, objects=60)
    truth = _ap.truth_of(objects)
    draw = np.random.default_rng(0)
    order = np.array([draw.permutation(150) for _ in predictions["labels"]])
    moved = {name: np.take_along_axis(column, order[..., None] if column.ndim == 3 else order, 1) for name, column in predictions.items()}
    assert _ap.measured(moved, truth, CLASSES) == _ap.measured(predictions, truth, CLASSES)
    plain, other = _ap.table(predictions), _ap.table(moved)
    for name in ("image", "score", "label", "box"):
        np.testing.assert_array_equal(plain[name], other[name])
    mine, its = (_ap.matches(columns, truth, CLASSES) for columns in (predictions, moved))
    for name in ("hits", "ignored"):
        # Detections that are equal in every column may change places.
        np.testing.assert_array_equal(mine[name].ravel()[plain["place"]], its[name].ravel()[other["place"]])


def test_a_table_has_a_row_for_each_detection_by_image_and_falling_score():
    predictions, objects = drawn(2)
    rows = _ap.table(predictions)
    assert len(rows["image"]) == (predictions["labels"] >= 0).sum() and rows["box"].dtype == rows["score"].dtype == np.float32
    keys = [*zip(rows["image"], -rows["score"], rows["label"], *rows["box"].T, strict=True)]
    assert keys == sorted(keys)


def test_true_objects_are_rows_in_the_order_of_the_images():
    _, objects = drawn(3)
    truth = _ap.truth_of(objects)
    assert len(truth["sizes"]) == len(objects) == 24 and len(truth["label"]) == sum(map(len, objects.labels))
    np.testing.assert_array_equal(truth["box"][truth["image"] == 5], objects.boxes[5].numpy())
    np.testing.assert_array_equal(truth["area"][truth["image"] == 5], objects.areas[5].numpy())
    plain = _ap.truth_of(replace(objects, crowds=None, areas=None))
    assert not plain["crowd"].any() and truth["crowd"].any()
    left, top, right, bottom = plain["box"].astype(np.float64).T
    np.testing.assert_array_equal(plain["area"], (right - left) * (bottom - top))


@pytest.mark.parametrize("case", CASES)
def test_matches_are_those_of_pycocotools_at_every_threshold(case):
    predictions, objects = drawn(4, **CASES[case])
    truth = _ap.truth_of(objects)
    evaluation, place = oracle(predictions, truth), _ap.table(predictions)["place"]
    bits = (1 << np.arange(10)).astype(np.uint16)
    hits, ignored = np.zeros(predictions["labels"].size, np.uint16), np.zeros(predictions["labels"].size, np.uint16)
    ignored[place] = bits.sum()  # those that COCO leaves out, since their class has more than 100
    for one in evaluation.evalImgs:
        if one is not None and one["aRng"][0] == 0 and one["aRng"][1] == 1e10:
            mine = place[np.array(one["dtIds"], dtype=int) - 1]
            ignored[mine] = bits @ one["dtIgnore"]
            hits[mine] = bits @ ((one["dtMatches"] > 0) & ~one["dtIgnore"])
    found = _ap.matches(predictions, truth, CLASSES)
    np.testing.assert_array_equal(found["hits"].ravel(), hits)
    np.testing.assert_array_equal(found["ignored"].ravel(), ignored)
    counts = [
        [((truth["image"] == image) & (truth["label"] == label) & ~truth["crowd"]).sum() for label in range(CLASSES)] for image in range(3)
    ]
    np.testing.assert_array_equal(found["positives"][:3], counts)
    assert found["hits"].dtype == found["ignored"].dtype == np.uint16


@pytest.mark.parametrize("case", CASES)
def test_ap_is_accumulated_from_matches_without_boxes_to_the_last_digit(case):
    predictions, objects = drawn(5, **CASES[case])
    truth = _ap.truth_of(objects)
    evaluation = oracle(predictions, truth)
    found, wanted = accumulated(matched(predictions, truth)), precision(evaluation)
    np.testing.assert_array_equal(found, wanted)  # so AP of each class and threshold
    if case != "crowds only":
        there = ~np.isnan(found)
        assert found[there].mean() == evaluation.stats[0] > 0
        assert found[0][there[0]].mean() == evaluation.stats[1] and found[5][there[5]].mean() == evaluation.stats[2]


def test_the_classes_after_the_last_that_has_objects_change_nothing():
    predictions, objects = drawn(6)
    truth = _ap.truth_of(objects)
    assert truth["label"].max() == CLASSES - 2 and predictions["labels"].max() == CLASSES - 1
    assert _ap.measured(predictions, truth) == _ap.measured(predictions, truth, CLASSES)
    found, whole = _ap.matches(predictions, truth), _ap.matches(predictions, truth, CLASSES)
    assert found["positives"].shape[1] == CLASSES - 1
    ap = Matches.of({**predictions, **found}).metrics["hits"]
    assert ap == Matches.of({**predictions, **whole}).metrics["hits"] == pytest.approx(_ap.measured(predictions, truth)["ap"], rel=1e-14)
