from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from kdbench.datasets._base import Dataset, Subset, checked_seed, checked_share, left_of
from kdbench.datasets._files import Files, checked_folder, choose, folders_in, listed
from kdbench.datasets._streamed import StreamedData
from kdbench.errors import DataError
from kdbench.through_timm import make_transforms


class Folder(Dataset):
    """Images of any size, one folder a class: FOLDER/train/CLASS/IMAGE and FOLDER/val/CLASS/IMAGE, read while training.

    `folder` is a name inside the data folder. The second split is the test set; it lies in `test_folder`, 'val' or 'test'. Labels are
    the places of the classes' names when sorted. Training sees a random resized crop (`scale`, `ratio`) and a flip; evaluation
    resizes the shorter side to floor(size / crop_pct) and crops the centre. Grey and CMYK images are converted to RGB. `train_images`
    says how many there are, and is held against what lies there (a subset of classes lists these alone). `subset` keeps the first
    classes and of each so many training images, by relative path; `validation` holds out that share of the training images.
    Source: transforms and defaults of timm.data.create_transform (timm 1.0), without its colour jitter; ImageNet's mean and sd.
    """

    test_images: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        folder: str,
        classes: int,
        train_images: int | None = None,
        test_folder: Literal["val", "test"] = "val",
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        crop_pct: float = 0.875,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        if classes < 2 or size < 1 or not 0 < crop_pct <= 1 or (train_images is not None and train_images < classes):
            raise ValueError("classes must be at least 2, size at least 1, crop_pct within (0, 1], train_images at least one a class")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or min(std) <= 0:
            raise ValueError("scale is (least, most) of the area within (0, 1], ratio (least, most) of breadth to height, std positive")
        self.folder, self.classes, self.train_images, self.test_folder = checked_folder(folder), classes, train_images, test_folder
        self.size, self.scale, self.ratio, self.flip = size, tuple(scale), tuple(ratio), flip
        self.crop_pct, self.interpolation, self.mean, self.std = crop_pct, interpolation, tuple(mean), tuple(std)
        self.subset = Subset.of(subset, classes, None)
        self.validation, self.split_seed = checked_share(validation), checked_seed(split_seed)

    @property
    def n_classes(self) -> int:
        return self.subset.classes or self.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        return 3, self.size, self.size

    @property
    def n_train(self) -> int | None:
        pool = self.train_images if self.n_classes == self.classes else None
        if self.subset.per_class is not None:
            pool = self.n_classes * self.subset.per_class
        return None if pool is None else left_of(pool, self.validation)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std

    def load(self, folder: Path) -> StreamedData:
        home = Path(folder) / self.folder
        names = self.class_names(home)[: self.n_classes]
        splits = {"train": "train", "test": self.test_folder}
        files = {split: listed(home, [f"{lies}/{name}" for name in names]) for split, lies in splits.items()}
        self._counted(home, {split: len(found) for split, found in files.items()})
        found = _fingerprint(files)
        pool = files["train"]
        train, val = choose(pool.paths, pool.labels, names, self.subset, self.validation, self.split_seed)
        files["train"] = pool.take(train)
        if val is not None:
            files["val"] = pool.take(val)
        seen, plain = make_transforms(self.size, self.scale, self.ratio, self.flip, self.crop_pct, self.interpolation)
        return StreamedData(files, self.n_classes, self.input_shape, found, self.mean, self.std, seen, plain)

    def download(self, folder: Path) -> Path:
        raise DataError(f"{self.folder} is nowhere to be downloaded from. {self.how_to_get_it()}")

    def how_to_get_it(self) -> str:
        return (
            f"Its images must lie in the data folder as {self.folder}/train/CLASS/IMAGE and {self.folder}/{self.test_folder}/CLASS/IMAGE "
            "(or the other way: test_folder says where the test images lie); another data folder is named by --data or $KDBENCH_DATA."
        )

    def class_names(self, home: Path) -> list[str]:
        """The classes, sorted.

        Raises:
            DataError: a split is missing, a class is missing from one, or there are not as many as declared.
        """
        found = {}
        for lies in ("train", self.test_folder):
            if not (home / lies).is_dir():
                raise DataError(f"{self.folder} is not there: looked for the folder {(home / lies).absolute()}. {self.how_to_get_it()}")
            found[lies] = folders_in(home / lies)
        train, test = found.values()
        for lies, absent in ((self.test_folder, set(train) - set(test)), ("train", set(test) - set(train))):
            if absent:
                told = ", ".join(sorted(absent)[:5]) + (f" and {len(absent) - 5} others" if len(absent) > 5 else "")
                raise DataError(f"{(home / lies).absolute()} lacks the class {told}, which the other split has. {self.how_to_get_it()}")
        if len(train) != self.classes:
            raise DataError(f"{(home / 'train').absolute()} holds {len(train)} classes, and {self.classes} were declared")
        return train

    def _counted(self, home: Path, found: dict[str, int]) -> None:
        if self.n_classes < self.classes:
            return
        for split, declared in (("train", self.train_images), ("test", self.test_images)):
            if declared not in (None, found[split]):
                where = (home / ("train" if split == "train" else self.test_folder)).absolute()
                raise DataError(f"{where} holds {found[split]} images, and {declared} were declared. {self.how_to_get_it()}")


def _fingerprint(files: dict[str, Files]) -> str:
    """Of the relative paths and the sizes: what can be known of a million images without reading them."""
    whole = hashlib.sha256()
    for split in sorted(files):
        whole.update(split.encode())
        for path, size in zip(files[split].paths.tolist(), files[split].sizes.astype(np.int64).tolist(), strict=True):
            whole.update(path + b"\0%d\0" % size)
    return whole.hexdigest()[:16]
