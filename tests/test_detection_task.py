"""The task of detection: what a step gives, what is kept of the objects found, and how they are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.errors import KdbenchError
from kdbench.scenes import Images, Objects
from kdbench.tasks._base import Task


class Told(nn.Module):
    """Finds what it is given, whatever the images are."""

    def __init__(self, *found: tuple[list[list[float]], list[float], list[int]]):
        super().__init__()
        self.found, self.outputs = found, 3

    def detect(self, images: Images) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [
            (torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))
            for boxes, scores, labels in self.found
        ]


def task() -> Task:
    return parts.load("task", "detection").build({})


def images(originals: list[tuple[int, int]], sizes: list[tuple[int, int]] | None = None) -> Images:
    return Images.padded([torch.zeros(3, *size) for size in sizes or originals], originals)


def said(model: nn.Module, inputs: Images) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in task().predict(model, inputs).items()}


def test_boxes_are_in_pixels_of_the_file_and_rows_without_an_object_are_marked() -> None:
    found = said(Told(([[10, 20, 30, 40]], [0.5], [2]), ([], [], [])), images([(200, 100), (64, 64)], [(100, 200), (64, 64)]))

    assert found["boxes"].shape == (2, 100, 4) and found["boxes"].dtype == np.float32
    assert found["scores"].shape == (2, 100) and found["scores"].dtype == np.float32 and found["labels"].dtype == np.int16
    assert found["boxes"][0, 0].tolist() == [5, 40, 15, 80]
    assert found["scores"][0].nonzero()[0].tolist() == [0] and not found["scores"][1].any()
    assert found["labels"][0, :2].tolist() == [2, -1] and (found["labels"][1] == -1).all()


def test_the_order_is_by_score_class_and_box_and_not_by_that_of_the_detector() -> None:
    rows = [([0.0, 0, 2, 2], 0.25, 1), ([0.0, 0, 1, 2], 0.25, 1), ([0.0, 0, 9, 9], 0.25, 0), ([0.0, 0, 9, 9], 0.75, 2)]

    def ordered(places: list[int]) -> dict[str, np.ndarray]:
        return said(Told(tuple([row[place] for row in (rows[one] for one in places)] for place in range(3))), images([(32, 32)]))  # type: ignore[arg-type]

    one, other = ordered([0, 1, 2, 3]), ordered([2, 0, 3, 1])
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert one["labels"][0, :4].tolist() == [2, 0, 1, 1] and one["boxes"][0, 2:4, 2].tolist() == [1, 2]


def test_of_more_than_a_hundred_the_highest_scores_are_kept() -> None:
    scores = torch.linspace(0.1, 0.9, 130)
    found = said(Told(([[0.0, 0, 5, 5]] * 130, scores.tolist(), [0] * 130)), images([(32, 32)]))

    assert found["scores"][0].tolist() == scores.flip(0)[:100].tolist()


def test_a_step_gives_the_detectors_named_losses_and_taps() -> None:
    part = parts.load("model", "fcos")
    torch.manual_seed(0)
    model: Any = part.build(part.options({"body": "test_resnet", "width": 32}))
    model.build((3, 64, 64), 3)
    inputs = images([(64, 64)])

    losses, taps = task().step(model, inputs, Objects((torch.tensor([[4.0, 4, 40, 40]]),), (torch.tensor([1]),), inputs.sizes))

    assert set(losses) == {"classification", "bbox_regression", "bbox_ctrness"}
    assert len(taps.levels) == 5 and taps.logits is None


def test_images_of_detection_have_no_label_for_a_loss_and_the_task_alone_has_its_name() -> None:
    assert not task().has_classes
    assert parts.load("task", "detection").make.alone == "detection"
    assert task().primary().name == "ap" and task().primary().percent


def measured(model: nn.Module, objects: Objects) -> dict[str, float]:
    pytest.importorskip("kdbench.tasks._ap")
    return task().measure(said(model, images(list(objects.sizes))), task().true_labels(objects))


def test_objects_that_are_found_exactly_have_an_ap_of_one_and_sizes_without_objects_none() -> None:
    boxes = [[10.0, 10, 30, 30], [50.0, 10, 90, 60]]
    objects = Objects(
        (torch.tensor(boxes), torch.zeros(0, 4)), (torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)), ((96, 96), (64, 64))
    )

    found = measured(Told((boxes, [0.9, 0.8], [0, 2]), ([], [], [])), objects)

    assert found["ap"] == found["ap50"] == found["ap_s"] == found["ap_m"] == found["ar_100"] == pytest.approx(1)
    assert np.isnan(found["ap_l"])
    nothing = measured(Told(([], [], []), ([], [], [])), objects)
    assert nothing["ap"] == 0


def test_what_is_kept_of_detections_gives_their_matches() -> None:
    pytest.importorskip("kdbench.tasks._ap")
    objects = Objects((torch.tensor([[10.0, 10, 30, 30]]),), (torch.tensor([0]),), ((64, 64),))
    found, truth = (
        said(Told(([[10.0, 10, 30, 30], [40.0, 40, 60, 60]], [0.9, 0.8], [0, 1])), images([(64, 64)])),
        task().true_labels(objects),
    )

    kept, matches = task().keep(found, truth), task().per_image(found, truth)

    assert set(kept) == {"boxes", "scores", "labels"} and matches["hits"].shape == kept["scores"].shape
    assert matches["hits"][0, :3].tolist() == [2**10 - 1, 0, 0] and matches["positives"].tolist() == [[1, 0, 0]]
    assert task().true_columns(truth)["true_box"].tolist() == [[10, 10, 30, 30]]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_detections_that_are_no_numbers_are_a_failure_of_their_model(bad: float) -> None:
    for boxes, scores in (([[10.0, 10, bad, 30]], [0.9]), ([[10.0, 10, 30, 30]], [bad])):
        with pytest.raises(KdbenchError, match="the detector returns boxes or scores that are not finite"):
            said(Told((boxes, scores, [0])), images([(64, 64)]))
