"""The content of image files: their fingerprint, and images that stand in two splits. Not a dataset."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.datasets._files import LISTERS, ImageFiles
from kdbench.datasets._reading import EncodedImage
from kdbench.errors import shown

CONTENT_BYTES, CONTENT_FILES = 2**30, 100_000
"""The content of sets of up to this size is read at load. Every process that trains does so, without a cache that could be stale: 20,000
small images take about half a second of one core."""

AT_ONCE = 200
"""Files that a thread reads in one piece of work."""

BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", *(b"P%d" % digit for digit in range(1, 7)))
"""How images begin: a file with another beginning is opened, to see whether it is an image."""

COMPARED = 100
"""Files of a split that are compared with those of another one where the content is not read."""
ALIKE = 50
"""A file is compared with at most so many files of its size and name, and so many of its size."""

NAMES = {"train": "training", "val": "validation", "test": "test"}
SHARED = (
    ("test", "train", "the test accuracy is not that of unseen images"),
    ("val", "train", "the validation accuracy is not that of unseen images"),
    ("test", "val", "what is chosen by validation images is chosen by test images"),
)
"""Two splits without images in common, and what it means if they have some."""


@dataclass(frozen=True)
class Content:
    """For each split the digests of the files' bytes, and what is wrong with some of them, by position."""

    digests: dict[str, list[bytes]]
    wrong: dict[str, dict[int, str]]

    def digests_with(self, chosen: Mapping[str, np.ndarray]) -> dict[str, list[bytes]]:
        """The digests, where some splits are these positions of the training images."""
        return {**self.digests, **{split: [self.digests["train"][place] for place in index.tolist()] for split, index in chosen.items()}}

    def wrong_in(self, split: str, *chosen: np.ndarray | None) -> list[str]:
        """What is wrong with the chosen images of a split."""
        places = [place for one in chosen if one is not None for place in one.tolist()]
        return [self.wrong[split][place] for place in sorted(places) if place in self.wrong[split]]


def content_of(splits: Mapping[str, ImageFiles]) -> Content | None:
    """The content of all files; None if they are too many to read at each start."""
    total = sum(int(files.sizes.sum()) for files in splits.values())
    if total > CONTENT_BYTES or sum(map(len, splits.values())) > CONTENT_FILES:
        return None
    digests, wrong = {}, {}
    for split, files in splits.items():
        if (known := files.digests()) is not None:
            digests[split], wrong[split] = known, {}
            continue

        def read(start: int, files: ImageFiles = files) -> list[tuple[bytes, str]]:
            some = (read_image(files.path(place)) for place in range(start, min(start + AT_ONCE, len(files))))
            return [(hashlib.sha256(content).digest(), problem) for content, problem in some]

        with ThreadPoolExecutor(LISTERS) as pool:
            found = [one for some in pool.map(read, range(0, len(files), AT_ONCE)) for one in some]
        digests[split] = [digest for digest, _ in found]
        wrong[split] = {place: text for place, (_, text) in enumerate(found) if text}
    return Content(digests, wrong)


def read_image(path: Path | EncodedImage) -> tuple[bytes, str]:
    """The bytes of a file, and what is wrong with it if it is not an image. Truncation is found when it is decoded."""
    try:
        content = bytes_of(path)
        if not content.startswith(BEGINNINGS):
            Image.open(path).close()
    except Exception as error:  # what is not an image may raise anything
        return b"", f"{path.absolute()} cannot be read or is not an image ({type(error).__name__}: {error})"
    return content, ""


def bytes_of(path: Path | EncodedImage) -> bytes:
    if isinstance(path, EncodedImage):
        return path.getvalue()
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def fingerprint_of_files(splits: Mapping[str, ImageFiles], content: Content | None, names: list[str] | None = None) -> str:
    """A hash of the relative paths and sizes, with the `names` of the classes where the paths do not tell them; and, after a hyphen, of the
    content if it was read (`record.same_images`)."""
    listing, pixels = hashlib.sha256(), hashlib.sha256()
    for split in sorted(splits):
        listing.update(split.encode())
        pixels.update(split.encode())
        files = splits[split]
        for key, size, label in zip(files.keys(), files.sizes.tolist(), files.labels.tolist(), strict=True):
            listing.update(key + b"\0%d\0" % size + (names[label].encode() + b"\0" if names else b""))
        pixels.update(b"".join(content.digests[split] if content else ()))
    return "-".join(one.hexdigest()[:16] for one in ([listing, pixels] if content else [listing]))


def shared_images(splits: Mapping[str, Any], digests: Mapping[str, Sequence[bytes]] | None) -> tuple[str, ...]:
    """A sentence for each two splits that have images in common, byte for byte. Without digests (ImageFiles only), some files of one
    split are compared with files of the same size of the other."""
    notes = []
    for one, other, so in SHARED:
        if one not in splits or other not in splits:
            continue
        if digests:
            places = np.arange(len(splits[one]))
            known = set(digests[other])
            same = [place for place, digest in enumerate(digests[one]) if digest in known]
        else:
            places = np.unique(np.linspace(0, len(splits[one]) - 1, COMPARED).astype(int))
            same = _copies(splits[one], places, splits[other])
        if same:
            among = f"{len(places)} {NAMES[one]} images{'' if digests else ' that were compared'}"
            what = f"WARNING: {len(same)} of {among} are also {NAMES[other]} images, byte for byte"
            notes.append(f"{what} (as {shown(splits[one].name(same[0]))}): {so}")
    return tuple(notes)


def _copies(files: ImageFiles, places: np.ndarray, others: ImageFiles) -> list[int]:
    """Those of the places whose file has a copy among the other files of its size: of its name, or among the first ones."""
    alike: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    sizes = others.sizes.tolist()
    for other in np.flatnonzero(np.isin(others.sizes, files.sizes[places])).tolist():
        for key in ((sizes[other], os.path.basename(others.paths[other])), (sizes[other], b"")):
            if len(alike[key]) < ALIKE:
                alike[key].append(other)

    def has_copy(place: int) -> bool:
        size = int(files.sizes[place])
        found = [*alike.get((size, os.path.basename(files.paths[place])), ()), *alike.get((size, b""), ())]
        return any(_equal(others.path(other), files.path(place)) for other in dict.fromkeys(found))

    with ThreadPoolExecutor(LISTERS) as pool:
        return [place for place, same in zip(places.tolist(), pool.map(has_copy, places.tolist()), strict=True) if same]


def _equal(one: Path | EncodedImage, other: Path | EncodedImage) -> bool:
    try:
        return bytes_of(one) == bytes_of(other)
    except OSError:
        return False
