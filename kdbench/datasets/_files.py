"""Images that lie in files, one folder a class: listed and chosen. Not a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from kdbench.datasets._base import Subset
from kdbench.datasets._memory import first_per_class
from kdbench.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

LISTERS = 16
"""Threads that list folders: on a network's disk the time goes in waiting."""


@dataclass(frozen=True)
class Files:
    """Image files with their labels. Arrays and not lists: a million Python strings would be copied into every reading process.

    `paths` are relative to `home`, as bytes; `sizes` in bytes.
    """

    home: Path
    paths: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: np.ndarray) -> Files:
        return Files(self.home, self.paths[index], self.labels[index], self.sizes[index])

    def path(self, place: int) -> Path:
        return self.home / os.fsdecode(self.paths[place])


def checked_folder(folder: str) -> str:
    plain = PurePosixPath(folder)
    if plain.is_absolute() or ".." in plain.parts or str(plain) != folder or folder == ".":
        raise ValueError(
            f"folder must be a name inside the data folder (as 'flowers' or 'sets/flowers'), not {folder!r}: where the data folder lies "
            "is this machine's matter (--data or $KDBENCH_DATA) and no part of what is compared"
        )
    return folder


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are passed over."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> list[tuple[str, int]]:
    """(name, size) of every image in a folder, without reading one. Hidden files are passed over.

    Raises:
        DataError: it cannot be listed, is empty, or holds something that is no image.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat().st_size, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder.absolute()} cannot be listed: {error}") from error
    for name, size, is_folder in found:
        if is_folder or not name.lower().endswith(SUFFIXES):
            what = "is a folder" if is_folder else "is no image by its name"
            raise DataError(f"{(folder / name).absolute()} {what}: a class's folder holds images ({', '.join(SUFFIXES)}) and nothing else")
        if not size:
            raise DataError(f"{(folder / name).absolute()} is empty (zero bytes): its copy was cut short. Bring it again")
    if not found:
        raise DataError(f"{folder.absolute()} holds no image")
    return [(name, size) for name, size, _ in found]


def listed(home: Path, folders: Sequence[str]) -> Files:
    """The images of these folders (relative to `home`), labelled by the folder's place among them, sorted by relative path."""
    with ThreadPoolExecutor(LISTERS) as pool:
        found = list(pool.map(images_in, [home / folder for folder in folders]))
    paths = np.array([os.fsencode(f"{folder}/{name}") for folder, names in zip(folders, found, strict=True) for name, _ in names])
    labels = np.repeat(np.arange(len(folders)), [len(names) for names in found])
    sizes = np.array([size for names in found for _, size in names])
    return Files(home, paths, labels, sizes).take(np.argsort(paths))


def choose(
    keys: np.ndarray | Sequence[bytes], labels: np.ndarray, names: list[str], subset: Subset, validation: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions of the images to train on and of those that are held out. `keys` (bytes) are in canonical order; a hash of the seed
    and its key decides about each image.

    Raises:
        DataError: a class has too few images, or one side would be empty.
    """
    kept = np.arange(len(keys))
    if subset.per_class is not None:
        kept = first_per_class(torch.from_numpy(labels), subset.per_class, names)
    if not validation:
        return kept, None
    seed = split_seed.to_bytes(8, "little")
    ranks = [hashlib.sha256(seed + bytes(keys[place])).digest() for place in kept.tolist()]
    order = kept[sorted(range(len(kept)), key=ranks.__getitem__)]
    held = round(len(order) * validation)
    if not 0 < held < len(order):
        raise DataError(f"a validation share of {validation} of {len(order)} images leaves one side empty")
    return np.sort(order[held:]), np.sort(order[:held])
