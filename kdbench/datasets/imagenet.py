from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from kdbench.datasets._base import Subset
from kdbench.datasets._files import ClassFolders
from kdbench.datasets._packed import Inside
from kdbench.datasets.folder import Folder
from kdbench.errors import DataError


class Imagenet(Folder):
    """ImageNet-1k (ILSVRC 2012): 1,281,167 training and 50,000 validation images (here the test set), 1000 classes.

    Stored in the data folder as imagenet/train/WNID/*.JPEG and imagenet/val/WNID/*.JPEG. The number of images is checked unless
    `subset` selects classes. Labels are the usual ones: the positions of the sorted WordNet ids. Transforms and options as in `folder`,
    but EXIF orientation and transparency are ignored, as they are by the loaders of published results (torchvision, timm). Instead of
    the folder there may be imagenet.pack, imagenet.tar or, with `resized: 256`, imagenet-256.pack.
    Source: Russakovsky et al. 2015; transforms of timm, which are here those of torchvision's reference (256 -> 224, bilinear).
    """

    added: ClassVar[Mapping[str, Any]] = {"resized": None}
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
        resized: int | None = None,
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        seen: dict[str, Any] = {"size": size, "scale": scale, "ratio": ratio, "flip": flip}
        seen |= {"crop_pct": crop_pct, "interpolation": interpolation}
        chosen: dict[str, Any] = {"resized": resized, "subset": subset, "validation": validation, "split_seed": split_seed}
        # The loaders of published results ignore EXIF data and transparency.
        pixels: dict[str, Any] = {"orientation": "ignored", "transparency": "dropped"}
        super().__init__(folder="imagenet", classes=self.all_classes, train_images=self.all_train_images, **seen, **pixels, **chosen)

    def how_to_get_it(self) -> str:
        return (
            "Register at https://image-net.org, download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, unpack them into the data "
            "folder as imagenet/train/WNID/*.JPEG and imagenet/val/WNID/*.JPEG (torchvision.datasets.ImageNet does both; the validation "
            "archive is flat, and valprep.sh sorts it into folders), or as imagenet.pack (`kdbench pack`). --data or $KDBENCH_DATA names "
            "another data folder."
        )

    def class_folders(self, home: Path | Inside) -> tuple[list[str], dict[str, ClassFolders]]:
        names, found = super().class_folders(home)
        for name in names:
            if not re.fullmatch(r"n\d{8}", name):
                raise DataError(
                    f"{(home / 'train' / name).absolute()}: ImageNet's folders must be named by WordNet id, as n01440764; with other "
                    "names, labels would differ from the usual ones"
                )
        return names, found
