"""CIFAR-10 and CIFAR-100 as their archives hold them: pickles of uint8 rows. Not a dataset by itself."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kdbench.datasets._archive import download_and_extract
from kdbench.datasets._base import Dataset, Subset, checked_seed, checked_share, left_of
from kdbench.datasets._memory import ImageData, Images, canonical, fingerprint_of, parted
from kdbench.errors import DataError

HARMLESS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""All that an archive's pickle needs: one that names anything else could run code, and is refused."""


class Cifar(Dataset):
    """What the two have in common. A subclass states the facts of its archive."""

    title: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[dict[str, dict[str, str]]]
    """Of each split, the files with the MD5 of the official archive."""
    meta: ClassVar[tuple[str, str]]
    """The file of names, and its key."""
    key: ClassVar[str]
    """Of the labels."""
    url: ClassVar[str]
    md5: ClassVar[str]
    content: ClassVar[str | None]
    """The fingerprint of the right images, whatever file they lie in; None where we never saw them."""
    all_classes: ClassVar[int]
    per_class: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    input_shape = (3, 32, 32)

    def __init__(
        self,
        *,
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
        padding: int = 4,
        flip: bool = True,
    ):
        if not 0 <= padding < 32:
            raise ValueError(f"padding must be between 0 and 31 pixels, not {padding}")
        self.subset = Subset.of(subset, self.all_classes, self.per_class)
        self.validation = checked_share(validation)
        self.split_seed, self.padding, self.flip = checked_seed(split_seed), padding, flip

    @property
    def n_classes(self) -> int:
        return self.subset.classes or self.all_classes

    @property
    def n_train(self) -> int:
        return left_of(self.n_classes * (self.subset.per_class or self.per_class), self.validation)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std

    def load(self, folder: Path) -> ImageData:
        home = Path(folder) / self.folder
        if not home.is_dir():
            raise DataError(f"{self.title} is not there: looked for the folder {home.absolute()}. {self._how_to_get_it()}")
        raw = {split: [self._raw(home / file) for file in files] for split, files in self.files.items()}
        told = self._names(home)
        read = {split: canonical(self._images(home, split, entries, told)) for split, entries in raw.items()}
        found = fingerprint_of(**{split: digests for split, (_, digests) in read.items()})
        self._recognised(home, found)
        parts = parted(read["train"][0], read["test"][0], self.subset, self.validation, self.split_seed)
        return ImageData(
            **parts,  # type: ignore[arg-type]
            n_classes=self.n_classes,
            fingerprint=found,
            mean=self.mean,
            std=self.std,
            padding=self.padding,
            flip=self.flip,
        )

    def download(self, folder: Path) -> Path:
        if not (Path(folder) / self.folder).exists():
            download_and_extract(self.url, self.md5, Path(folder), self.folder)
        self.load(folder)
        return Path(folder) / self.folder

    def _how_to_get_it(self) -> str:
        return (
            f"Get it with `kdbench download {type(self).__name__.lower()}`, or unpack {self.url} there; another data folder is named by "
            "--data or $KDBENCH_DATA."
        )

    def _raw(self, path: Path) -> dict[str, Any]:
        try:
            with open(path, "rb") as file:
                entry = _Harmless(io.BytesIO(file.read()), encoding="latin1").load()
        except FileNotFoundError:
            raise DataError(f"{self.title} is not whole: there is no file {path.absolute()}. {self._how_to_get_it()}") from None
        except OSError as error:
            raise DataError(f"{path.absolute()} cannot be read: {error}") from error
        except Exception as error:  # a damaged pickle may raise anything
            raise DataError(
                f"{path.absolute()} is truncated or no part of {self.title} ({type(error).__name__}: {error}). Remove it. "
                f"{self._how_to_get_it()}"
            ) from error
        if not isinstance(entry, dict):
            raise DataError(f"{path.absolute()} is no part of {self.title}: it holds a {type(entry).__name__}, not a dictionary")
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
        """Whether these are the right images: by their content, or, where we never saw them, by the official checksums."""
        if found == self.content:
            return
        others = [
            file
            for files in self.files.values()
            for file, md5 in files.items()
            if hashlib.md5((home / file).read_bytes(), usedforsecurity=False).hexdigest() != md5
        ]
        if self.content is None and not others:
            return
        why = f"their content's fingerprint is {found}, and not {self.content}" if self.content else "checksums differ"
        raise DataError(
            f"{home.absolute()} does not hold {self.title}'s images: {why} ({', '.join(others)} changed or made otherwise). Remove it. "
            f"{self._how_to_get_it()}"
        )


class _Harmless(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no archive of these images needs")
        return super().find_class(module, name)
