from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

from kdbench.datasets._base import Subset
from kdbench.datasets.folder import Folder
from kdbench.errors import DataError


class Imagenet(Folder):
    """ImageNet-1k (ILSVRC 2012): 1,281,167 training and 50,000 validation images, 1000 classes; the validation images are the test set.

    Lies in the data folder as imagenet/train/WNID/*.JPEG and imagenet/val/WNID/*.JPEG. All images are counted unless a subset of
    classes is asked for. Labels are those of the literature: the WordNet ids, sorted. Training sees a random resized crop and a flip,
    evaluation a resized centre crop; options as in `folder`.
    Source: Russakovsky et al. 2015; transforms of timm, which are here those of torchvision's reference (256 -> 224, bilinear).
    """

    all_classes: ClassVar[int] = 1000
    all_train_images: ClassVar[int] = 1_281_167
    test_images = 50_000

    def __init__(
        self,
        *,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        crop_pct: float = 0.875,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        super().__init__(
            folder="imagenet",
            classes=self.all_classes,
            train_images=self.all_train_images,
            size=size,
            scale=scale,
            ratio=ratio,
            flip=flip,
            crop_pct=crop_pct,
            interpolation=interpolation,
            subset=subset,
            validation=validation,
            split_seed=split_seed,
        )

    def how_to_get_it(self) -> str:
        return (
            "Register at https://image-net.org, download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, unpack them into the data "
            "folder as imagenet/train/WNID/*.JPEG and imagenet/val/WNID/*.JPEG (torchvision.datasets.ImageNet does both; the validation "
            "archive is flat, and valprep.sh sorts it into folders). Another data folder is named by --data or $KDBENCH_DATA."
        )

    def class_names(self, home: Path) -> list[str]:
        names = super().class_names(home)
        for name in names:
            if not re.fullmatch(r"n\d{8}", name):
                raise DataError(
                    f"{(home / 'train' / name).absolute()}: ImageNet's classes are folders named by their WordNet id, as n01440764; under "
                    "other names, labels would not be those of the literature"
                )
        return names
