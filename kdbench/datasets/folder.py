from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from kdbench.datasets._base import Subset
from kdbench.datasets._content import content_of, fingerprint_of_files, shared_images
from kdbench.datasets._files import SUFFIXES, ClassFolders, ImageFiles, checked_folder, class_folders, in_words, listed, notes_on, together
from kdbench.datasets._pack import located
from kdbench.datasets._packed import Inside
from kdbench.datasets._streamed import Streamed, StreamedData
from kdbench.errors import DataError


class Folder(Streamed):
    """Images of any size in one folder per class: FOLDER/train/CLASS/IMAGE and FOLDER/val/CLASS/IMAGE, read during training.

    `folder` is a name inside the data folder. `test_folder` ('val' or 'test') holds the test images. Labels are the positions of the
    sorted class names. Training uses a random resized crop (`scale`, `ratio`) and a random flip; evaluation resizes the shorter side to
    floor(size / crop_pct) and crops the centre. Grey and CMYK images are converted to RGB. `train_images` is the expected number of
    training images; it is checked unless `subset` selects classes. `subset` keeps the first classes and a number of training images per
    class, by relative path; `validation` is the share of held-out training images.
    `orientation: exif` turns images as their EXIF data say; `transparency: white` composes transparent pixels onto white, `dropped` uses
    the colour stored under them. `subfolders: read` also reads images in folders inside a class's folder, which are refused otherwise.
    Files that are no images are passed over; `run` and `check` print how many.
    Instead of the folder there may be FOLDER.pack, written by `kdbench pack`, or a plain FOLDER.tar. `resized` is the length to which
    `kdbench pack --resize` reduced the shorter sides; the images are then read from FOLDER-LENGTH.pack.
    Source: transforms and defaults of timm.data.create_transform (timm 1.0), without its colour jitter; ImageNet's mean and sd.
    """

    added: ClassVar[Mapping[str, Any]] = {"orientation": "ignored", "transparency": "dropped", "subfolders": "refused", "resized": None}
    only: ClassVar[frozenset[str] | None] = None
    """The names of the classes, where folders of other names may lie beside theirs."""

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
        orientation: Literal["exif", "ignored"] = "exif",
        transparency: Literal["white", "dropped"] = "white",
        subfolders: Literal["read", "refused"] = "refused",
        resized: int | None = None,
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        self.folder, self.test_folder = checked_folder(folder), test_folder
        self.orientation, self.transparency, self.subfolders, self.resized = orientation, transparency, subfolders, resized
        if resized is not None and resized < 1:
            raise ValueError(f"resized is a number of pixels, not {resized}")
        self._keep_pixels(size, scale, ratio, flip, crop_pct, interpolation, mean, std)
        self._keep_images(classes, train_images, subset, validation, split_seed)

    def load(self, folder: Path) -> StreamedData:
        home, where = located(Path(folder), self.folder, self.resized)
        names, found = self.class_folders(home)
        names = names[: self.n_classes]
        files, passed = {}, sum((one.passed for one in found.values()), Counter[str]())
        passed += (isinstance(home, Inside) and home.archive.passed) or Counter[str]()
        for split, lies in self.splits.items():
            places = [(f"{lies}/{one}", label) for label, name in enumerate(names) for one in found[split].by_name[name]]
            files[split], others = listed(home, *zip(*places, strict=True), subfolders=self.subfolders == "read")
            passed += others
        files["train"].check_sizes(files["test"])
        self._check_counts(home, files, passed)
        content = content_of(files)
        fingerprint = fingerprint_of_files(files, content)
        pool = files["train"]
        chosen = self._choose(pool.keys(), pool, names)
        if content and (wrong := [*content.wrong_in("train", *chosen.values()), *content.wrong_in("test", np.arange(len(files["test"])))]):
            raise together(wrong)
        parts = {"test": files["test"], **{split: pool.take(index) for split, index in chosen.items()}}
        notes = (*where, *notes_on(passed), *shared_images(parts, content and content.digests_with(chosen)))
        return self._data(parts, fingerprint, notes)

    @property
    def splits(self) -> dict[str, str]:
        """The folder of each split."""
        return {"train": "train", "test": self.test_folder}

    def _check_counts(self, home: Path | Inside, files: dict[str, ImageFiles], passed: Counter[str]) -> None:
        for split, declared in (("train", self.train_images), ("test", self.test_images)):
            if self.n_classes == self.classes and declared not in (None, count := len(files[split])):
                beside = f" (passed over: {in_words(passed)})" if passed else ""
                where = (home / self.splits[split]).absolute()
                raise DataError(f"{where} holds {count} images, and {declared} were declared{beside}. {self.how_to_get_it()}")

    def how_to_get_it(self) -> str:
        return (
            f"Its images must be in the data folder as {self.folder}/train/CLASS/IMAGE and {self.folder}/{self.test_folder}/CLASS/IMAGE "
            f"(the option test_folder sets where the test images are), or as {self.folder}.pack (`kdbench pack`) or {self.folder}.tar; "
            "--data or $KDBENCH_DATA names another data folder."
        )

    def class_folders(self, home: Path | Inside) -> tuple[list[str], dict[str, ClassFolders]]:
        """The classes, sorted, and their folders in each split. Raises DataError if a split, or a class of one, is missing, or their number
        is not the declared one."""
        found = {}
        for split, lies in self.splits.items():
            if not (home / lies).is_dir():
                raise DataError(f"{self.folder} is missing: there is no folder {(home / lies).absolute()}. {self.how_to_get_it()}")
            found[split] = class_folders(home / lies, self.only)
        names = sorted(found["train"].filled | found["test"].filled)
        for split, lies in self.splits.items():
            if absent := [name for name in names if name not in found[split].by_name]:
                message = ", ".join(absent[:5]) + (f" and {len(absent) - 5} others" if len(absent) > 5 else "")
                raise DataError(f"{(home / lies).absolute()} has no class {message}, which the other split has. {self.how_to_get_it()}")
        unused = sorted({*found["train"].empty, *found["test"].empty} - {*names})
        if len(names) != self.classes:
            endings = f"; of these folders none holds an image ({' '.join(SUFFIXES)}): {', '.join(unused[:5])}" if unused else ""
            raise DataError(f"{(home / 'train').absolute()} holds {len(names)} classes, and {self.classes} were declared{endings}")
        for one in found.values():
            one.passed["folders without images"] += len(one.empty - {*names})
        return names, found
