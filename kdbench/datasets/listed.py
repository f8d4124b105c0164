from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdbench.datasets._base import Subset
from kdbench.datasets._content import content_of, fingerprint_of_files, shared_images
from kdbench.datasets._files import checked_folder, composed, on_disk, together
from kdbench.datasets._labels import labels_of
from kdbench.datasets._listing import files_of, paths_of
from kdbench.datasets._streamed import Streamed, StreamedData
from kdbench.datasets._tables import SUFFIXES, TableRows, read_table, refuse, some
from kdbench.errors import DataError, nearest

SPLITS = ("train", "test", "val")


class Listed(Streamed):
    """Images of any size named by a table (CSV or Parquet) with their labels, read during training.

    `table` lies in the data folder and has a row an image: the columns `path` (relative to the table's folder), `label` and `split`, which
    these options rename. `splits` says which values of the column `split` are the training, test and (optional) validation images; or
    `table: {train: a.csv, test: b.csv}` has one table for each split. `classes` is the number of classes, or the list of their names.
    Labels are whole numbers from 0, or names, whose sorted positions they are (the positions in the list, where there is one). CSV may be
    separated by commas, semicolons, tabs or |. Images are in the order of their paths. Transforms and other options as in `folder`.
    """

    def __init__(
        self,
        *,
        table: str | dict[Literal["train", "test", "val"], str],
        classes: int | list[str],
        path: str = "path",
        label: str = "label",
        split: str = "split",
        splits: dict[Literal["train", "test", "val"], str] | None = None,
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
        self.names = None if isinstance(classes, int) else list(classes)
        self._keep_pixels(size, scale, ratio, flip, crop_pct, interpolation, mean, std)
        count = classes if isinstance(classes, int) else len(classes)
        self._keep_images(count, train_images, subset, validation, split_seed)
        self.orientation, self.transparency, self.columns = orientation, transparency, (path, label, split)
        self.splits: dict[Any, str] = dict(splits) if splits else {"train": "train", "test": "test", "val": "val"}
        self.tables: dict[Any, str] = {"": table} if isinstance(table, str) else dict(table)
        for given in self.tables.values():
            if not checked_folder(given, "table").lower().endswith(SUFFIXES):
                raise ValueError(f"table must end in {', '.join(SUFFIXES)}, not {given!r}")
        for one, name in ((self.splits, "splits"), (self.tables, "table")):
            if "" not in one and not {"train", "test"} <= {*one} <= {*SPLITS} or len({*one.values()}) < len(one):
                raise ValueError(f"{name} must name train and test (and val, where there is one), each by its own value, not {one}")
        if "" not in self.tables and splits:
            raise ValueError("splits is for one table with a column of splits: leave it out where each split has its own table")
        if self.names is not None and len({*map(composed, self.names)}) < len(self.names):
            raise ValueError("classes names a class twice")
        if validation and "val" in self.tables:
            raise ValueError("validation holds out training images, and the table has a validation split: leave one of them out")

    def load(self, folder: Path) -> StreamedData:
        home = Path(folder)
        tables = {role: read_table(on_disk(home, name), self.columns[: 2 if role else 3]) for role, name in self.tables.items()}
        roles = {role: self._roles(role, table) for role, table in tables.items()}
        labels, names = labels_of([(table, [row[1] for row in table.rows]) for table in tables.values()], self.classes, self.names)
        rows = list(zip(paths_of(home, tables, roles), labels, (one for some in roles.values() for one in some), strict=True))
        where = ", ".join(str(table.path.absolute()) for table in tables.values())
        files = {}
        for split in SPLITS:
            mine = [(path, label) for path, label, role in rows if role == split]
            self._check_split(split, {label for _, label in mine}, names, where)
            if mine := [(path, label) for path, label in mine if label < self.n_classes]:
                files[split] = files_of(home, *zip(*mine, strict=True), where)
        first, *others = files.values()
        first.check_sizes(*others)
        self._check_count(files["train"], where)
        content = content_of(files)
        chosen = self._choose(files["train"].keys(), files["train"], names)
        if content and (wrong := content.wrong_in("train", *chosen.values())):
            raise together(wrong)
        for split in files.keys() - chosen.keys():
            if content and (wrong := content.wrong_in(split, np.arange(len(files[split])))):
                raise together(wrong)
        taken = {split: files["train"].take(index) for split, index in chosen.items()}
        notes = shared_images({**files, **taken}, content and content.digests_with(chosen))
        return self._data({**files, **taken}, fingerprint_of_files(files, content, names), notes)

    def _roles(self, role: str, table: TableRows) -> list[str]:
        """The split of each row. Raises DataError for a value that `splits` does not name."""
        if role:
            return [role] * len(table.rows)
        known = {value: split for split, value in self.splits.items()}
        wrong = ((table.at(place), row[2]) for place, row in enumerate(table.rows) if str(row[2]) not in known)
        refuse(table.path, ((line, f"the split {value!r} is not named in `splits`{nearest(str(value), known)}") for line, value in wrong))
        return [known[str(row[2])] for row in table.rows]

    def _check_split(self, split: str, labels: set[int], names: list[str], where: str) -> None:
        if split == "val":
            if labels and self.validation:
                raise DataError(f"{where}: some rows are of the validation split: leave them out, or the option `validation`")
        elif not labels:
            raise DataError(f"{where}: no row is of the {split} split, and `splits` says {self.splits}")
        elif absent := [name for label, name in enumerate(names) if label not in labels]:
            raise DataError(f"{where}: the {split} split has no image of the class {some(absent)}")

    def how_to_get_it(self) -> str:
        return (
            f"Its tables must be in the data folder ({', '.join(self.tables.values())}), with the columns {', '.join(self.columns)}; "
            "--data or $KDBENCH_DATA names another data folder."
        )
