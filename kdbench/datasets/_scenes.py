"""Images of many sizes with objects in them: their views, how they are read, and batches of them. Not a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.datasets._annotations import Annotations
from kdbench.datasets._base import Dataset, normalised, to_device
from kdbench.datasets._memory import split_off
from kdbench.datasets._reading import Decoding, Reader, StoredImages, read_rgb
from kdbench.datasets._streamed import ReadAhead
from kdbench.datasets._views import as_it_is
from kdbench.errors import DataError
from kdbench.scenes import Images, Objects, Size

MULTIPLE = 32
"""What height and breadth of a batch are multiples of: no stride of a pyramid's levels that is used by all detectors is larger."""

KEPT_BYTES = 2**28
"""Sets of up to this size, resized, are read once and kept in memory."""

Fit = Callable[[Size], Size]
"""From the size of an image to the one it is resized to."""


def as_they_are(size: Size) -> Size:
    return size


@dataclass(frozen=True)
class Exactly:
    """The same size for every image, whatever its ratio of breadth to height."""

    size: Size

    def __call__(self, size: Size) -> Size:
        return self.size


@dataclass(frozen=True)
class ShorterSide:
    """The shorter side becomes `length`, unless the longer one would exceed `longest`: then that becomes `longest`. The integers are those
    of torchvision.transforms.v2.Resize."""

    length: int
    longest: int

    def __call__(self, size: Size) -> Size:
        shorter, longer = self.length, int(self.length * max(size) / min(size))
        if longer > self.longest:
            shorter, longer = max(1, int(self.longest * shorter / longer)), self.longest
        return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


@dataclass(frozen=True)
class SceneViews:
    """The views of a scene, numbered from 0: each of the sizes, with and without each flip. The number is
    (size * 2 + top-bottom flip) * 2 + left-right flip, where a flip that does not happen has no factor. Evaluation sees the last size."""

    fits: tuple[Fit, ...]
    horizontal: bool = False
    vertical: bool = False

    def __len__(self) -> int:
        return len(self.fits) * (1 + self.horizontal) * (1 + self.vertical)

    def parts(self, view: int | None) -> tuple[int, bool, bool]:
        """The number of the size, and whether left and right, and top and bottom, are exchanged."""
        if view is None:
            return len(self.fits) - 1, False, False
        rest, across = divmod(view, 1 + self.horizontal)
        which, down = divmod(rest, 1 + self.vertical)
        return which, bool(across), bool(down)


class SceneReader(Reader):
    """Pixels (uint8) of scenes, each in its own view, in one padded tensor. `sizes` are those that the images must have; `stated_in` says
    where they stand. `kept` are the pixels of each size and image, for those in memory."""

    def __init__(
        self,
        files: StoredImages | None,
        sizes: np.ndarray,
        views: SceneViews,
        decoding: Decoding | None = None,
        stated_in: str = "",
        kept: Sequence[Sequence[Tensor]] | None = None,
    ):
        self.files, self.sizes, self.views = files, sizes, views  # type: ignore[assignment]
        self.decoding, self.stated_in, self.kept = decoding or Decoding(), stated_in, kept

    def fitted(self, place: int, which: int) -> Size:
        """The size of an image when it is resized."""
        return self.views.fits[which](tuple(self.sizes[place].tolist()))

    @property
    def resized_bytes(self) -> int:
        return sum(3 * int(np.prod(self.fitted(place, which))) for which in range(len(self.views.fits)) for place in range(len(self.sizes)))

    def in_memory(self) -> SceneReader:
        """The same images, read once."""
        kept: list[list[Tensor]] = [[] for _ in self.views.fits]
        for place in range(len(self.sizes)):
            image = self._decoded(place, None)
            for which, pixels in enumerate(kept):
                pixels.append(self._resized(image, which).contiguous())
        return SceneReader(self.files, self.sizes, self.views, self.decoding, self.stated_in, kept)

    def read(self, index: np.ndarray, views: np.ndarray | None) -> Tensor:
        wanted = [None] * len(index) if views is None else views.tolist()
        seen = [self._seen(place, view) for place, view in zip(index.tolist(), wanted, strict=True)]
        return Images.padded(seen, multiple=MULTIPLE).pixels

    def _seen(self, place: int, view: int | None) -> Tensor:
        if self.kept is None:
            return self._transformed(self._decoded(place, view), view)
        which, *flips = self.views.parts(view)
        return _flipped(self.kept[which][place], *flips)

    def _decoded(self, place: int, view: int | None) -> Image.Image:
        image, (height, breadth) = read_rgb(self.files.path(place), self.decoding), self.sizes[place].tolist()
        if image.size != (breadth, height):
            there = f"{self.files.path(place).absolute()} has {image.width} x {image.height} pixels"
            turned = "use the image that was annotated (where EXIF data turn it, see the option `orientation`)"
            raise DataError(f"{there}, and {self.stated_in} says {breadth} x {height}, so that its boxes would be wrong: {turned}")
        return image

    def _transformed(self, image: Image.Image, view: int | None) -> Tensor:
        which, *flips = self.views.parts(view)
        return _flipped(self._resized(image, which), *flips)

    def _resized(self, image: Image.Image, which: int) -> Tensor:
        height, breadth = self.views.fits[which]((image.height, image.width))
        same = (breadth, height) == image.size
        return as_it_is(image if same else image.resize((breadth, height), Image.Resampling.BILINEAR))


def _flipped(pixels: Tensor, across: bool, down: bool) -> Tensor:
    sides = [side for side, is_flipped in ((1, down), (2, across)) if is_flipped]
    return pixels.flip(sides) if sides else pixels


