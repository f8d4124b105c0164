from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from kdbench.datasets._base import Dataset, Subset, checked_seed, checked_share, left_of
from kdbench.datasets._memory import ImageData, Images, canonical, parted

POOL = 898
LEAST_CLASS = 80


class Digits(Dataset):
    """1797 handwritten digits of 8x8 pixels, embedded in scikit-learn: real images that need no download.

    Half of the images (chosen by their content) are the test set. `per_class` keeps so many training images of each class;
    `validation` holds out that share of what is left; `padding` shifts each image by up to so many pixels while training.
    Source: the test part of the UCI optical recognition of handwritten digits (Alpaydin and Kaynak 1998), as scikit-learn ships it.
    """

    def __init__(self, *, per_class: int | None = None, validation: float = 0.0, split_seed: int = 0, padding: int = 1):
        if per_class is not None and not 1 <= per_class <= LEAST_CLASS:
            raise ValueError(f"per_class must be between 1 and {LEAST_CLASS} (the smallest class has no more), not {per_class}")
        if not 0 <= padding < 8:
            raise ValueError(f"padding must be between 0 and 7 pixels, not {padding}")
        self.per_class = per_class
        self.validation = checked_share(validation)
        self.split_seed = checked_seed(split_seed)
        self.padding = padding

    n_classes = 10
    input_shape = (1, 8, 8)
    normalisation = ((0.3053,), (0.3760,))  # of pixels between 0 and 1, which are 16 shades here

    @property
    def n_train(self) -> int:
        return left_of(POOL if self.per_class is None else 10 * self.per_class, self.validation)

    def load(self, folder: Path) -> ImageData:
        images, digests = canonical(self.read())
        chosen = np.arange(0, 2 * POOL, 2)
        pool, test = images.take(chosen), images.take(np.setdiff1d(np.arange(len(images)), chosen))
        return ImageData(
            **parted(pool, test, Subset(per_class=self.per_class), self.validation, self.split_seed),  # type: ignore[arg-type]
            n_classes=10,
            fingerprint=hashlib.sha256(b"".join(digests)).hexdigest()[:16],
            mean=self.normalisation[0],
            std=self.normalisation[1],
            padding=self.padding,
            white=16.0,
        )

    def read(self) -> Images:
        """All images as they come, before they are put in order."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.as_tensor(digits.images.astype(np.uint8))[:, None]
        return Images(pixels, torch.as_tensor(digits.target, dtype=torch.int64))
