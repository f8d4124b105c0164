"""Datasets in memory: images in canonical order, subsets and held-out images selected by content, and a finite number of views."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdbench.datasets._augment import RandAugment, erased, own_draws
from kdbench.datasets._base import Data, Dataset, Subset, held_of, n_crops, normalised, to_device
from kdbench.errors import DataError


@dataclass(frozen=True)
class Images:
    """n images (uint8, n x c x h x w) with their labels (int64), in canonical order."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Images:
        chosen = torch.as_tensor(index)
        return Images(self.pixels[chosen], self.labels[chosen])


def canonical(images: Images) -> tuple[Images, list[bytes]]:
    """The images ordered by the hash of their content (pixels and label), and the hashes."""
    shape = str(tuple(images.pixels.shape[1:])).encode()
    digests = [
        hashlib.sha256(shape + pixels.tobytes() + int(label).to_bytes(8, "little")).digest()
        for pixels, label in zip(images.pixels.numpy(), images.labels.tolist(), strict=True)
    ]
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__))
    return images.take(order), [digests[place] for place in order]


def kept(labels: Tensor, subset: Subset, names: list[str] | None = None) -> np.ndarray:
    """Positions of the images that a subset keeps of its classes, which all have images: the first of each class in canonical order.
    Raises DataError if a class has fewer than are asked for."""
    if subset.per_class is None and subset.imbalance is None:
        return np.arange(len(labels))
    there = torch.bincount(labels)
    most = subset.per_class or int(there.min())
    try:
        subset.check_imbalance(most)
    except ValueError as error:
        raise DataError(str(error)) from None
    chosen = []
    for label, count in enumerate(subset.counts(len(there), most)):
        if there[label] < count:
            raise DataError(f"class {names[label] if names else label} has {there[label]} training images, and {count} were asked for")
        chosen.append(torch.nonzero(labels == label).flatten()[:count])
    return torch.cat(chosen).sort().values.numpy()


