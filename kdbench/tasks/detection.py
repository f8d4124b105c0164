from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.datasets._base import Dataset
from kdbench.errors import KdbenchError
from kdbench.losses._base import Taps
from kdbench.manifest import Metric
from kdbench.scenes import Images, Objects, Size
from kdbench.tasks._base import Mark, Task, Usual

SMALL_IMAGES = 12
"""Of a small copy of a suite: a whole batch and a smaller one."""
MOST = 100
"""So many objects of an image are kept, those with the highest scores: as many as AP counts."""


class Detection(Task):
    """Object detection: boxes of objects and their classes; loss: the detector's own; primary metric: AP.

    AP is COCO's: the mean over classes that have objects, ten thresholds of IoU from 0.5 to 0.95, and 101 recalls, with at most 100
    detections of an image. `ap50` and `ap75` are at one threshold; `ap_s`, `ap_m` and `ap_l` of objects of less than 32 x 32 pixels, of up
    to 96 x 96, and larger; `ar_100` is the mean recall. A metric without such objects is absent. Boxes are judged in pixels of the images
    as they are in their files, in float32, in an order that depends on nothing but themselves: score, class, box.
    Source: Lin et al. 2014 (COCO) and its pycocotools, computed by faster-coco-eval.
    """

    alone = "detection"
    has_classes = False
    usual = (
        Usual(256, "small_detector", ("faster_rcnn_lcnet_035", ""), ("faster_rcnn_test_resnet", "")),
        Usual(
            None,
            "coco24",
            ("faster_rcnn_r50", "{model: faster_rcnn, body: resnet50, weights: pretrained}"),
            ("faster_rcnn_r101", "{model: faster_rcnn, body: resnet101, weights: pretrained}"),
        ),
    )
    usual_objectives = ("detection", "mimic", "pkd:faster_rcnn", "cwd", "fgd:faster_rcnn", "pcka:fpn_faster_rcnn")
    small_batch = 8

    metrics = (
        Metric("ap", "AP", per_image="hits"),
        Metric("ap50", "AP50"),
        Metric("ap75", "AP75"),
        Metric("ap_s", "AP small"),
        Metric("ap_m", "AP medium"),
        Metric("ap_l", "AP large"),
        Metric("ar_100", "AR"),
    )

    @classmethod
    def few_images(cls, known: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
        if "subset" not in known:
            return {name: SMALL_IMAGES for name in ("images", "test_images") if name in known}
        # As they are where they have one size: anchors are for it.
        sizes = {} if given.get("size") or "min_size" not in known else {"min_size": 128, "max_size": 224}
        return {"subset": {**(given.get("subset") or {}), "images": SMALL_IMAGES}, **sizes}

    def outputs(self, dataset: Dataset) -> int:
        return dataset.n_classes

    def step(self, student: nn.Module, inputs: Images, targets: Objects) -> tuple[dict[str, Tensor], Taps]:
        return student.losses(inputs, targets)  # type: ignore[operator]

    def predict(self, model: nn.Module, inputs: Images) -> dict[str, Tensor]:
        """`boxes` (n x 100 x 4, float32), `scores` (n x 100, float32; 0: no object), `labels` (n x 100, int16; -1: no object), and
        `n_classes`, the same for each image."""
        found: Any = model.detect(inputs)  # type: ignore[operator]
        rows = [_in_order(*one, *sizes) for one, *sizes in zip(found, inputs.sizes, inputs.originals, strict=True)]
        boxes, scores, labels = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        return {"boxes": boxes, "scores": scores, "labels": labels, "n_classes": torch.full((len(inputs),), model.outputs)}  # type: ignore[arg-type]

    def true_labels(self, targets: Objects) -> dict[str, np.ndarray]:
        from kdbench.tasks import _ap

        return _ap.truth_of(targets.to(torch.device("cpu")))

    def measure(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, float]:
        from kdbench.tasks import _ap

        found = _ap.measured(predictions, targets, _n_classes(predictions))
        values = {metric.name: found[metric.name] for metric in self.metrics}
        return {name: float("nan") if value is None else value for name, value in values.items()}

    def keep(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, np.ndarray]:
        return {name: predictions[name] for name in ("boxes", "scores", "labels")}

    def true_columns(self, targets: Any) -> dict[str, np.ndarray]:
        """One row an object, in no relation to the rows of the predictions but by `true_image`."""
        return {f"true_{name}": values for name, values in targets.items()}

    def marks(self, table: Mapping[str, np.ndarray], image: int, true: bool) -> list[Mark]:
        height, breadth = table["true_sizes"][image].tolist()
        if true:
            rows = np.flatnonzero((table["true_image"] == image) & ~table["true_crowd"])
            return [Mark(int(table["true_label"][row]), None, tuple(table["true_box"][row].tolist()), (height, breadth)) for row in rows]
        found = zip(*(table[name][image].tolist() for name in ("labels", "scores", "boxes")), strict=True)
        return [Mark(label, score, tuple(box), (height, breadth)) for label, score, box in found if label >= 0]

    def bytes_per_image(self, outputs: int) -> int:
        """Without those of the true objects, which are few beside them."""
        return MOST * (4 * 4 + 4 + 2 + 2 + 2) + 4 * outputs

    def per_image(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, np.ndarray]:
        """`hits` and `ignored` of each detection, and the `positives` of each class, from which the AP of any images follows."""
        from kdbench.tasks import _ap

        return _ap.matches(predictions, targets, _n_classes(predictions))


def _in_order(boxes: Tensor, scores: Tensor, labels: Tensor, size: Size, original: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections of one image in pixels of the original and in canonical order, padded to `MOST`."""
    ratio = torch.tensor([original[1] / size[1], original[0] / size[0]]).repeat(2).numpy()
    held = boxes.float().cpu().numpy() * ratio, scores.float().cpu().numpy(), labels.cpu().numpy().astype(np.int16)
    if not all(np.isfinite(one).all() for one in held):
        raise KdbenchError("the detector returns boxes or scores that are not finite: filter them in `detect`")
    order = np.lexsort((*held[0].T[::-1], held[2], -held[1]))[:MOST]
    empty = np.zeros((MOST, 4), np.float32), np.zeros(MOST, np.float32), np.full(MOST, -1, np.int16)
    for padded, column in zip(empty, held, strict=True):
        padded[: len(order)] = column[order]
    return empty


def _n_classes(predictions: dict[str, np.ndarray]) -> int:
    return int(predictions["n_classes"][0])
