"""Images inside of one large file: where each lies, and how it is read. Not a dataset."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from kdbench.datasets._reading import EncodedImage
from kdbench.errors import DataError

State = tuple[int, int, int]


class Blob:
    """A large open file. Readers that are forked share its descriptor, since `pread` has no position; others open it again."""

    def __init__(self, path: Path, state: State | None = None):
        self.path, self.descriptor = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self.descriptor)
        self.state: State = (found.st_ino, found.st_size, found.st_mtime_ns)
        if state not in (None, self.state):
            raise DataError(f"{path.absolute()} was changed while it was used: start again")

    def read(self, offset: int, size: int) -> bytes:
        """Raises DataError if the file is shorter."""
        try:
            content = os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self.path.absolute()} cannot be read: {error}") from error
        if len(content) < size:
            raise DataError(f"{self.path.absolute()} is truncated: copy it again")
        return content

    def __reduce__(self) -> tuple[type[Blob], tuple[Path, State]]:
        return Blob, (self.path, self.state)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass(frozen=True, eq=False)
class Archive:
    """Image files by their relative paths, which are sorted. Arrays, as in `ImageFiles`. `digests` are SHA-256 (n x 32 bytes), where they
    are known; `passed` counts what else the folder held, `resized` is the length to which the shorter sides were reduced."""

    blob: Blob
    paths: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray | None = None
    passed: Counter[str] | None = None
    resized: int | None = None

    def places(self, paths: np.ndarray | bytes) -> np.ndarray:
        return np.searchsorted(self.paths, paths)

    def content(self, place: int) -> bytes:
        return self.blob.read(int(self.offsets[place]), int(self.sizes[place]))

    def name(self, place: int) -> str:
        return f"{self.blob.path.absolute()}/{os.fsdecode(self.paths[place])}"


@dataclass(frozen=True)
class Inside:
    """A folder (or file) inside of an archive, with what listing needs of a `Path`."""

    archive: Archive
    below: str = ""

    def __truediv__(self, part: str) -> Inside:
        return Inside(self.archive, f"{self.below}/{part}" if self.below else part)

    @property
    def name(self) -> str:
        return PurePosixPath(self.below).name

    @property
    def parent(self) -> Inside:
        return Inside(self.archive, self.below.rpartition("/")[0])

    def absolute(self) -> Path:
        return self.archive.blob.path.absolute() / self.below

    def _span(self) -> tuple[bytes, int, int]:
        """How the paths of the images below begin, and the positions of the first and after the last."""
        if not self.below:
            return b"", 0, len(self.archive.paths)
        start = os.fsencode(self.below) + b"/"
        first, last = self.archive.places(np.array([start, start[:-1] + b"0"]))  # "0" follows "/"
        return start, int(first), int(last)

    def is_dir(self) -> bool:
        _, first, last = self._span()
        return first < last

    def iterdir(self) -> Iterator[Inside]:
        start, place, last = self._span()
        while place < last:
            name, below, _ = self.archive.paths[place][len(start) :].partition(b"/")
            yield self / os.fsdecode(name)
            place = int(self.archive.places(start + name + b"0")) if below else place + 1

    def images(self) -> Iterator[tuple[str, int]]:
        """(relative path, size) of every image below."""
        start, first, last = self._span()
        for path, size in zip(self.archive.paths[first:last].tolist(), self.archive.sizes[first:last].tolist(), strict=True):
            yield os.fsdecode(path[len(start) :]), size

    def opened(self) -> EncodedImage:
        """The image of this path."""
        place = int(self.archive.places(os.fsencode(self.below)))
        return EncodedImage(self.archive.content(place), self.archive.name(place))