@dataclass(eq=False)
class SceneData(ReadAhead):
    """Scenes: images of many sizes, padded to a common one, and the objects in them. A view is the number of one of `SceneViews`.

    `targets` are all objects as they were annotated; `batch` gives those that training sees (`Annotations.for_training`), in pixels of the
    input.
    """

    readers: dict[str, SceneReader]  # type: ignore[assignment]
    annotations: dict[str, Annotations]
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    evaluation_batch: int = 16
    device: torch.device = torch.device("cpu")
    workers: int = 0
    trained: dict[str, Annotations] = field(init=False)

    def __post_init__(self) -> None:
        self.trained = {split: one.for_training()[0] for split, one in self.annotations.items()}
        self.views, self.n_classes = self.readers["train"].views, len(self.class_names)

    @property
    def from_files(self) -> bool:  # type: ignore[override]
        return any(reader.kept is None for reader in self.readers.values())

    @property
    def n_views(self) -> int | None:  # type: ignore[override]
        return len(self.views)

    def size(self, split: str) -> int:
        return len(self.annotations[split]) if split in self.annotations else 0

    def targets(self, split: str) -> Objects:
        return self.annotations[split].objects()

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        # Raw draws are the same in every release of NumPy; the bias of the remainder is below 1e-16.
        return (rng.bit_generator.random_raw(self.size("train")) % np.uint64(len(self.views))).astype(np.int64)

    def made(self, split: str, index: np.ndarray, views: np.ndarray | None, pixels: Tensor) -> tuple[Images, Objects]:
        known = self.trained[split]
        parts = [self.views.parts(view) for view in ([None] * len(index) if views is None else views.tolist())]
        fitted = [self.readers[split].fitted(place, which) for place, (which, *_) in zip(index.tolist(), parts, strict=True)]
        sizes, originals, counts, rows = np.array(fitted), known.sizes[index], known.counts[index], known.rows(index)
        # Multiplied first: what ends at the edge of the image ends at its edge when it is resized, too.
        boxes = known.boxes[rows] * np.repeat(sizes[:, [1, 0, 1, 0]], counts, 0) / np.repeat(originals[:, [1, 0, 1, 0]], counts, 0)
        for axis, flips in enumerate(zip(*(flips for _, *flips in parts), strict=True)):
            turned = np.repeat(flips, counts)
            length = np.repeat(sizes[:, 1 - axis], counts)[turned]
            boxes[turned, axis], boxes[turned, axis + 2] = length - boxes[turned, axis + 2], length - boxes[turned, axis]
        flat = (to_device(values, self.device).split(counts.tolist()) for values in (boxes.astype(np.float32), known.labels[rows]))
        inputs = normalised(pixels.to(self.device, non_blocking=True), self.mean, self.std)
        if (sizes != inputs.shape[2:]).any():
            inputs.masked_fill_(self._margins(sizes, inputs), 0.0)
        return Images(inputs, tuple(fitted), tuple(map(tuple, originals.tolist()))), Objects(*flat, tuple(fitted))

    def _margins(self, sizes: np.ndarray, inputs: Tensor) -> Tensor:
        """Which pixels (n x 1 x height x breadth) belong to no image."""
        heights, breadths = to_device(sizes, self.device).view(-1, 2, 1, 1, 1).unbind(1)
        rows, columns = (torch.arange(side, device=self.device) for side in inputs.shape[2:])
        return (rows[:, None] >= heights) | (columns >= breadths)

    def to(self, device: torch.device) -> SceneData:
        return replace(self, device=device)


class Scenes(Dataset):
    """A dataset for detection: the options that all such datasets have."""

    task: ClassVar[str] = "detection"
    augments: ClassVar[bool] = False

    views: SceneViews

    def _keep_views(self, fits: tuple[Fit, ...], largest: Size, horizontal: bool, vertical: bool, mean: Any, std: Any) -> None:
        """Check and keep what makes pixels of an image; `largest` is the nominal size of an input. Raises ValueError."""
        if min(std) <= 0:
            raise ValueError(f"std must be positive, not {list(std)}")
        self.views, self.normalisation = SceneViews(fits, horizontal, vertical), (tuple(mean), tuple(std))
        self.input_shape = (3, *(-(-side // MULTIPLE) * MULTIPLE for side in largest))
        self.n_views, self.one_size = len(self.views), len(fits) == 1 and isinstance(fits[0], Exactly)

    def example(self, n: int) -> tuple[Images, Objects]:
        _, height, breadth = self.input_shape
        boxes = torch.tensor([[breadth / 4, height / 4, 3 * breadth / 4, 3 * height / 4]])
        labels = (torch.arange(n) % self.n_classes).split(1)
        sizes = ((height, breadth),) * n
        return Images(torch.zeros(n, *self.input_shape), sizes, sizes), Objects((boxes,) * n, labels, sizes)

    def _divided(self, keys: Sequence[bytes], annotations: Annotations) -> dict[str, np.ndarray]:
        """The positions of `train` and, if images are held out, of `val` in a pool. Each class, as the rarest of an image, has its
        share."""
        if not self.validation:
            return {"train": np.arange(len(annotations))}
        train, val = split_off(keys, self.validation, self.split_seed, strata=annotations.strata(self.n_classes))
        return {"train": train, "val": val}

    def _data(
        self,
        readers: dict[str, SceneReader],
        annotations: dict[str, Annotations],
        names: tuple[str, ...],
        fingerprint: str,
        notes: tuple[str, ...] = (),
    ) -> SceneData:
        assert self.normalisation
        return SceneData(readers, annotations, names, self.input_shape, fingerprint, *self.normalisation, notes=notes)
