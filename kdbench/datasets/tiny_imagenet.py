from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from kdbench.datasets._archive import download_and_extract
from kdbench.datasets._base import Dataset, Subset, checked_seed, checked_share, left_of
from kdbench.datasets._files import Files, checked_folder, choose, listed
from kdbench.datasets._memory import ImageData, Images, fingerprint_of
from kdbench.datasets._reading import Reader, as_it_is, read_ahead
from kdbench.errors import DataError

ARCHIVE = "tiny-imagenet-200"

AT_ONCE = 500
"""Images that a process decodes before it hands them over; a set that makes no two such batches for each process is decoded here."""

MOST_PROCESSES = 8


class TinyImagenet(Dataset):
    """Tiny-ImageNet: 100,000 training images of 64x64 pixels, 200 classes; its 10,000 validation images are the test set.

    Lies in the data folder as its archive does: wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt. A
    part of it in the same layout is named by `folder`, `classes` and `per_class` (training images of each class). Labels are the places
    of the WordNet ids when sorted. Order, subset and split follow a hash of each file's bytes and its class, and no decoder's pixels.
    Training views are a random crop after `padding` pixels of zeros, and a flip. `subset` keeps the first classes and of each so many
    training images; `validation` holds out that share of the training images.
    Source: Stanford CS231n; mean, standard deviation and the use of its validation part as in the DOT configurations (Zhao et al. 2023).
    Departs: DOT turns by up to 20 degrees and does not crop; here it is CIFAR's crop with the padding in proportion, whose views are
    finite.
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
        if not 0 <= padding < 64:
            raise ValueError(f"padding must be between 0 and 63 pixels, not {padding}")
        if classes < 2 or per_class < 1:
            raise ValueError(f"classes must be at least 2 and per_class at least 1, not {classes} and {per_class}")
        self.folder, self.classes, self.per_class = checked_folder(folder), classes, per_class
        self.subset = Subset.of(subset, classes, per_class)
        self.validation, self.split_seed = checked_share(validation), checked_seed(split_seed)
        self.padding, self.flip = padding, flip

    @property
    def n_classes(self) -> int:
        return self.subset.classes or self.classes

    @property
    def n_train(self) -> int:
        return left_of(self.n_classes * (self.subset.per_class or self.per_class), self.validation)

    def load(self, folder: Path) -> ImageData:
        home = Path(folder) / self.folder
        known = self._names(home)
        names = known[: self.n_classes]
        pool, digests = _canonical(self._train(home, names), names)
        test, test_digests = _canonical(self._test(home, names, known), names)
        train, val = choose(digests, pool.labels, names, self.subset, self.validation, self.split_seed)
        mean, std = self.normalisation
        return ImageData(
            train=_decoded(pool.take(train)),
            val=None if val is None else _decoded(pool.take(val)),
            test=_decoded(test),
            n_classes=self.n_classes,
            fingerprint=fingerprint_of(train=digests, test=test_digests),
            mean=mean,
            std=std,
            padding=self.padding,
            flip=self.flip,
        )

    def download(self, folder: Path) -> Path:
        if self.folder != ARCHIVE:
            raise DataError(f"{self.folder} is nowhere to be downloaded from: the archive {self.url} holds {ARCHIVE}")
        if not (Path(folder) / ARCHIVE).exists():
            download_and_extract(self.url, self.md5, Path(folder), ARCHIVE)
        self.load(folder)
        return Path(folder) / ARCHIVE

    def _how_to_get_it(self) -> str:
        return (
            f"Get it with `kdbench download tiny_imagenet`, or unpack {self.url} there; another data folder is named by --data or "
            "$KDBENCH_DATA."
        )

    def _names(self, home: Path) -> list[str]:
        names = self._text(home / "wnids.txt").split()
        if len(set(names)) != len(names) or len(names) != self.classes:
            told = f"names {len(set(names))} classes in {len(names)} lines, and {self.classes} were declared"
            raise DataError(f"{(home / 'wnids.txt').absolute()} {told}. {self._how_to_get_it()}")
        return sorted(names)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"Tiny-ImageNet is not there: looked for {path.absolute()}. {self._how_to_get_it()}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path.absolute()} cannot be read: {error}. {self._how_to_get_it()}") from error

    def _train(self, home: Path, names: list[str]) -> Files:
        found = listed(home, [f"train/{name}/images" for name in names])
        for name, count in zip(names, np.bincount(found.labels).tolist(), strict=True):
            if count != self.per_class:
                where = (home / "train" / name / "images").absolute()
                raise DataError(f"{where} holds {count} images, and {self.per_class} were declared. {self._how_to_get_it()}")
        return found

    def _test(self, home: Path, names: list[str], known: list[str]) -> Files:
        """The test images of `names`, labelled by the annotations, which must name each image once and a `known` class."""
        path = home / "val" / "val_annotations.txt"
        said: dict[str, str] = {}
        for number, line in enumerate(self._text(path).splitlines(), start=1):
            image, name = [*line.split("\t"), ""][:2]
            if name not in known or image in said:
                wrong = f"gives {image!r} again" if image in said else f"gives {image!r} the class {name!r}, which wnids.txt does not name"
                raise DataError(f"{path.absolute()}, line {number}, {wrong}. {self._how_to_get_it()}")
            said[image] = name
        found = listed(home, ["val/images"])
        there = [os.fsdecode(one).rpartition("/")[2] for one in found.paths.tolist()]
        for odd, wrong in ((said.keys() - set(there), "does not lie in val/images"), (set(there) - said.keys(), "has no line")):
            if odd:
                raise DataError(f"{path.absolute()}: the image {min(odd)} {wrong} ({len(odd)} in all). {self._how_to_get_it()}")
        place = {name: label for label, name in enumerate(names)}
        labels = np.array([place.get(said[image], -1) for image in there])
        for name, label in place.items():
            if label not in labels:
                raise DataError(f"{path.absolute()} gives no image the class {name}. {self._how_to_get_it()}")
        return replace(found, labels=labels).take(np.flatnonzero(labels >= 0))


def _canonical(files: Files, names: list[str]) -> tuple[Files, list[bytes]]:
    """The files in the order of the hashes of their class and their bytes, and these hashes."""
    digests = []
    for place, label in enumerate(files.labels.tolist()):
        try:
            content = files.path(place).read_bytes()
        except OSError as error:
            raise DataError(f"{files.path(place).absolute()} cannot be read: {error}") from error
        digests.append(hashlib.sha256(names[label].encode() + b"\0" + content).digest())
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return files.take(np.array(order)), [digests[place] for place in order]


def _decoded(files: Files) -> Images:
    """All images in memory; many are decoded by several processes (threads gain nothing: PIL gives them too little time apart)."""
    reader = Reader(files, TinyImagenet.input_shape, as_it_is)
    wanted = [(np.arange(start, min(start + AT_ONCE, len(files))), None) for start in range(0, len(files), AT_ONCE)]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(len(wanted) // 2, cpus, MOST_PROCESSES)
    batches = read_ahead(reader, wanted, processes) if processes > 1 else (reader.read(*one) for one in wanted)
    pixels = torch.empty(len(files), *TinyImagenet.input_shape, dtype=torch.uint8)
    for (index, _), batch in zip(wanted, batches, strict=True):
        pixels[index[0] : index[-1] + 1] = batch
    return Images(pixels, torch.as_tensor(files.labels, dtype=torch.int64))