def split_off(
    contents: Iterable[bytes], share: float, split_seed: int, labels: np.ndarray | None = None, strata: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of (the rest, a held-out share), each in increasing order, selected by a hash of the seed and of an image's content; with
    `labels`, the share of each class; with `strata`, the share of all, of which each stratum has its part. Raises DataError if one of the
    two is empty."""
    hashes = [hashlib.sha256(split_seed.to_bytes(8, "little") + content).digest() for content in contents]
    order = np.array(sorted(range(len(hashes)), key=hashes.__getitem__))
    count = round(len(order) * share)
    if strata is not None:
        by_stratum = order[np.argsort(strata[order], kind="stable")]
        held = by_stratum[(2 * np.arange(count) + 1) * len(order) // (2 * max(count, 1))]  # evenly spaced
    elif labels is None:
        held = order[:count]
    else:
        by_class = (order[labels[order] == label] for label in np.unique(labels))
        held = np.concatenate([mine[: held_of(len(mine), share)] for mine in by_class])
    if not 0 < len(held) < len(order):
        raise DataError(f"a validation share of {share} of {len(order)} images leaves one side empty")
    return np.setdiff1d(order, held), np.sort(held)


def parted(train: Images, test: Images, subset: Subset, validation: float, split_seed: int) -> dict[str, Images | None]:
    """`train`, `val` and `test` with these options, each in canonical order, like the two whole splits given."""
    if subset.classes is not None:
        train, test = (images.take(np.flatnonzero(images.labels.numpy() < subset.classes)) for images in (train, test))
    train, val = train.take(kept(train.labels, subset)), None
    if validation:
        labels = train.labels.numpy()
        contents = (pixels.tobytes() + bytes([label % 256]) for pixels, label in zip(train.pixels.numpy(), labels.tolist(), strict=True))
        parts = split_off(contents, validation, split_seed, labels if subset.imbalance else None)
        train, val = (train.take(index) for index in parts)
    return {"train": train, "val": val, "test": test}


def in_memory(
    dataset: Dataset, parts: dict[str, Images | None], fingerprint: str, flip: bool, white: float = 255.0, notes: tuple[str, ...] = ()
) -> ImageData:
    """The splits of a dataset, as its options augment and normalise them."""
    options = {"n_classes": dataset.n_classes, "padding": dataset.padding, "flip": flip, "white": white}
    mean, std = dataset.normalisation or ((), ())
    return ImageData(**parts, **options, fingerprint=fingerprint, mean=mean, std=std, notes=notes)  # type: ignore[arg-type]


def fingerprint_of(**digests: list[bytes]) -> str:
    """The fingerprint of a whole dataset from the digests of the images of each split, in any order."""
    whole = hashlib.sha256()
    for split in sorted(digests):
        whole.update(split.encode() + b"".join(sorted(digests[split])))
    return whole.hexdigest()[:16]


@dataclass(eq=False)
class ImageData(Data):
    """Images in memory. A view is the number of one of the (2 padding + 1)^2 crops of the padded image, times 2 with `flip`. Pixels are
    divided by `white`, then normalised with `mean` and `std` per channel.

    With `rand_augment` or `random_erasing` a view is a 64-bit number, the seed of an image's draws; its remainder is the number of the same
    crop as without them. RandAugment gets pixels of 0 to 255, to which others are scaled and rounded.
    """

    train: Images
    test: Images
    val: Images | None
    n_classes: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False
    white: float = 255.0
    notes: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")
    rand_augment: str | None = None
    random_erasing: float = 0.0

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.train.pixels.shape[1:])

    @property
    def n_crops(self) -> int:
        return n_crops(self.padding, self.flip)

    @property
    def n_views(self) -> int | None:  # type: ignore[override]
        return None if self.rand_augment or self.random_erasing else self.n_crops

    def size(self, split: str) -> int:
        images = getattr(self, split)
        return 0 if images is None else len(images)

    def targets(self, split: str) -> Tensor:
        return getattr(self, split).labels

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        # Raw draws are the same in every release of NumPy; the bias of the remainder is below 1e-16.
        raw = rng.bit_generator.random_raw(len(self.train))
        return raw if self.rand_augment or self.random_erasing else self._crops(raw)

    def _crops(self, views: np.ndarray) -> np.ndarray:
        return (views.astype(np.uint64) % np.uint64(self.n_crops)).astype(np.int64)

    def batch(self, split: str, index: np.ndarray, views: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        images: Images = getattr(self, split)
        chosen = to_device(index, self.device)
        pixels, white = images.pixels[chosen], self.white
        if views is not None and self.n_crops > 1:
            pixels = self._seen(pixels, to_device(self._crops(views), self.device))
        if views is not None and self.rand_augment:
            pixels, white = self._rand_augmented(pixels, views), 255.0
        inputs = normalised(pixels, self.mean, self.std, white)
        if views is not None and self.random_erasing:
            inputs = erased(inputs, views, self.random_erasing)
        return inputs, images.labels[chosen]

    def augmented(self, rand_augment: str | None, random_erasing: float) -> ImageData:
        return replace(self, rand_augment=rand_augment, random_erasing=random_erasing)

    def _rand_augmented(self, pixels: Tensor, views: np.ndarray) -> Tensor:
        assert self.rand_augment
        change = RandAugment(self.rand_augment, min(pixels.shape[2:]), self.mean)
        pixels = pixels.cpu() if self.white == 255 else (pixels.cpu() * (255 / self.white)).round().byte()
        with own_draws():
            for row, view in enumerate(views.tolist()):
                pixels[row] = change(pixels[row], view)
        return pixels.to(self.device)

    def _seen(self, pixels: Tensor, views: Tensor) -> Tensor:
        """Each image in its own view, by one indexing operation for the whole batch."""
        n, n_channels, height, breadth = pixels.shape
        side = 2 * self.padding + 1
        crop = views % side**2
        rows = torch.arange(height, device=self.device) + (crop // side)[:, None]
        columns = torch.arange(breadth, device=self.device) + (crop % side)[:, None]
        if self.flip:
            columns = torch.where((views >= side**2)[:, None], columns.flip(1), columns)
        padded = torch.nn.functional.pad(pixels, [self.padding] * 4)
        # All four axes are indexed, so that the memory layout is n x c x h x w: PyTorch can take a permuted one-channel image for
        # channels-last, and selects kernels by layout.
        images = torch.arange(n, device=self.device)[:, None, None, None]
        channels = torch.arange(n_channels, device=self.device)[:, None, None]
        return padded[images, channels, rows[:, None, :, None], columns[:, None, None, :]]

    def to(self, device: torch.device) -> ImageData:
        def moved(images: Images) -> Images:
            return Images(images.pixels.to(device), images.labels.to(device))

        return replace(self, device=device, train=moved(self.train), val=moved(self.val) if self.val else None, test=moved(self.test))
