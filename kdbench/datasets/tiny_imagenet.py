from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from kdbench.datasets._archive import Archived
from kdbench.datasets._base import Subset
from kdbench.datasets._files import ImageFiles, checked_folder, choose, listed, notes_on, together
from kdbench.datasets._memory import ImageData, Images, fingerprint_of, in_memory
from kdbench.datasets._reading import Reader, read_ahead
from kdbench.datasets._views import as_it_is
from kdbench.errors import DataError

ARCHIVE = "tiny-imagenet-200"

AT_ONCE = 500
"""Images per batch of a decoding process; sets of fewer than two batches per process are decoded in this process."""

MOST_PROCESSES = 8


class TinyImagenet(Archived):
    """Tiny-ImageNet: 100,000 training and 10,000 validation images (here the test set) of 64x64 pixels, 200 classes.

    Stored in the data folder as in its archive: wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt. For a
    part of it in the same layout, set `folder`, `classes` and `per_class` (training images of each class). Labels are the positions of
    the sorted WordNet ids. Order, `subset` and `validation` depend on a hash of each file's bytes and its class, not on decoded pixels.
    Training images get a random crop after zero padding of `padding` pixels, and a random flip.
    Source: Stanford CS231n; mean, standard deviation and the use of its validation part as in the DOT configurations (Zhao et al. 2023).
    Departs: DOT rotates by up to 20 degrees and does not crop; here the augmentation is CIFAR's, with the padding in proportion.
    """

    url: ClassVar[str] = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5: ClassVar[str] = "90528d7ca1a48142e341f4ef8d21d0de"
    input_shape = (3, 64, 64)
    normalisation = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))

    def __init__(
        self,
        *,
        folder: str = ARCHIVE,
        classes: int = 200,
        per_class: int = 500,
        subset: Subset | None = None,
        validation: float = 0.0,
        split_seed: int = 0,
        padding: int = 8,
        flip: bool = True,
    ):
        if classes < 2 or per_class < 1:
            raise ValueError(f"classes must be at least 2 and per_class at least 1, not {classes} and {per_class}")
        self.folder, self.classes, self.all_classes, self.per_class = checked_folder(folder), classes, classes, per_class
        self._options(subset, validation, split_seed, padding, flip)

    def load(self, folder: Path) -> ImageData:
        home = Path(folder) / self.folder
        known = self._names(home)
        names = known[: self.n_classes]
        found, passed = listed(home, [f"train/{name}/images" for name in names])
        for name, count in zip(names, np.bincount(found.labels).tolist(), strict=True):
            if count != self.per_class:
                where = (home / "train" / name / "images").absolute()
                raise DataError(f"{where} holds {count} images, and {self.per_class} were declared. {self.how_to_get_it()}")
        pool, digests = _canonical(found, names)
        test_files, others = self._test(home, names, known)
        found.check_sizes(test_files)
        test, test_digests = _canonical(test_files, names)
        train, val = choose(digests, pool.labels, names, self.subset, self.validation, self.split_seed)
        splits = {"train": pool.take(train), "val": None if val is None else pool.take(val), "test": test}
        decoded = {split: None if files is None else _decoded(files) for split, files in splits.items()}
        notes = notes_on(passed + others)
        return in_memory(self, decoded, fingerprint_of(train=digests, test=test_digests), self.flip, notes=notes)

    def download(self, folder: Path) -> Path:
        if self.folder != ARCHIVE:
            raise DataError(f"{self.folder} cannot be downloaded: the archive {self.url} holds {ARCHIVE}")
        return super().download(folder)

    def _names(self, home: Path) -> list[str]:
        names = self._text(home / "wnids.txt").split()
        if len(set(names)) != len(names) or len(names) != self.classes:
            message = f"names {len(set(names))} classes in {len(names)} lines, and {self.classes} were declared"
            raise DataError(f"{(home / 'wnids.txt').absolute()} {message}. {self.how_to_get_it()}")
        return sorted(names)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"Tiny-ImageNet is missing: there is no file {path.absolute()}. {self.how_to_get_it()}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path.absolute()} cannot be read: {error}. {self.how_to_get_it()}") from error

    def _test(self, home: Path, names: list[str], known: list[str]) -> tuple[ImageFiles, Counter[str]]:
        """The test images of `names`, with the labels of the annotations, which must name each image once with a `known` class; and what
        was passed over."""
        path = home / "val" / "val_annotations.txt"
        said: dict[str, str] = {}
        for number, line in enumerate(self._text(path).splitlines(), start=1):
            image, name = [*line.split("\t"), ""][:2]
            if name not in known or image in said:
                wrong = f"gives {image!r} again" if image in said else f"gives {image!r} the class {name!r}, which wnids.txt does not name"
                raise DataError(f"{path.absolute()}, line {number}, {wrong}. {self.how_to_get_it()}")
            said[image] = name
        found, passed = listed(home, ["val/images"])
        there = [os.fsdecode(one).rpartition("/")[2] for one in found.paths.tolist()]
        for odd, wrong in ((said.keys() - set(there), "does not lie in val/images"), (set(there) - said.keys(), "has no line")):
            if odd:
                raise DataError(f"{path.absolute()}: the image {min(odd)} {wrong} ({len(odd)} in all). {self.how_to_get_it()}")
        place = {name: label for label, name in enumerate(names)}
        labels = np.array([place.get(said[image], -1) for image in there])
        for name, label in place.items():
            if label not in labels:
                raise DataError(f"{path.absolute()} gives no image the class {name}. {self.how_to_get_it()}")
        return replace(found, labels=labels).take(np.flatnonzero(labels >= 0)), passed


def _canonical(files: ImageFiles, names: list[str]) -> tuple[ImageFiles, list[bytes]]:
    """The files, ordered by the hashes of their class and bytes, and these hashes."""
    digests = []
    for place, label in enumerate(files.labels.tolist()):
        try:
            content = files.path(place).read_bytes()
        except OSError as error:
            raise DataError(f"{files.path(place).absolute()} cannot be read: {error}") from error
        digests.append(hashlib.sha256(names[label].encode() + b"\0" + content).digest())
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return files.take(np.array(order)), [digests[place] for place in order]


def _decoded(files: ImageFiles) -> Images:
    """All images in memory. Many images are decoded by several processes (threads are not faster with PIL)."""
    reader = Reader(files, TinyImagenet.input_shape, as_it_is)
    wanted = [(np.arange(start, min(start + AT_ONCE, len(files))), None) for start in range(0, len(files), AT_ONCE)]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(len(wanted) // 2, cpus, MOST_PROCESSES)
    batches = read_ahead(reader, wanted, processes) if processes > 1 else (reader.read(*one) for one in wanted)
    pixels = torch.empty(len(files), *TinyImagenet.input_shape, dtype=torch.uint8)
    try:
        for (index, _), batch in zip(wanted, batches, strict=True):
            pixels[index[0] : index[-1] + 1] = batch
    except DataError as error:
        raise together(reader.wrong() or [str(error)]) from error
    return Images(pixels, torch.as_tensor(files.labels, dtype=torch.int64))
