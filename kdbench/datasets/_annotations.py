"""The objects in many images: as arrays, and read from a file in COCO's format. Not a dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from kdbench.datasets._files import composed
from kdbench.datasets._tables import refuse
from kdbench.errors import DataError, shown
from kdbench.scenes import Objects

LEAST_SIDE = 1.0
"""Boxes of at most so many pixels of breadth or height are no targets of training (as in torchvision's reference training)."""

ROUNDING = 1.0
"""A box that reaches so many pixels over the edge of its image is common, since coordinates are rounded; one that reaches further is
counted."""


@dataclass(frozen=True)
class Annotations:
    """The objects in n images. `sizes` (n x 2) are height and breadth of the images; the objects of image i are the rows `starts[i]` to
    `starts[i + 1]` of `boxes` (left, top, right, bottom, in float64), `labels`, `areas` and `crowds`. Arrays instead of lists, since a
    million Python objects would be copied into every reading process."""

    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray

    @classmethod
    def grouped(
        cls, sizes: Any, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray, areas: np.ndarray, crowds: np.ndarray
    ) -> Annotations:
        """From objects in any order; `images` are the positions of their images. Those of an image are ordered by their content."""
        order = np.lexsort((crowds, areas, *boxes.T[::-1], labels, images))
        sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        starts = np.searchsorted(images[order], np.arange(len(sizes) + 1))
        return cls(sizes, starts, boxes[order], labels[order], areas[order], crowds[order])

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def counts(self) -> np.ndarray:
        """How many objects each image has."""
        return np.diff(self.starts)

    @property
    def images(self) -> np.ndarray:
        """The image of each object."""
        return np.repeat(np.arange(len(self)), self.counts)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The rows of the objects in some images, one image after another."""
        counts = self.counts[index]
        return np.arange(counts.sum()) + np.repeat(self.starts[index] - np.cumsum(counts) + counts, counts)

    def take(self, index: np.ndarray) -> Annotations:
        """Those of some images, in this order."""
        starts, rows = np.concatenate([[0], np.cumsum(self.counts[index])]), self.rows(index)
        return Annotations(self.sizes[index], starts, *(one[rows] for one in (self.boxes, self.labels, self.areas, self.crowds)))

    def where(self, kept: np.ndarray) -> Annotations:
        """The same images with some of the objects."""
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return Annotations(self.sizes, starts, *(one[kept] for one in (self.boxes, self.labels, self.areas, self.crowds)))

    def for_training(self) -> tuple[Annotations, Counter[str]]:
        """The targets of training, and how many objects are none, or were changed: boxes are cut at the edges of their image; crowds, and
        boxes of at most `LEAST_SIDE`, are left out."""
        limits = np.repeat(self.sizes[:, [1, 0, 1, 0]], self.counts, axis=0)
        cut = np.clip(self.boxes, 0, limits)
        sides = cut[:, 2:] - cut[:, :2]
        small = (sides <= LEAST_SIDE).any(1) & ~self.crowds
        over = (np.abs(cut - self.boxes) > ROUNDING).any(1) & ~self.crowds & ~small
        counted = {"of crowds": self.crowds, "of at most one pixel": small, "cut": over}
        return replace(self, boxes=cut).where(~small & ~self.crowds), Counter({name: int(one.sum()) for name, one in counted.items()})

    def strata(self, n_classes: int) -> np.ndarray:
        """Of each image the rarest of its classes (that which is in the fewest images); `n_classes` for one without objects."""
        has = np.zeros((len(self), n_classes + 1), bool)
        has[self.images, self.labels] = True
        has[:, -1] = self.counts == 0
        return np.where(has, has.sum(0), len(self) + 1).argmin(1)

    def objects(self) -> Objects:
        counts = self.counts.tolist()

        def each(values: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return torch.as_tensor(values, dtype=dtype).split(counts)

        crowds = each(self.crowds, torch.bool) if self.crowds.any() else None
        sizes = tuple(map(tuple, self.sizes.tolist()))
        return Objects(each(self.boxes, torch.float32), each(self.labels, torch.int64), sizes, crowds, each(self.areas, torch.float32))

    def digest(self) -> bytes:
        arrays = (self.sizes, self.starts, self.boxes, self.labels, self.areas, self.crowds)
        return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)).digest()


_Pixels = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(slots=True)
class _Image:
    id: int
    file_name: str
    width: _Pixels
    height: _Pixels


@dataclass(slots=True)
class _Category:
    id: int
    name: str


@dataclass(slots=True)
class _Annotation:
    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    area: Annotated[FiniteFloat, Field(ge=0)] | None = None
    iscrowd: int = 0
    id: int | None = None


@dataclass(slots=True)
class _File:
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class CocoFile:
    """A file of annotations in COCO's format. `paths` are those of its images, `categories` the names by id in the order of the ids, whose
    positions the labels are."""

    path: Path
    paths: list[str]
    annotations: Annotations
    categories: dict[int, str]


def read_coco(path: Path) -> CocoFile:
    """Read a file of annotations; nothing in it but boxes (`segmentation` and other keys are ignored). Raises DataError, with the places
    in the file, for what is missing or has no meaning: ids that are unknown or stand twice, boxes that are no numbers, have a negative side
    or lie outside of their image, paths that lead elsewhere. A box that is partly outside is no error (`Annotations.for_training`)."""
    try:
        content = TypeAdapter(_File).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error}") from error
    except ValidationError as error:
        refuse(path, ((_place(one["loc"]), shown(one["msg"])) for one in error.errors(include_url=False)), "entries", _FORMAT)
        raise
    images, found, categories = content.images, content.annotations, sorted(content.categories, key=lambda one: one.id)
    if not images or not categories:
        raise DataError(f"{path.absolute()} has no {'categories' if images else 'images'}{_FORMAT}")
    refuse(path, _wrong_images(images), "entries")
    for key, entries in (("images", images), ("categories", content.categories), ("annotations", found)):
        refuse(path, _twice(key, entries), "entries", ": each id must stand once")
    places, classes = ({one.id: place for place, one in enumerate(entries)} for entries in (images, categories))
    refuse(path, _unknown(found, places, classes), "entries", ": remove them, or add what they name")
    of = np.array([places[one.image_id] for one in found], np.int64)
    boxes = np.array([one.bbox for one in found], np.float64).reshape(-1, 4)
    sizes = np.array([(one.height, one.width) for one in images])
    refuse(path, _wrong_boxes(boxes, sizes[of]), "entries", ": `bbox` is left, top, breadth and height, in pixels of the image")
    areas = np.array([one.bbox[2] * one.bbox[3] if one.area is None else one.area for one in found], np.float64)
    labels = np.array([classes[one.category_id] for one in found], np.int64)
    crowds = np.array([one.iscrowd != 0 for one in found], bool)
    boxes[:, 2:] += boxes[:, :2]
    annotations = Annotations.grouped(sizes, of, boxes, labels, areas, crowds)
    return CocoFile(path, [str(_path(one)) for one in images], annotations, {one.id: one.name for one in categories})


_FORMAT = ": the format is that of COCO's instances_*.json (https://cocodataset.org/#format-data)"


def _place(keys: Sequence[int | str]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "the file"


def _wrong_images(images: Sequence[_Image]) -> Iterator[tuple[str, str]]:
    first: dict[str, int] = {}
    for place, one in enumerate(images):
        name, where, path = one.file_name, f"images[{place}]", _path(one)
        if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or not path.name:
            yield where, f"the file_name {shown(name)!r} is not a path inside the folder of its split"
        elif (other := first.setdefault(composed(str(path)), place)) != place:
            yield where, f"{shown(name)!r} is also the file of images[{other}]"


def _path(image: _Image) -> PurePosixPath:
    return PurePosixPath(image.file_name.replace("\\", "/"))


def _twice(key: str, entries: Sequence[Any]) -> Iterator[tuple[str, str]]:
    first: dict[int, int] = {}
    for place, one in enumerate(entries):
        if one.id is not None and (other := first.setdefault(one.id, place)) != place:
            yield f"{key}[{place}]", f"the id {one.id} is also that of {key}[{other}]"


def _unknown(found: Sequence[_Annotation], images: Collection[int], categories: Collection[int]) -> Iterator[tuple[str, str]]:
    for place, one in enumerate(found):
        for key, asked, known in (("image", one.image_id, images), ("category", one.category_id, categories)):
            if asked not in known:
                yield f"annotations[{place}]", f"its {key}_id {asked} is that of no {key}"


def _wrong_boxes(boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[str, str]]:
    left, top, wide, high = boxes.T
    outside = (left > sizes[:, 1]) | (top > sizes[:, 0]) | (left + wide < 0) | (top + high < 0)
    for place in np.flatnonzero(outside | (wide < 0) | (high < 0)).tolist():
        height, breadth = sizes[place]
        why = "has a negative side" if min(wide[place], high[place]) < 0 else f"lies outside of its image of {breadth} x {height} pixels"
        yield f"annotations[{place}]", f"the box {boxes[place].tolist()} {why}"
