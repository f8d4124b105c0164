"""Datasets that are kept in memory: images in canonical order, subsets and held-out parts chosen by content, and finite views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdbench.datasets._base import Data, Subset, normalised
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


def first_per_class(labels: Tensor, per_class: int, names: list[str] | None = None) -> np.ndarray:
    """Positions of the first `per_class` images of each class, in canonical order.

    Raises:
        DataError: a class has fewer.
    """
    chosen = []
    for label in labels.unique().tolist():
        places = torch.nonzero(labels == label).flatten()
        if len(places) < per_class:
            raise DataError(f"class {names[label] if names else label} has {len(places)} training images, and {per_class} were asked for")
        chosen.append(places[:per_class])
    return torch.cat(chosen).sort().values.numpy()


def split_off(images: Images, share: float, split_seed: int) -> tuple[Images, Images]:
    """(the rest, a share held out), chosen by a hash of seed and content: the same images whatever the order of the copy."""
    keys = [
        hashlib.sha256(split_seed.to_bytes(8, "little") + pixels.tobytes() + bytes([int(label) % 256])).digest()
        for pixels, label in zip(images.pixels.numpy(), images.labels.tolist(), strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    held = round(len(order) * share)
    if not 0 < held < len(order):
        raise DataError(f"a validation share of {share} of {len(order)} images leaves one side empty")
    return images.take(np.array(sorted(order[held:]))), images.take(np.array(sorted(order[:held])))


def parted(train: Images, test: Images, subset: Subset, validation: float, split_seed: int) -> dict[str, Images | None]:
    """`train`, `val` and `test` of what was asked, each in canonical order. The two given are the whole of a dataset, in it."""
    if subset.classes is not None:
        train, test = (images.take(np.flatnonzero(images.labels.numpy() < subset.classes)) for images in (train, test))
    if subset.per_class is not None:
        train = train.take(first_per_class(train.labels, subset.per_class))
    val = None
    if validation:
        train, val = split_off(train, validation, split_seed)
    return {"train": train, "val": val, "test": test}


def fingerprint_of(**digests: list[bytes]) -> str:
    """Of the whole content of a dataset, whatever its order: `digests` are those of each split."""
    whole = hashlib.sha256()
    for split in sorted(digests):
        whole.update(split.encode() + b"".join(sorted(digests[split])))
    return whole.hexdigest()[:16]


@dataclass(eq=False)
class ImageData(Data):
    """Images in memory, with the finite views of a padded random crop and, if asked, a flip.

    With padding p there are (2p+1)^2 crops, times 2 with the flip; a view is one number. Pixels are divided by `white`, then
    normalised with `mean` and `std` per channel.
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
    device: torch.device = torch.device("cpu")

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.train.pixels.shape[1:])

    @property
    def n_views(self) -> int:
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    def size(self, split: str) -> int:
        images = getattr(self, split)
        return 0 if images is None else len(images)

    def targets(self, split: str) -> Tensor:
        return getattr(self, split).labels

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        # Of raw draws, whose stream no release of NumPy changes; the bias of the remainder is below 1e-16.
        return (rng.bit_generator.random_raw(len(self.train)) % np.uint64(self.n_views)).astype(np.int64)

    def batch(self, split: str, index: np.ndarray, views: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        images: Images = getattr(self, split)
        chosen = torch.as_tensor(index, device=self.device)
        pixels = images.pixels[chosen]
        if views is not None and self.n_views > 1:
            pixels = self._seen(pixels, torch.as_tensor(views, device=self.device))
        return normalised(pixels, self.mean, self.std, self.white), images.labels[chosen]

    def _seen(self, pixels: Tensor, views: Tensor) -> Tensor:
        """Each image in its own view: crops by gathering, so that one call serves the whole batch."""
        n, n_channels, height, breadth = pixels.shape
        side = 2 * self.padding + 1
        crop = views % side**2
        rows = torch.arange(height, device=self.device) + (crop // side)[:, None]
        columns = torch.arange(breadth, device=self.device) + (crop % side)[:, None]
        if self.flip:
            columns = torch.where((views >= side**2)[:, None], columns.flip(1), columns)
        padded = torch.nn.functional.pad(pixels, [self.padding] * 4)
        # All four axes are indexed, so that the result lies in memory as n x c x h x w: a permuted one-channel image can pass for
        # channels-last, and the layout of the inputs decides which kernels run.
        images = torch.arange(n, device=self.device)[:, None, None, None]
        channels = torch.arange(n_channels, device=self.device)[:, None, None]
        return padded[images, channels, rows[:, None, :, None], columns[:, None, None, :]]

    def to(self, device: torch.device) -> ImageData:
        def moved(images: Images) -> Images:
            return Images(images.pixels.to(device), images.labels.to(device))

        return replace(self, device=device, train=moved(self.train), val=moved(self.val) if self.val else None, test=moved(self.test))
