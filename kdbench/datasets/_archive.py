"""Datasets of small images that come as one archive and are kept in memory. This module and `_decode` use torchvision. Not a dataset."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import ClassVar
from urllib.error import HTTPError

from kdbench.datasets._base import Dataset, Subset
from kdbench.errors import DataError


class Archived(Dataset):
    """A dataset that comes as one archive. A subclass defines these attributes."""

    url: ClassVar[str]
    md5: ClassVar[str]
    folder: str
    """The folder that the archive holds."""
    all_classes: int
    per_class: int
    """The number of training images of each class."""

    def _options(self, subset: Subset | None, validation: float, split_seed: int, padding: int, flip: bool) -> None:
        self._keep(validation, split_seed, padding, flip)
        self.subset, self.flip = Subset.of(subset, self.all_classes, self.per_class), flip
        self.n_classes = self.subset.classes or self.all_classes
        self.n_train = self.subset.n_train(self.n_classes, self.subset.per_class or self.per_class, validation)

    def download(self, folder: Path) -> Path:
        if not (home := Path(folder) / self.folder).exists():
            download_and_extract(self.url, self.md5, Path(folder), self.folder)
        self.load(folder)
        return home

    def how_to_get_it(self) -> str:
        name = type(self).__module__.rpartition(".")[2]
        return (
            f"Download it with `kdbench download {name}`, or unpack {self.url} into the data folder (the option --data or $KDBENCH_DATA "
            "names another one)."
        )


def download_and_extract(url: str, md5: str, folder: Path, holds: str) -> None:
    """Download an archive, check and unpack it, and move the folder `holds` in it to `folder`, completely or not at all. Raises DataError
    if the archive cannot be downloaded, has another checksum, or does not contain the folder."""
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{holds}-", dir=folder, ignore_cleanup_errors=True) as work:
            download_and_extract_archive(url, work, md5=md5)
            if there := Path(work, holds).is_dir():
                os.rename(Path(work, holds), folder / holds)
    except Exception as error:  # the network, the server, the archive or the disk
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise DataError(
            f"{url} could not be downloaded ({type(error).__name__}: {error}). Download it where there is a network, and unpack it as "
            f"{(folder / holds).absolute()}"
        ) from error
    if not there:
        raise DataError(f"{url} does not hold a folder {holds}")
