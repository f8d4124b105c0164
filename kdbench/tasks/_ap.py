"""Average precision as COCO defines it: the metrics of a table of detections, and what its matching says of each detection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from kdbench.scenes import Objects

Columns = Mapping[str, np.ndarray]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""The IoU from which on a detection finds an object: bit i of `hits` and `ignored` is of threshold i."""
MOST = 100
"""So many detections of an image and a class are judged: those with the highest scores."""
METRICS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_s": 3, "ap_m": 4, "ap_l": 5, "ar_100": 8}
"""The place of each metric among COCO's twelve numbers."""


def truth_of(objects: Objects) -> dict[str, np.ndarray]:
    """The objects of n images as flat columns, one row an object: `image` (its place), `label`, `box` (left, top, right, bottom), `crowd`
    and `area`. `sizes` (n x 2) are height and breadth of each image."""
    images = len(objects)
    box = _joined(objects.boxes, (0, 4), np.float32)
    return {
        "image": np.repeat(np.arange(images), [len(labels) for labels in objects.labels]),
        "label": _joined(objects.labels, (0,), np.int64),
        "box": box,
        "crowd": np.zeros(len(box), np.bool_) if objects.crowds is None else _joined(objects.crowds, (0,), np.bool_),
        "area": _extents(box)[:, 2:].prod(axis=1) if objects.areas is None else _joined(objects.areas, (0,), np.float64),
        "sizes": np.array(objects.sizes, dtype=np.int64).reshape(images, 2),
    }


def table(predictions: Columns) -> dict[str, np.ndarray]:
    """Padded columns, one row an image (`boxes` n x m x 4, `scores` and `labels` n x m, -1 where there is none), as one row a detection
    in canonical order: by image, then score from the highest, label and box. AP depends on the order of detections with equal scores.
    `place` is where the detection stands in the padded columns."""
    image, column = np.nonzero(predictions["labels"] >= 0)
    box = predictions["boxes"][image, column].astype(np.float32)
    score = predictions["scores"][image, column].astype(np.float32)
    label = predictions["labels"][image, column].astype(np.int64)
    order = np.lexsort((*box.T[::-1], label, -score, image))
    found = {"image": image, "score": score, "label": label, "box": box, "place": image * predictions["labels"].shape[1] + column}
    return {name: one[order] for name, one in found.items()}


def measured(predictions: Columns, truth: Columns, n_classes: int | None = None) -> dict[str, float | None]:
    """COCO's metrics; None where there are no such objects: its -1 is never averaged. `n_classes`: by default, up to the last one that has
    objects; a class without objects is in no number."""
    n_classes = n_classes or _classes(truth)
    evaluation = _evaluated(_as_coco(truth, n_classes), _as_coco({**table(predictions), "sizes": truth["sizes"]}, n_classes))
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(value) if (value := evaluation.stats[place]) > -1 else None for name, place in METRICS.items()}


def matches(predictions: Columns, truth: Columns, n_classes: int | None = None) -> dict[str, np.ndarray]:
    """What COCO's matching says, in columns from which the AP of any images follows without matching again.

    Returns:
        `hits` and `ignored` (uint16, the shape of `predictions["scores"]`): bit i is set where the detection finds an object at threshold
        i, or is not judged there (it lies in a crowd, or among those beyond `MOST`); `positives` (images x classes, int32): how many
        objects there are to find.
    """
    found, n_classes = table(predictions), n_classes or _classes(truth)
    hits, ignored = np.zeros((2, predictions["labels"].size), np.uint16)
    true, dets = _as_coco(truth, n_classes), _as_coco({**found, "sizes": truth["sizes"]}, n_classes)
    for place, threshold in enumerate(THRESHOLDS):
        for pair in _evaluated(true, dets, threshold).eval["matched"]:
            mine, its = (int(one) - 1 for one in pair.split("_"))
            (ignored if truth["crowd"][its] else hits)[found["place"][mine]] |= 1 << place
    group = found["image"] * (found["label"].max(initial=0) + 1) + found["label"]
    order = np.argsort(group, kind="stable")
    beyond = order[np.arange(len(order)) - np.searchsorted(group[order], group[order]) >= MOST]
    ignored[found["place"][beyond]] = (1 << len(THRESHOLDS)) - 1
    positives = np.zeros((len(truth["sizes"]), n_classes), np.int32)
    np.add.at(positives, (truth["image"], truth["label"]), ~truth["crowd"])
    shape = predictions["labels"].shape
    return {"hits": hits.reshape(shape), "ignored": ignored.reshape(shape), "positives": positives}


def _classes(truth: Columns) -> int:
    return int(truth["label"].max(initial=0)) + 1


def _joined(parts: Iterable[Tensor], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *(one.numpy() for one in parts)]).astype(dtype)


def _extents(box: np.ndarray) -> np.ndarray:
    """Left, top, breadth, height in float64, in which COCO computes."""
    return np.hstack([box[:, :2], box[:, 2:].astype(np.float64) - box[:, :2]])


def _as_coco(columns: Columns, n_classes: int) -> Any:
    """Objects or detections as the library takes them, with ids from 1 in the order of the rows."""
    from faster_coco_eval import COCO

    boxes, nothing = _extents(columns["box"]), np.zeros(len(columns["box"]))
    areas = columns.get("area", boxes[:, 2:].prod(axis=1))
    rest = (columns.get(name, nothing) for name in ("crowd", "score"))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd", "score")
    rows = zip(*(one.tolist() for one in (columns["image"], columns["label"], boxes, areas, *rest)), strict=True)
    sizes = enumerate(columns["sizes"].tolist())
    return COCO(
        {
            "images": [{"id": place, "height": height, "width": breadth} for place, (height, breadth) in sizes],
            "categories": [{"id": label, "name": str(label)} for label in range(n_classes)],
            "annotations": [{"id": place, **dict(zip(names, row, strict=True))} for place, row in enumerate(rows, 1)],
        }
    )


def _evaluated(true: Any, found: Any, threshold: float | None = None) -> Any:
    """The library's evaluation; with a `threshold`, at this one alone and for objects of every size."""
    from faster_coco_eval import COCOeval_faster

    evaluation = COCOeval_faster(true, found, "bbox")
    if threshold is not None:
        evaluation.params.iouThrs, evaluation.params.maxDets = [threshold], [MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    return evaluation
