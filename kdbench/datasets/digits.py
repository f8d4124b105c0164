from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch

from kdbench.datasets._base import Dataset, Subset, left_of
from kdbench.datasets._memory import ImageData, Images, canonical, in_memory, parted

POOL = 898
LEAST_CLASS = 80


class Digits(Dataset):
    """1797 handwritten digits of 8x8 pixels, included in scikit-learn: real images that need no download.

    Half of the images (selected by their content) are the test set. `per_class` limits the training images of each class; `imbalance`
    is that of `subset` of other datasets; `validation` is the share of held-out training images; `padding` is the largest random shift
    of a training image, in pixels.
    Source: the test part of the UCI optical recognition of handwritten digits (Alpaydin and Kaynak 1998), as scikit-learn ships it.
    """

    added = {"imbalance": None}

    def __init__(
        self,
        *,
        per_class: int | None = None,
        imbalance: float | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
        padding: int = 1,
    ):
        if per_class is not None and not 1 <= per_class <= LEAST_CLASS:
            raise ValueError(f"per_class must be between 1 and {LEAST_CLASS} (the smallest class has no more), not {per_class}")
        self.subset = Subset(per_class=per_class, imbalance=imbalance)
        self.subset.check_imbalance(most := per_class or LEAST_CLASS)
        self.per_class, self.imbalance = per_class, imbalance
        self._keep(validation, split_seed, padding, flip=False)
        whole = per_class is None and imbalance is None
        self.n_train = left_of(POOL, validation) if whole else self.subset.n_train(10, most, validation)

    n_classes = 10
    input_shape = (1, 8, 8)
    normalisation = ((0.3053,), (0.3760,))  # of pixels between 0 and 1, which are 16 shades here

    def load(self, folder: Path) -> ImageData:
        images, digests = canonical(self.read())
        chosen = np.arange(0, 2 * POOL, 2)
        pool, test = images.take(chosen), images.take(np.setdiff1d(np.arange(len(images)), chosen))
        parts = parted(pool, test, self.subset, self.validation, self.split_seed)
        return in_memory(self, parts, hashlib.sha256(b"".join(digests)).hexdigest()[:16], flip=False, white=16.0)

    def read(self) -> Images:
        """All images in the order of the file."""
        # The file alone: scikit-learn takes a second to import, in every worker.
        package = importlib.util.find_spec("sklearn")
        assert package and package.submodule_search_locations
        rows = np.loadtxt(
            Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64
        )
        return Images(torch.as_tensor(rows[:, :-1].reshape(-1, 1, 8, 8), dtype=torch.uint8), torch.as_tensor(rows[:, -1]))
