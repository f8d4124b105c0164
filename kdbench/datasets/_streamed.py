"""Datasets that are read from files during training. Not a dataset by itself."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.datasets._augment import AlsoRandAugment, RandAugment, erased
from kdbench.datasets._base import Data, Dataset, Subset, left_of, normalised, to_device
from kdbench.datasets._files import choose
from kdbench.datasets._reading import Decoding, Reader, StoredImages, Transform, Wanted, read_ahead
from kdbench.datasets._views import CentreCrop, RandomResizedCrop, Seen
from kdbench.errors import DataError


class ReadAhead(Data):
    """Images that are read when needed, in this process or by others that read ahead. A batch depends only on (index, views)."""

    readers: dict[str, Reader]
    """Of each split."""
    device: torch.device
    workers: int = 0

    def made(self, split: str, index: np.ndarray, views: np.ndarray | None, pixels: Tensor) -> tuple[Any, Any]:
        """The batch of what a reader read."""
        raise NotImplementedError

    def batch(self, split: str, index: np.ndarray, views: np.ndarray | None = None) -> tuple[Any, Any]:
        return self.made(split, index, views, self.readers[split].read(index, views))

    def batches(self, split: str, wanted: Iterable[Wanted]) -> Generator[tuple[Any, Any], None, None]:
        listed = list(wanted)
        if not (self.workers and listed and self.from_files):
            yield from super().batches(split, listed)
            return
        with closing(read_ahead(self.readers[split], listed, self.workers, self.device.type == "cuda")) as ahead:
            for (index, views), pixels in zip(listed, ahead, strict=True):
                yield self.made(split, index, views, pixels)

    def read_with(self, processes: int) -> None:
        self.workers = processes

    def reading_rates(self, index: np.ndarray, views: np.ndarray) -> dict[str, float]:
        return self.readers["train"].rates(index, views) if self.from_files else {}


@dataclass(eq=False)
class StreamedData(ReadAhead):
    """Images that are decoded when needed. A view is a 64-bit number, from which an image's random crop and flip follow, and the seeds of
    RandAugment and of random erasing.

    `files` are those of each split, in canonical order; `seen` is the transform for training, `plain` for evaluation.
    """

    files: dict[str, StoredImages]
    n_classes: int
    input_shape: tuple[int, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seen: Seen
    plain: Transform
    device: torch.device = torch.device("cpu")
    decoding: Decoding = Decoding()
    notes: tuple[str, ...] = ()
    workers: int = 0
    from_files: bool = True
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        self.labels = {split: torch.as_tensor(files.labels, device=self.device) for split, files in self.files.items()}
        self.readers = {split: Reader(files, self.input_shape, self.plain, self.seen, self.decoding) for split, files in self.files.items()}

    def size(self, split: str) -> int:
        return len(self.files[split]) if split in self.files else 0

    def targets(self, split: str) -> Tensor:
        return self.labels[split]

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        return rng.bit_generator.random_raw(self.size("train"))

    def augmented(self, rand_augment: str | None, random_erasing: float) -> StreamedData:
        seen = self.seen.first if isinstance(self.seen, AlsoRandAugment) else self.seen
        if rand_augment is not None:
            seen = AlsoRandAugment(seen, RandAugment(rand_augment, min(self.input_shape[1:]), self.mean))
        return replace(self, seen=seen, random_erasing=random_erasing)

    def to(self, device: torch.device) -> StreamedData:
        return replace(self, device=device)

    def made(self, split: str, index: np.ndarray, views: np.ndarray | None, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels are copied to the device as bytes and normalised there, which needs a quarter of the bandwidth."""
        inputs = normalised(pixels.to(self.device, non_blocking=True), self.mean, self.std)
        if self.random_erasing and views is not None:
            inputs = erased(inputs, views, self.random_erasing)
        return inputs, self.labels[split][to_device(index, self.device)]


class Streamed(Dataset):
    """A dataset of images of any size that are read during training: the options that all such datasets have."""

    version = 2
    classes: int
    train_images: int | None
    orientation: Any
    transparency: Any

    def _keep_pixels(self, size: int, scale: Any, ratio: Any, flip: bool, crop_pct: float, interpolation: str, mean: Any, std: Any) -> None:
        """Check and keep what makes pixels of an image. Raises ValueError."""
        if size < 1 or not 0 < crop_pct <= 1:
            raise ValueError("these options must have size at least 1, crop_pct within (0, 1]")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or min(std) <= 0:
            raise ValueError("scale is (least, most) of the area within (0, 1], ratio (least, most) of breadth to height, std positive")
        self.size, self.scale, self.ratio, self.flip = size, tuple(scale), tuple(ratio), flip
        self.crop_pct, self.interpolation, self.mean, self.std = crop_pct, interpolation, tuple(mean), tuple(std)
        self.input_shape, self.normalisation = (3, size, size), (self.mean, self.std)

    def _keep_images(self, classes: int, train_images: int | None, subset: Subset | None, validation: float, split_seed: int) -> None:
        """Check and keep which images there are. Raises ValueError."""
        if classes < 2 or (train_images is not None and train_images < classes):
            raise ValueError("classes must be at least 2, and train_images at least one a class")
        self.classes, self.train_images = classes, train_images
        self.subset = Subset.of(subset, classes, None)
        self.n_classes = self.subset.classes or classes
        self._keep(validation, split_seed)

    @property
    def n_train(self) -> int | None:  # type: ignore[override]
        if self.subset.per_class is not None:
            return self.subset.n_train(self.n_classes, self.subset.per_class, self.validation)
        pool = None if self.subset.classes or self.subset.imbalance else self.train_images
        return None if pool is None else left_of(pool, self.validation)

    def _choose(self, keys: Sequence[bytes], pool: StoredImages, names: list[str]) -> dict[str, np.ndarray]:
        """The positions of `train` and, if images are held out, of `val` in the training images, whose canonical order `keys` gives."""
        train, val = choose(keys, pool.labels, names, self.subset, self.validation, self.split_seed)
        return {"train": train} if val is None else {"train": train, "val": val}

    def _check_count(self, pool: StoredImages, where: str) -> None:
        """Raises DataError if `where` does not hold the declared number of training images."""
        if self.n_classes == self.classes and self.train_images not in (None, len(pool)):
            raise DataError(f"{where} holds {len(pool)} training images, and {self.train_images} were declared")

    def _data(self, files: dict[str, StoredImages], fingerprint: str, notes: tuple[str, ...] = ()) -> StreamedData:
        seen = RandomResizedCrop(self.size, self.scale, self.ratio, self.flip, self.interpolation)
        shown = self.input_shape, fingerprint, self.mean, self.std, seen, CentreCrop(self.size, self.crop_pct, self.interpolation)
        return StreamedData(files, self.n_classes, *shown, decoding=Decoding(self.orientation, self.transparency), notes=notes)
