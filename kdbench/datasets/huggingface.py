from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from kdbench.datasets._base import Subset
from kdbench.datasets._content import shared_images
from kdbench.datasets._files import checked_folder, on_disk
from kdbench.datasets._huggingface import DIGEST_BYTES, TableImages, opened
from kdbench.datasets._labels import labels_of
from kdbench.datasets._memory import fingerprint_of
from kdbench.datasets._streamed import Streamed, StreamedData
from kdbench.datasets._tables import TableRows, some
from kdbench.errors import DataError


class Huggingface(Streamed):
    """Images of any size in a folder of Hugging Face's library `datasets`, read during training; needs `pip install kdbench[huggingface]`.

    `folder` is a name inside the data folder: a `DatasetDict` that `save_to_disk` wrote, or Parquet files with encoded images, as in a copy
    of a repository of the Hub (data/train-00000-of-00001.parquet). `train`, `test` and (optional) `val` name its splits, `image` and
    `label` its columns, which are found by their types where only one can be meant. Labels are those of a ClassLabel, or as in `listed`.
    Order, `subset` and `validation` depend on the bytes and the class of each image: all bytes are read when training starts. The library
    copies Parquet into its cache once (HF_DATASETS_CACHE). Nothing is downloaded. Transforms and other options as in `folder`.
    """

    def __init__(
        self,
        *,
        folder: str,
        classes: int,
        train: str = "train",
        test: str = "test",
        val: str | None = None,
        image: str | None = None,
        label: str | None = None,
        train_images: int | None = None,
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
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        self._keep_pixels(size, scale, ratio, flip, crop_pct, interpolation, mean, std)
        self._keep_images(classes, train_images, subset, validation, split_seed)
        self.orientation, self.transparency = orientation, transparency
        self.folder, self.image, self.label = checked_folder(folder), image, label
        self.splits = {"train": train, "test": test, **({} if val is None else {"val": val})}
        if len({*self.splits.values()}) < len(self.splits):
            raise ValueError(f"train, test and val must be different splits, not {self.splits}")
        if validation and val is not None:
            raise ValueError("validation holds out training images, and `val` names a validation split: leave one of them out")

    def load(self, folder: Path) -> StreamedData:
        home = on_disk(Path(folder), self.folder)
        if not home.is_dir():
            raise DataError(f"{self.folder} is missing: there is no folder {home.absolute()}. {self.how_to_get_it()}")
        tables = {split: opened(home, name, self.splits.values(), self.image, self.label) for split, name in self.splits.items()}
        names = self._names(home, {split: table.names for split, table in tables.items()})
        rows = [TableRows(home, [], range(1, len(table) + 1), f"{self.splits[split]}, row") for split, table in tables.items()]
        values = [table.given for table in tables.values()]
        labels, names_found = labels_of(list(zip(rows, values, strict=True)), self.classes, None)
        names = names or names_found
        ends = np.cumsum([len(table) for table in tables.values()])[:-1]
        files: dict[str, TableImages] = {}
        keys: dict[str, list[bytes]] = {}
        for (split, table), mine in zip(tables.items(), np.split(np.array(labels), ends), strict=True):
            if absent := [name for label, name in enumerate(names) if split != "val" and not (mine == label).any()]:
                raise DataError(f"{table.where} has no image of the class {some(absent)}, and {self.classes} classes were declared")
            files[split], keys[split] = table.labelled(mine, names, self.n_classes)
        self._check_count(files["train"], tables["train"].where)
        chosen = self._choose(keys["train"], files["train"], names)
        taken = {split: files["train"].take(index) for split, index in chosen.items()}
        digests = {split: [key[:DIGEST_BYTES] for key in mine] for split, mine in keys.items()}
        digests |= {split: [digests["train"][place] for place in index.tolist()] for split, index in chosen.items()}
        notes = (
            *shared_images({**files, **taken}, digests),
            *_columns({self.splits[split]: table.columns for split, table in tables.items()}),
        )
        # The same classes in another order give other labels, which the keys do not show.
        labelled = ((split, zip(mine, files[split].labels.tolist(), strict=True)) for split, mine in keys.items())
        fingerprint = fingerprint_of(**{split: [key + b"\0%d" % label for key, label in pairs] for split, pairs in labelled})
        return self._data({**files, **taken}, fingerprint, notes)

    def _names(self, home: Path, found: dict[str, list[str] | None]) -> list[str] | None:
        """The names of a ClassLabel. Raises DataError if the splits have other classes, or not as many as were declared."""
        names = found["train"]
        if other := next((split for split in found if found[split] != names), None):
            raise DataError(
                f"{home.absolute()}: {self.splits[other]} has other classes than {self.splits['train']}, so their labels differ"
            )
        if names is not None and len(names) != self.classes:
            raise DataError(f"{home.absolute()} has {len(names)} classes ({some(names)}), and {self.classes} were declared")
        return names

    def how_to_get_it(self) -> str:
        return (
            "Put what `save_to_disk` of the library datasets writes, or Parquet files with encoded images, into the data folder "
            f"as {self.folder}; --data or $KDBENCH_DATA names another data folder."
        )


def _columns(found: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """What the columns of images and labels are called in each split."""
    return tuple(
        f"split {', '.join(split for split in found if found[split] == names)}: column of images {names[0]!r}, of labels {names[1]!r}"
        for names in dict.fromkeys(found.values())
    )
