"""Images of many sizes as one batch, and the objects in them: what datasets of scenes give to detectors, tasks and losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Size = tuple[int, int]
"""Height and breadth, in pixels."""


@dataclass(frozen=True)
class Images:
    """A batch of n images. `pixels` (n x channels x height x breadth) holds each image in its upper left corner, and zeros elsewhere;
    `sizes` are those of the images there, and `originals` those before they were resized, in which objects are found and judged."""

    pixels: Tensor
    sizes: tuple[Size, ...]
    originals: tuple[Size, ...]

    @classmethod
    def padded(cls, images: Sequence[Tensor], originals: Sequence[Size] | None = None, multiple: int = 32) -> Images:
        """Images (each channels x height x breadth) in one tensor, whose height and breadth are those of the largest, up to the next
        `multiple`."""
        sizes = tuple((int(one.shape[1]), int(one.shape[2])) for one in images)
        height, breadth = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, breadth)
        for place, (one, (high, broad)) in enumerate(zip(images, sizes, strict=True)):
            pixels[place, :, :high, :broad] = one
        return cls(pixels, sizes, sizes if originals is None else tuple(originals))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, chosen: slice) -> Images:
        return Images(self.pixels[chosen], self.sizes[chosen], self.originals[chosen])

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def to(self, device: torch.device) -> Images:
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))


@dataclass(frozen=True)
class Objects:
    """The objects in n images. Of each image `boxes` (m x 4, float32: left, top, right, bottom, in pixels) and `labels` (m, int64, classes
    from 0); m may be 0. `sizes` are those of the images, in the same pixels. `crowds` (m, bool) marks regions of many objects, which are no
    targets of training, and in which found objects are no errors; None if there are none."""

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    sizes: tuple[Size, ...]
    crowds: tuple[Tensor, ...] | None = None
    areas: tuple[Tensor, ...] | None = None
    """What decides whether an object is small, medium or large, in square pixels (m, float32), where it is not the area of the box."""

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Objects:
        """Those of all images of several batches, in order."""
        values = {one.name: [getattr(part, one.name) for part in parts] for one in fields(cls)}
        return cls(**{name: None if any(one is None for one in each) else sum(each, ()) for name, each in values.items()})

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: slice) -> Objects:
        rest = (None if one is None else one[chosen] for one in (self.crowds, self.areas))
        return Objects(self.boxes[chosen], self.labels[chosen], self.sizes[chosen], *rest)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.boxes, self.labels, strict=True)

    def to(self, device: torch.device) -> Objects:
        def moved(tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if tensors is None else tuple(one.to(device, non_blocking=True) for one in tensors)

        return Objects(moved(self.boxes), moved(self.labels), self.sizes, moved(self.crowds), moved(self.areas))  # type: ignore[arg-type]
