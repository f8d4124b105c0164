"""Average precision from stored matches: of a test set as it is, and of test sets whose images are drawn again.

AP is no mean over images: the detections of all images are put in one order. But which detections find an object follows from each image
alone, so that the AP of any images follows from `hits`, `ignored` and `positives` without boxes (COCO's `accumulate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

THRESHOLDS = 10
"""IoU from 0.5 to 0.95 in steps of 0.05: bit i of `hits` and `ignored` is of threshold i."""
RECALLS = np.linspace(0.0, 1.0, 101)
AT_ONCE = 400_000
"""So many numbers are held in one array, for the processor's cache: several times faster than with all sets at once."""


@dataclass(frozen=True)
class Matches:
    """The detections of one run, one row a detection, in which those of one image have its order.

    hits, ignored: integers, one bit a threshold: the detection finds an object; it counts neither for nor against the run; scores; image: its
    place; label: its class; positives: [images, classes], how many objects there are to find.
    """

    hits: np.ndarray
    ignored: np.ndarray
    scores: np.ndarray
    image: np.ndarray
    label: np.ndarray
    positives: np.ndarray


def accumulated(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """The precision at each threshold, recall and class, as COCO defines it: `np.nanmean` of it is AP.

    Args:
        weights: how often each image is there (integers); None: once. The value is that of a test set in which each image stands so many
            times. (Where an image has several detections of one class with the same score, its copies are taken detection by detection.)

    Returns:
        [thresholds, recalls, classes]; NaN for a class without objects.
    """
    images, classes = matches.positives.shape
    once = np.ones(images, np.int32) if weights is None else weights
    found = np.full((THRESHOLDS, len(RECALLS), classes), np.nan)
    found[:, :, once @ matches.positives > 0] = 0.0
    for label, threshold, precision, recalls in _curves(_by_class(matches), once.astype(np.int32)[:, None]):
        if not np.isnan(found[threshold, 0, label]):
            reached = np.repeat(precision[:, 0], recalls[:, 0])
            found[threshold, : len(reached), label] = reached
    return found


def resampled_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP, the mean over thresholds, recalls and the classes that have objects, of each of many test sets; NaN for one without objects.

    Args:
        weights: [images, sets], how often each image is in each set (integers).
    """
    by_class, sets = _by_class(matches), weights.shape[1]
    held = max(1, AT_ONCE // max((len(one.image) for one in by_class), default=1))
    total = np.zeros(sets)
    for start in range(0, sets, held):
        chosen = slice(start, start + held)
        for *_, precision, recalls in _curves(by_class, np.ascontiguousarray(weights[:, chosen], np.int32)):
            total[chosen] += np.einsum("hb,hb->b", precision, recalls)
    classes = (matches.positives.T.astype(np.float64) @ weights > 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return total / (len(RECALLS) * THRESHOLDS * classes)


@dataclass(frozen=True)
class _Class:
    """A class with hits: the image of each detection by falling score, the number of objects of each image, and the places of hits and of
    what is ignored at each threshold that has hits."""

    label: int
    image: np.ndarray
    positives: np.ndarray
    places: list[tuple[int, np.ndarray, np.ndarray]]


def _by_class(matches: Matches) -> list[_Class]:
    order = np.lexsort((matches.image, -matches.scores, matches.label))
    ends = np.searchsorted(matches.label[order], np.arange(matches.positives.shape[1] + 1))
    found = []
    for label, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        mine = order[start:end]
        bits = [[np.flatnonzero(one[mine] >> at & 1) for one in (matches.hits, matches.ignored)] for at in range(THRESHOLDS)]
        if places := [(at, hit, ignored) for at, (hit, ignored) in enumerate(bits) if len(hit)]:
            found.append(_Class(label, matches.image[mine], matches.positives[:, label].astype(np.float64), places))
    return found


def _curves(by_class: list[_Class], weights: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """For each class and threshold with hits: (class, threshold, the highest precision at this hit or a later one, how many of the 101
    recalls are reached first at this hit), both [hits, sets]; `weights`: [images, sets].

    Only hits are looked at. Precision falls at all other detections, so that its maximum is at a hit, and recall rises at hits alone.
    """
    for one in by_class:
        drawn = weights[one.image]
        counted = np.cumsum(drawn, axis=0, dtype=np.int32)
        objects = np.maximum(one.positives @ weights, 1)
        for threshold, hit, ignored in one.places:
            true = np.cumsum(drawn[hit], axis=0, dtype=np.int32).astype(np.float64)
            judged = counted[hit]
            if len(ignored):
                before = np.cumsum(np.vstack([np.zeros_like(drawn[:1]), drawn[ignored]]), axis=0, dtype=np.int32)
                judged = judged - before[np.searchsorted(ignored, hit)]
            precision = true / (judged + np.spacing(1))
            highest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            recall = true / objects
            nearest = (100 * recall + 1e-7).astype(np.intp)  # this one or the one before: rounding decides below, as in COCO
            reached = nearest + (RECALLS[nearest] <= recall)
            yield one.label, threshold, highest, np.diff(reached, axis=0, prepend=0)
