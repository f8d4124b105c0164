"""Random images of any size: the times of a training do not depend on what images show."""

from __future__ import annotations

from pathlib import Path

import torch

from kdbench.datasets._base import Dataset
from kdbench.datasets._memory import ImageData, Images, canonical, fingerprint_of, in_memory


class Noise(Dataset):
    """`images` random training images and a quarter as many test images with random labels; by default of the size of CIFAR-100's, with its
    augmentation: crops after a padding of 4, and flips."""

    def __init__(self, *, images: int = 1024, classes: int = 100, channels: int = 3, side: int = 32, padding: int = 4, flip: bool = True):
        self.images, self.classes, self.channels, self.side, self.flip = images, classes, channels, side, flip
        self.input_shape, self.n_classes, self.n_train = (channels, side, side), classes, images
        self.normalisation = ((0.5,) * channels, (0.25,) * channels)
        self._keep(0.0, 0, padding)

    def load(self, folder: Path) -> ImageData:
        draws = torch.Generator().manual_seed(0)
        read = {}
        for split, count in (("train", self.images), ("test", max(self.images // 4, 1))):
            pixels = torch.randint(256, (count, *self.input_shape), dtype=torch.uint8, generator=draws)
            read[split] = canonical(Images(pixels, torch.randint(self.classes, (count,), generator=draws)))
        found = fingerprint_of(**{split: digests for split, (_, digests) in read.items()})
        return in_memory(self, {split: images for split, (images, _) in read.items()} | {"val": None}, found, self.flip)
