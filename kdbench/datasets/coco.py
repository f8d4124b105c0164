from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from kdbench.datasets._annotations import Annotations, CocoFile, read_coco
from kdbench.datasets._base import left_of
from kdbench.datasets._content import content_of, fingerprint_of_files, shared_images
from kdbench.datasets._files import ImageFiles, checked_folder, on_disk, together
from kdbench.datasets._listing import files_of
from kdbench.datasets._reading import Decoding
from kdbench.datasets._scenes import KEPT_BYTES, Exactly, SceneData, SceneReader, Scenes, ShorterSide
from kdbench.datasets._tables import some
from kdbench.errors import DataError, shown

NO_OBJECTS = {"keep": "are kept", "drop": "are left out"}


class Coco(Scenes):
    """Images with boxes in the layout of MS-COCO: FOLDER/TRAIN/*.jpg, FOLDER/TEST/*.jpg and FOLDER/annotations/instances_*.json.

    `folder` is a name inside the data folder; `train` and `test` name the splits. `classes` is the expected number of categories, and
    `train_images` that of training images (after `empty`); both are checked, the second unless `subset` selects classes. Labels are the
    positions of the categories in the order of their ids, which may have gaps.
    Sizes: the shorter side becomes `min_size` pixels, unless the longer side would exceed `max_size`, which it then has (the rule and the
    integers of torchvision's Resize); or every image becomes `size: [height, breadth]`. With a list of `min_size` each training image has
    one of them at random; evaluation uses the last. Pillow resizes (bilinear, with antialiasing); flips have probability 1/2 each. The
    images of a batch are padded with zeros at right and bottom to a common size, a multiple of 32.
    Training sees boxes cut at the edges of their image, no crowds (`iscrowd`), and no boxes of at most one pixel of breadth or height;
    `empty: drop` leaves out training images without any box that is left. These are counted. The metric has all objects as they are in
    the file; it ignores crowds, and `area` (the box's, where there is none) decides what is small, medium or large. Boxes wholly outside
    of their image, with negative sides or unknown ids, ids or files named twice, missing files, and images of another size than stated
    are errors.
    `subset: {classes: 20, images: 500}` keeps objects of the first classes, and the first training images by path; all test images stay.
    `validation` is the share of held-out training images, a share of each class as far as possible. `orientation` and `transparency` are
    those of `folder`; their defaults are what COCO's own programs do.
    Source: Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014); defaults of the detectors of torchvision.
    """

    def __init__(
        self,
        *,
        folder: str = "coco",
        classes: int = 80,
        train_images: int | None = None,
        train: str = "train2017",
        test: str = "val2017",
        min_size: int | list[int] = 800,
        max_size: int = 1333,
        size: tuple[int, int] | None = None,
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        empty: Literal["keep", "drop"] = "keep",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        orientation: Literal["exif", "ignored"] = "ignored",
        transparency: Literal["white", "dropped"] = "dropped",
        subset: dict[Literal["classes", "images"], int] | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        self.folder, self.empty, self.decoding = checked_folder(folder), empty, Decoding(orientation, transparency)
        self.splits = {"train": checked_folder(train, "train"), "test": checked_folder(test, "test")}
        if train == test:
            raise ValueError(f"train and test are two splits, and both are {train!r}")
        lengths = [min_size] if isinstance(min_size, int) else min_size
        if size is not None and (lengths, max_size) != ([800], 1333):
            raise ValueError("size is the size of every image: leave min_size and max_size out")
        if size is not None and min(size) < 1:
            raise ValueError(f"size is height and breadth in pixels, not {list(size)}")
        if not lengths or len({*lengths}) < len(lengths) or not 1 <= min(lengths) <= max(lengths) <= max_size:
            raise ValueError(f"min_size is between 1 and max_size ({max_size}) pixels, or a list of different lengths, not {min_size}")
        if isinstance(min_size, list) and len(lengths) == 1:
            raise ValueError(f"min_size {min_size} has one length: write {lengths[0]}")
        self._keep_views(
            (Exactly(size),) if size else tuple(ShorterSide(length, max_size) for length in lengths),
            size or (max(lengths), max_size),
            *(horizontal_flip, vertical_flip, mean, std),
        )
        if subset == {}:
            raise ValueError("subset sets neither `classes` nor `images`: leave it out")
        self.subset: dict[str, int] = {**(subset or {})}
        if classes < 1 or (train_images is not None and train_images < 1):
            raise ValueError("classes and train_images must be at least 1")
        for name, there in (("classes", classes), ("images", train_images)):
            if (asked := self.subset.get(name)) is not None and not 1 <= asked < (there or asked + 1):
                raise ValueError(f"subset.{name} must be at least 1 and below {there or 'the number of all'}, not {asked}")
        self.classes, self.train_images = classes, train_images
        self.n_classes = self.subset.get("classes", classes)
        self._keep(validation, split_seed)
        pool = self.subset.get("images", None if "classes" in self.subset else train_images)
        self.n_train = None if pool is None else left_of(pool, validation)

    def load(self, folder: Path) -> SceneData:
        home = Path(folder) / self.folder
        read = {split: self._read(home, name) for split, name in self.splits.items()}
        self._check_categories(read)
        files, known = {}, {}
        for split, file in read.items():
            paths = [f"{self.splits[split]}/{path}" for path in file.paths]
            found = files_of(home, paths, range(len(paths)), str(file.path.absolute()))
            # Its labels are positions in the file of annotations.
            known[split] = file.annotations.take(found.labels)
            files[split] = replace(found, labels=np.zeros(len(found), np.int64))
        files["train"].check_sizes(files["test"])
        content = content_of(files)
        names = tuple(read["train"].categories.values())
        whole = hashlib.sha256("\0".join(names).encode() + known["train"].digest() + known["test"].digest()).hexdigest()
        fingerprint = fingerprint_of_files(files, content, [whole])
        known = {split: one.where(one.labels < self.n_classes) for split, one in known.items()}
        for split, one in known.items():
            if one.crowds.all():  # also where there is none: AP would be no number
                asked = f" of its first {self.n_classes} categories" if "classes" in self.subset else ""
                raise DataError(f"{read[split].path.absolute()} has no boxes{asked} but those of crowds: there is nothing to find")
        pool, notes = self._pool(known["train"], read["train"].path)
        keys = files["train"].keys()
        divided = self._divided([keys[place] for place in pool.tolist()], known["train"].take(pool))
        chosen = {split: pool[index] for split, index in divided.items()}
        if content and (wrong := [*content.wrong_in("train", *chosen.values()), *content.wrong_in("test", np.arange(len(files["test"])))]):
            raise together(wrong)
        parts = {"test": files["test"], **{split: files["train"].take(index) for split, index in chosen.items()}}
        annotations = {"test": known["test"], **{split: known["train"].take(index) for split, index in chosen.items()}}
        readers = self._readers(parts, annotations, read)
        shared = shared_images(parts, content and content.digests_with(chosen))
        return self._data(readers, annotations, names[: self.n_classes], fingerprint, (*notes, *shared))

    def _read(self, home: Path, split: str) -> CocoFile:
        path = on_disk(home, f"annotations/instances_{split}.json")
        for there, kind in ((path, "file"), (on_disk(home, split), "folder")):
            if not there.exists():
                raise DataError(f"{self.folder} is missing: there is no {kind} {there.absolute()}. {self.how_to_get_it()}")
        return read_coco(path)

    def _check_categories(self, read: dict[str, CocoFile]) -> None:
        train, test = (file.categories for file in read.values())
        if train != test:
            differs = sorted(set(train.items()) ^ set(test.items()))
            raise DataError(
                f"{read['train'].path.absolute()} and {read['test'].path.name} have different categories: only one of them has "
                f"{shown(some([f'{number} {name!r}' for number, name in differs]))}. Give both files the same list of `categories`"
            )
        if len(train) != self.classes:
            names = shown(some([*train.values()]))
            found = f"{read['train'].path.absolute()} has {len(train)} categories ({names})"
            raise DataError(f"{found}, and {self.classes} were declared: write `classes: {len(train)}`")

    def _pool(self, known: Annotations, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
        """The images that training and validation may have, and notes on what training does not see of them."""
        trained, counted = known.for_training()
        empty = trained.counts == 0
        pool = np.flatnonzero(~empty) if self.empty == "drop" else np.arange(len(known))
        if "classes" not in self.subset and self.train_images not in (None, len(pool)):
            without = f" (`empty: drop` leaves {empty.sum()} others out)" if len(pool) < len(known) else ""
            raise DataError(f"{path.absolute()} has {len(pool)} training images{without}, and {self.train_images} were declared")
        if len(pool) < (asked := self.subset.get("images", 1)):
            raise DataError(f"{path.absolute()} has {len(pool)} training images with boxes to train on, and {asked} were asked for")
        words = {
            "of crowds": "are no targets of training",
            "of at most one pixel": "are no targets of training",
            "cut": "at the edge of their image, beyond which they reach",
        }
        notes = [f"{path.name}: {counted[kind]} boxes {kind} {so}" for kind, so in words.items() if counted[kind]]
        if empty.any():
            notes.append(f"{path.name}: {empty.sum()} images without a box to train on {NO_OBJECTS[self.empty]} (`empty: {self.empty}`)")
        return pool[: self.subset.get("images")], tuple(notes)

    def _readers(
        self, files: dict[str, ImageFiles], annotations: dict[str, Annotations], read: dict[str, CocoFile]
    ) -> dict[str, SceneReader]:
        readers = {}
        for split, one in files.items():
            stated_in = str(read["test" if split == "test" else "train"].path.absolute())
            readers[split] = SceneReader(one, annotations[split].sizes, self.views, self.decoding, stated_in)
        if sum(reader.resized_bytes for reader in readers.values()) > KEPT_BYTES:
            return readers
        return {split: reader.in_memory() for split, reader in readers.items()}

    def how_to_get_it(self) -> str:
        own = (
            "COCO itself: unpack http://images.cocodataset.org/zips/train2017.zip, val2017.zip and "
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip there. "
        )
        train, test = self.splits.values()
        return (
            f"Its images must be in the data folder as {self.folder}/{train}/IMAGE and {self.folder}/{test}/IMAGE, with their boxes in "
            f"{self.folder}/annotations/instances_{train}.json and instances_{test}.json (the options train and test name the splits). "
            f"{own if self.folder == 'coco' else ''}--data or $KDBENCH_DATA names another data folder."
        )
