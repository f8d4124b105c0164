"""CIFAR-10 and CIFAR-100, whose archives contain pickles of uint8 rows. Not a dataset by itself."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kdbench.datasets._archive import Archived
from kdbench.datasets._base import Subset
from kdbench.datasets._memory import ImageData, Images, canonical, fingerprint_of, in_memory, parted
from kdbench.errors import DataError

HARMLESS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""What the pickles of an archive need. A pickle with any other name could run code, and is refused."""


class Cifar(Archived):
    """CIFAR-10 or CIFAR-100. A subclass defines these attributes, and those of `Archived`."""

    title: ClassVar[str]
    files: ClassVar[dict[str, dict[str, str]]]
    """For each split, its files with the MD5 of the official archive."""
    meta: ClassVar[tuple[str, str]]
    """The file of class names, and its key."""
    key: ClassVar[str]
    """The key of the labels."""
    content: ClassVar[str | None]
    """The fingerprint of the official images; None if it is not known."""
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    input_shape = (3, 32, 32)

    def __init__(self, *, subset: Subset | None = None, validation: float = 0.0, split_seed: int = 0, padding: int = 4, flip: bool = True):
        self.normalisation = self.mean, self.std
        self._options(subset, validation, split_seed, padding, flip)

    def load(self, folder: Path) -> ImageData:
        home = Path(folder) / self.folder
        if not home.is_dir():
            raise DataError(f"{self.title} is missing: there is no folder {home.absolute()}. {self.how_to_get_it()}")
        raw = {split: [self._raw(home / file) for file in files] for split, files in self.files.items()}
        message = self._names(home)
        read = {split: canonical(self._images(home, split, entries, message)) for split, entries in raw.items()}
        found = fingerprint_of(**{split: digests for split, (_, digests) in read.items()})
        self._recognised(home, found)
        parts = parted(read["train"][0], read["test"][0], self.subset, self.validation, self.split_seed)
        return in_memory(self, parts, found, self.flip)

    def _raw(self, path: Path) -> dict[str, Any]:
        try:
            with open(path, "rb") as file:
                entry = _Harmless(io.BytesIO(file.read()), encoding="latin1").load()
        except FileNotFoundError:
            raise DataError(f"{self.title} is incomplete: there is no file {path.absolute()}. {self.how_to_get_it()}") from None
        except OSError as error:
            raise DataError(f"{path.absolute()} cannot be read: {error}") from error
        except Exception as error:  # a damaged pickle may raise anything
            raise DataError(
                f"{path.absolute()} is truncated or not a file of {self.title} ({type(error).__name__}: {error}). Remove it. "
                f"{self.how_to_get_it()}"
            ) from error
        if not isinstance(entry, dict):
            raise DataError(f"{path.absolute()} is not a file of {self.title}: it contains a {type(entry).__name__}, not a dictionary")
        return entry

    def _names(self, home: Path) -> list[str]:
        file, key = self.meta
        names = self._raw(home / file).get(key)
        if not isinstance(names, list) or len(names) != self.all_classes or not all(isinstance(name, str) for name in names):
            there = len(names) if isinstance(names, list) else "none"
            raise DataError(f"{(home / file).absolute()} must name {self.all_classes} classes under '{key}', and names {there}")
        return names

    def _images(self, home: Path, split: str, entries: list[dict[str, Any]], names: list[str]) -> Images:
        where = ", ".join(str((home / file).absolute()) for file in self.files[split])
        for entry in entries:
            pixels, labels = entry.get("data"), entry.get(self.key)
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
                raise DataError(f"{where}: 'data' must be rows of 3072 bytes")
            if not isinstance(labels, list) or len(labels) != len(pixels):
                raise DataError(f"{where}: '{self.key}' must hold one label an image, {len(pixels)} of them")
            if strange := [label for label in labels if type(label) is not int or not 0 <= label < self.all_classes]:
                raise DataError(f"{where}: '{self.key}' holds {strange[0]!r}, and labels are whole numbers below {self.all_classes}")
        whole = torch.from_numpy(np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32))
        labels = torch.as_tensor([label for entry in entries for label in entry[self.key]], dtype=torch.int64)
        counts = torch.bincount(labels, minlength=self.all_classes).tolist()
        if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
            raise DataError(f"{where}: no image of the class {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}")
        return Images(whole, labels)

    def _recognised(self, home: Path, found: str) -> None:
        """Raises DataError unless these are the official images, by their content or, if it is not known, by the official checksums."""
        if found == self.content:
            return
        official = [pair for files in self.files.values() for pair in files.items()]
        others = [file for file, md5 in official if hashlib.md5((home / file).read_bytes(), usedforsecurity=False).hexdigest() != md5]
        if self.content is None and not others:
            return
        why = f"their content's fingerprint is {found}, and not {self.content}" if self.content else "checksums differ"
        raise DataError(
            f"{home.absolute()} does not hold {self.title}'s images: {why} ({', '.join(others)} changed). Remove it. {self.how_to_get_it()}"
        )


class _Harmless(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no archive of these images needs")
        return super().find_class(module, name)
