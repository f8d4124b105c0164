"""Folders of Hugging Face's library `datasets`: the only module that imports it, when it is needed. Not a dataset."""

from __future__ import annotations

import glob
import hashlib
import io
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.datasets._content import BEGINNINGS
from kdbench.datasets._files import together
from kdbench.datasets._reading import EncodedImage
from kdbench.datasets._tables import some
from kdbench.errors import DataError, nearest

AT_ONCE = 256
"""Rows that are read at once."""

DIGEST_BYTES = 32
"""The first bytes of an image's key, which follow from its bytes and not from its class."""

USUAL_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
PART = re.compile(r"(.*-)?(?P<number>\d+)-of-(?P<of>\d+)(-\w+)?")
"""The name of one of several files, as train-00000-of-00002."""


@dataclass(frozen=True)
class Table:
    """A split: `images` is the library's table with the one column of encoded images, `given` the labels as they stand there, `names` the
    names of a ClassLabel. `where` is what messages call it, `columns` the names of the columns of images and labels."""

    images: Any
    given: list[Any]
    names: list[str] | None
    where: str
    columns: tuple[str, str]

    def __len__(self) -> int:
        return len(self.given)

    def labelled(self, labels: np.ndarray, names: list[str], n_classes: int) -> tuple[TableImages, list[bytes]]:
        """The images of the first classes in canonical order, and their keys, of which an image's bytes and class are a part. Raises
        DataError for rows that hold no image."""
        keys, wrong = {}, []
        for start in range(0, len(self), AT_ONCE):
            for row, value in enumerate(self.images[start : start + AT_ONCE].column(0).to_pylist(), start=start):
                if labels[row] < n_classes:
                    content = _bytes(value)
                    wrong += [f"{self.where}, row {row + 1}, {problem}"] if (problem := _problem(content, value)) else []
                    keys[row] = hashlib.sha256(content).digest() + names[labels[row]].encode()
        if wrong:
            raise together(wrong)
        rows = np.array(sorted(keys, key=keys.__getitem__))
        return TableImages(self.images, rows, labels[rows], self.where), [keys[row] for row in rows.tolist()]


@dataclass(frozen=True)
class TableImages:
    """Encoded images in rows of a table (`StoredImages`)."""

    table: Any
    rows: np.ndarray
    labels: np.ndarray
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> TableImages:
        return replace(self, rows=self.rows[index], labels=self.labels[index])

    def name(self, place: int) -> str:
        return f"row {int(self.rows[place]) + 1}"

    def path(self, place: int) -> EncodedImage:
        row = int(self.rows[place])
        return EncodedImage(_bytes(self.table[row].column(0)[0].as_py()), f"{self.where}, row {row + 1}")


def opened(home: Path, split: str, others: Collection[str], image: str | None, label: str | None) -> Table:
    """A split of a folder, whose splits are also `others`. Raises DataError if the library is not installed, the split is not there or
    cannot be read, or its columns are not found."""
    library = _library()
    where = f"{home.absolute()}, split {split}"
    try:
        with _quietly(library):
            table = _read(library, home, split, others)
    except DataError:
        raise
    except Exception as error:  # the library, Arrow or the disk may raise anything
        reason = f"{type(error).__name__}: {error}"[:300]
        raise DataError(f"{where} cannot be read by the library datasets {library.__version__} ({reason})") from error
    kinds = {name: _kind(library, feature) for name, feature in table.features.items()}
    pixels, classes = (_column(where, kinds, kind, given) for kind, given in (("image", image), ("label", label)))
    feature = table.features[classes]
    names = list(feature.names) if isinstance(feature, library.ClassLabel) else None
    plain = table.with_format("arrow")
    given = plain.select_columns([classes])[:].column(0).to_pylist()
    return Table(plain.select_columns([pixels]), given, names, where, (pixels, classes))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"the dataset `huggingface` needs the library datasets ({error}): pip install kdbench[huggingface]") from error
    if not hasattr(datasets, "load_from_disk"):
        raise DataError(f"{datasets.__path__} hides the library datasets, since it has the same name: start kdbench elsewhere")
    return datasets


@contextmanager
def _quietly(library: Any) -> Iterator[None]:
    """Without progress bars, and without a network, whatever HF_HUB_OFFLINE is."""
    shown, offline = not library.are_progress_bars_disabled(), library.config.HF_HUB_OFFLINE
    library.disable_progress_bars()
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = offline
        if shown:
            library.enable_progress_bars()


