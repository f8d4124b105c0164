"""Scenes with true objects and detections, drawn at random, and their AP by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch

from kdbench.scenes import Objects
from kdbench.stats.average_precision import Matches
from kdbench.tasks import _ap

CLASSES = 3
SIDE = 700


def drawn(
    seed: int, *, images: int = 24, most: int = 100, objects: int = 12, crowds: float = 0.15, decimals: int = 1, classes: int = CLASSES - 1
) -> tuple[dict[str, np.ndarray], Objects]:
    """Padded predictions in canonical order, and what is there: of `classes` classes, from 9 to 90,000 square pixels, some images without
    objects, others without detections. Scores of one digit are often equal."""
    draw = np.random.default_rng(seed)
    found = {
        "boxes": np.zeros((images, most, 4), np.float32),
        "scores": np.zeros((images, most), np.float32),
        "labels": np.full((images, most), -1, np.int16),
    }
    there: list[tuple[np.ndarray, ...]] = []
    for image in range(images):
        m = 0 if image % 7 == 3 else int(draw.integers(1, objects))
        sides = np.exp(draw.uniform(np.log(3), np.log(300), (m, 2)))
        corner = draw.uniform(0, SIDE - 300, (m, 2))
        box, label = np.hstack([corner, corner + sides]).astype(np.float32), draw.integers(0, classes, m)
        there.append((box, label, draw.random(m) < crowds, (sides.prod(axis=1) * draw.uniform(0.5, 1, m)).astype(np.float32)))
        n = 0 if image % 5 == 1 else int(min(most, draw.integers(0, 4) * m + draw.integers(0, 9)))
        own = draw.integers(0, max(m, 1), n)
        near = box[own] + 0.1 * np.tile(sides[own], 2) * draw.normal(size=(n, 4)) if m else draw.uniform(0, 300, (n, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        named = np.where(draw.random(n) < 0.85, label[own], draw.integers(0, CLASSES, n)) if m else draw.integers(0, CLASSES, n)
        put(found, image, near.astype(np.float32), draw.random(n).round(decimals).astype(np.float32), named)
    boxes, labels, regions, areas = (tuple(map(torch.from_numpy, column)) for column in zip(*there, strict=True))
    return found, Objects(boxes, labels, ((SIDE, SIDE),) * images, regions, areas)


def put(found: dict[str, np.ndarray], image: int, box: np.ndarray, score: np.ndarray, label: np.ndarray) -> None:
    """The detections of one image in canonical order."""
    order = np.lexsort((*box.T[::-1], label, -score))
    for name, column in zip(("boxes", "scores", "labels"), (box, score, label), strict=True):
        found[name][image, : len(order)] = column[order]


def oracle(predictions: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> Any:
    """pycocotools' evaluation: `stats`, `eval["precision"]`, `evalImgs`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def held(rows: dict[str, np.ndarray]) -> Any:
        made, extents = COCO(), rows["box"].astype(np.float64)
        extents[:, 2:] -= extents[:, :2]
        names = {"image_id": rows["image"], "category_id": rows["label"], "score": rows.get("score", rows["image"])}
        names |= {"area": rows.get("area", extents[:, 2] * extents[:, 3]), "iscrowd": rows.get("crowd", 0 * rows["image"])}
        lines = [{name: column[place].item() for name, column in names.items()} for place in range(len(extents))]
        made.dataset = {
            "images": [{"id": image} for image in range(len(truth["sizes"]))],
            "categories": [{"id": label} for label in range(CLASSES)],
            "annotations": [
                {**line, "id": place, "bbox": box.tolist()} for place, (line, box) in enumerate(zip(lines, extents, strict=True), 1)
            ],
        }
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(held(truth), held(_ap.table(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def precision(evaluation: Any) -> np.ndarray:
    """[thresholds, recalls, classes], for objects of every size and 100 detections; NaN for a class without objects."""
    found = evaluation.eval["precision"][:, :, :, 0, -1]
    return np.where(found < 0, np.nan, found)


def matched(predictions: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> Matches:
    return Matches.of({**predictions, **_ap.matches(predictions, truth, CLASSES)})
