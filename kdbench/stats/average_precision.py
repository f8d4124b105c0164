"""Average precision from stored matches: of a test set as it is, and of test sets whose images are drawn again.

AP is no mean over images: the detections of all images are put in one order. But which detections find an object follows from each image
alone, so that the AP of any images follows from `hits`, `ignored` and `positives` without boxes (COCO's `accumulate`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

THRESHOLDS = 10
"""IoU from 0.5 to 0.95 in steps of 0.05: bit i of `hits` and `ignored` is of threshold i."""
RECALLS = np.linspace(0.0, 1.0, 101)
AT_ONCE = 400_000
"""So many numbers are held in one array, for the processor's cache: several times faster than with all sets at once."""


@dataclass(frozen=True)
class Matches:
    """The detections of one run, one row a detection, in which those of one image have its order.

    hits, ignored: integers, one bit a threshold: the detection finds an object; it counts neither for nor against the run; scores; image:
    its place; label: its class; positives: [images, classes], how many objects there are to find.
    """

    hits: np.ndarray
    ignored: np.ndarray
    scores: np.ndarray
    image: np.ndarray
    label: np.ndarray
    positives: np.ndarray

    columns: ClassVar = ("scores", "labels", "hits", "ignored", "positives")

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> Matches:
        """Matches from stored columns: all [images, most detections] (a label of -1: there is none), but positives. Raises ValueError where
        they cannot be matches."""
        scores, labels, hits, ignored, positives = (columns[name] for name in cls.columns)
        if not scores.shape == labels.shape == hits.shape == ignored.shape or scores.ndim != 2 or positives.ndim != 2:
            raise ValueError("the columns do not have one row an image, and the same detections")
        if len(scores) != len(positives) or len(scores) < 2:
            raise ValueError("they are of fewer than two images, or of others than the objects")
        kinds = {np.integer: (labels, positives), np.unsignedinteger: (hits, ignored), np.floating: (scores,)}
        if not all(np.issubdtype(one.dtype, kind) for kind, of in kinds.items() for one in of) or positives.min(initial=0) < 0:
            raise ValueError("labels, hits, ignored or positives are no whole numbers, scores no numbers, or positives negative")
        image, place = np.nonzero((labels >= 0) & (labels < positives.shape[1]))  # a class without objects is in no number
        hits, ignored, scores, labels = (one[image, place] for one in (hits, ignored, scores, labels))
        found = cls(hits, ignored, scores, image, labels.astype(np.intp), positives)
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite")
        if (found.hits & found.ignored).any() or max(found.hits.max(initial=0), found.ignored.max(initial=0)) >> THRESHOLDS:
            raise ValueError("a detection finds an object and is ignored, or does so at a threshold that there is not")
        for at in range(THRESHOLDS):
            hit = (found.hits >> at & 1).astype(bool)
            if (np.bincount(image[hit] * positives.shape[1] + found.label[hit], minlength=positives.size) > positives.ravel()).any():
                raise ValueError("more objects of an image are found than there are")
        return found

    @property
    def n_images(self) -> int:
        return len(self.positives)

    @property
    def images(self) -> np.ndarray:
        """[classes], how many objects there are."""
        return self.positives.sum(axis=0)

    @cached_property
    def digest(self) -> bytes:
        """Of what there is to find."""
        return hashlib.sha256(self.positives.astype(np.int64).tobytes()).digest()

    @cached_property
    def each(self) -> np.ndarray:
        """[thresholds, classes], AP; NaN for a class without objects."""
        return accumulated(self).mean(axis=1)

    @property
    def by_class(self) -> np.ndarray:
        return self.each.mean(axis=0)

    @property
    def metrics(self) -> Mapping[str, float]:
        """AP, by the name of the column from which it follows, and AP at two thresholds."""
        known = self.each[:, self.images > 0]
        return {"hits": known.mean(), "ap50": known[0].mean(), "ap75": known[5].mean()} if known.size else {}

    @cached_property
    def over_images(self) -> np.ndarray:
        """[images], as `influence`."""
        return influence(self)

    def contradiction(self, value: float, column: str) -> str:
        """Why a record's AP is not what its detections give; empty where it is."""
        mine = self.metrics.get("hits", np.nan)
        return f"{column} is {value:.6g}, and its detections give {mine:.6g}" if not (abs(mine - value) <= 1e-6 or np.isnan(value)) else ""


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
    there = once @ matches.positives > 0
    found[:, :, there] = 0.0
    for one in (one for one in _by_class(matches) if there[one.label]):
        for threshold, precision, recalls in _curves(one, once.astype(np.int32)[:, None]):
            reached = np.repeat(precision[:, 0], recalls[:, 0])
            found[threshold, : len(reached), one.label] = reached
    return found


def resampled_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP, the mean over thresholds, recalls and the classes that have objects, of each of many test sets; NaN for one without objects.

    Args:
        weights: [images, sets], how often each image is in each set (integers).
    """
    total = sum((_average(one, weights) for one in _by_class(matches)), np.zeros(weights.shape[1]))
    return _over_classes(total, (matches.positives.T.astype(np.float64) @ weights > 0).sum(axis=0))


def influence(matches: Matches) -> np.ndarray:
    """A number for each image, whose mean over the images is AP, and whose spread is what the images add to its error: the jackknife's
    pseudo-values, moved to that mean. n (images) times the change of AP if the image is left out, except for a constant.

    So AP has the error of a mean over images. Its own bootstrap (AP of resampled images) gives a standard error that is too small for small
    test sets, by 1 to 8 % for 72 images, since a resampled set holds only 63 % of the objects of a rare class. The jackknife's is right
    (docs/error_rates.md).
    """
    objects, images = matches.positives.sum(axis=0), matches.n_images
    total, classes = np.zeros(images), (objects - matches.positives > 0).sum(axis=1)
    for one in _by_class(matches):
        # Only images with detections or objects of the class change its AP.
        involved, place = np.unique(np.r_[one.image, np.flatnonzero(one.positives)], return_inverse=True)
        of_them = replace(one, image=place[: len(one.image)], positives=one.positives[involved])
        mine = np.full(images, _average(of_them, np.ones((len(involved), 1))))
        mine[involved] = _average(of_them, ~np.eye(len(involved), dtype=bool))
        total += mine
    without = _over_classes(total, classes)
    return matches.metrics.get("hits", np.nan) + (images - 1) * (without.mean() - without)


def _over_classes(total: np.ndarray, classes: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return total / classes


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


def _average(one: _Class, weights: np.ndarray) -> np.ndarray:
    """AP of a class, [sets]; 0 where it has no objects."""
    total, held = np.zeros(weights.shape[1]), max(1, AT_ONCE // len(one.image))
    for start in range(0, len(total), held):
        chosen = slice(start, start + held)
        for _, precision, recalls in _curves(one, np.ascontiguousarray(weights[:, chosen], np.int32)):
            total[chosen] += np.einsum("hb,hb->b", precision, recalls)
    return total / (len(RECALLS) * THRESHOLDS)


def _curves(one: _Class, weights: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """At each threshold with hits: (threshold, the highest precision at this hit or a later one, how many of the 101 recalls are reached
    first at this hit), both [hits, sets]; `weights`: [images, sets].

    Only hits are looked at. Precision falls at all other detections, so that its maximum is at a hit, and recall rises at hits alone.
    """
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
        yield threshold, highest, np.diff(reached, axis=0, prepend=0)