def _read(library: Any, home: Path, split: str, others: Collection[str]) -> Any:
    if (home / split / "state.json").is_file():
        return library.load_from_disk(str(home / split))
    if (home / "state.json").is_file():
        raise DataError(f"{home.absolute()} holds one table without splits: save a DatasetDict with train and test")
    files = _parquet(home, split, others)
    return library.load_dataset("parquet", data_files=[glob.escape(str(path.absolute())) for path in files], split="train")


def _parquet(home: Path, split: str, others: Collection[str]) -> list[Path]:
    """The Parquet files of a split: SPLIT.parquet, SPLIT-00000-of-00002.parquet, or, in a folder SPLIT below `home` where none has such a
    name, all that are not named after another split."""
    every = sorted(home.rglob("*.parquet"))
    named = [path for path in every if _is_of(path, [split])]
    inside = [path for path in every if path.parent != home and path.parent.name == split and not _is_of(path, others)]
    inside = [path for path in inside if not _is_of(path, USUAL_SPLITS)] or inside
    beside = {path.parent for path in named}
    files = named + [path for path in inside if path.parent not in beside]
    if not files:
        there = [*(str(path.relative_to(home)) for path in every), *(path.parent.name + "/" for path in sorted(home.glob("*/state.json")))]
        raise DataError(f"{home.absolute()} has no split '{split}': it holds {some(there) if there else 'neither Arrow nor Parquet files'}")
    if len(folders := sorted({str(path.parent.relative_to(home)) for path in files})) > 1:
        raise DataError(f"{home.absolute()} has the split '{split}' in the folders {some(folders)}: name one of them in `folder`")
    parts = [match for path in files if (match := PART.fullmatch(path.stem))]
    if asked := {int(match["of"]) for match in parts}:
        lacking = {*range(max(asked))} - {int(match["number"]) for match in parts}
        if lacking or len(asked) > 1 or len(files) != max(asked):
            where = f"{files[0].parent.absolute()} holds {len(files)} files of the split '{split}'"
            raise DataError(f"{where}, and their names say {max(asked)}: copy it again")
    return files


def _is_of(path: Path, splits: Collection[str]) -> bool:
    """Whether a file's name is that of one of the splits, alone or with the number of a part."""
    return re.fullmatch(rf"({'|'.join(map(re.escape, splits))})(-\d+(-of-\d+)?(-\w+)?)?", path.stem) is not None


def _kind(library: Any, feature: Any) -> str:
    """What a column can be: an image (encoded, also without the library's type), a label for certain, perhaps a label, or nothing."""
    if isinstance(feature, library.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    if isinstance(feature, library.ClassLabel):
        return "label"
    dtype = str(getattr(feature, "dtype", "")) if isinstance(feature, library.Value) else ""
    return (
        "image" if "binary" in dtype else "label?" if dtype.startswith(("int", "uint", "string", "large_string", "float", "bool")) else ""
    )


def _column(where: str, kinds: dict[str, str], kind: str, given: str | None) -> str:
    """The column of images or labels. Raises DataError if it is not there, or is not the only one."""
    can = [name for name, one in kinds.items() if one.rstrip("?") == kind]
    if given is not None:
        if given not in kinds:
            raise DataError(f"{where} has no column '{given}'{nearest(given, kinds)}")
        if given not in can:
            raise DataError(f"{where}: the column '{given}' holds no {kind}s that kdbench reads (columns that can: {some(can) or 'none'})")
        return given
    # A column's name counts as much as its type: beside `label`, a ClassLabel of another name may be anything.
    likely = [name for name, one in kinds.items() if one == kind or name.lower() in (kind, f"{kind}s")]
    if len(likely) != 1 or likely[0] not in can:
        there = [name for name in likely if name in can] or can
        raise DataError(f"{where}: the option `{kind}` must name the column of {kind}s; those that can be: {some(there) or 'none'}")
    return likely[0]


def _bytes(value: Any) -> bytes:
    """The encoded image of a row; empty if there is none."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


def _problem(content: bytes, value: Any) -> str:
    if not content:
        beside = (
            f" (only the path {value['path']!r}; `save_to_disk` stores images)" if isinstance(value, dict) and value.get("path") else ""
        )
        return f"holds no image{beside}"
    if not content.startswith(BEGINNINGS):
        try:
            Image.open(io.BytesIO(content)).close()
        except Exception as error:  # what is not an image may raise anything
            return f"is not an image ({type(error).__name__})"
    return ""
